"""Stage 1 of LAPO: who sees the next frame, what changes the codebook, and what is learned."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from lapo_small import (
    SIDE,
    TRAINING,
    VQ,
    make_model,
    noise_frames,
)

from lawm_jax import runner
from lawm_jax.data.frames import FrameWindows, shard_frames, window_steps, windows_at
from lawm_jax.lapo import learner, vq
from lawm_jax.lapo.fdm import OWN_LOGIT, FDMConfig, ForwardDynamics, move
from lawm_jax.lapo.optimiser import make_optimiser, schedule
from lawm_jax.vision import (
    EncoderConfig,
    FrameNetwork,
    Trunk,
    from_patches,
    pad,
    resize,
    scale,
    to_patches,
)

SHAPE = (SIDE, SIDE, 3)
infer = jax.jit(learner.infer, static_argnums=0)
predict = jax.jit(learner.predict, static_argnums=0)


def train(model, config, frames, steps, seed=0):
    mesh = runner.make_mesh(jax.devices()[:1])
    run = runner.data_parallel(learner.make_step(model, config, 1), mesh)
    state = learner.init(model, config, SHAPE, seed)
    state, metrics = run(state, None, runner.shard(shard_frames(frames, 1), mesh), steps=steps)
    return jax.device_get((state, metrics))


@pytest.fixture(scope="module")
def published():
    """(model, state after three steps, metrics) of the tiny published form on noise."""
    model = make_model(published=True)
    return model, *train(model, TRAINING, noise_frames(), 3)


def test_patches_are_the_frames_pixels():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = to_patches(jnp.asarray(x), 2)
    np.testing.assert_array_equal(patches[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    np.testing.assert_array_equal(from_patches(patches, 2), x)


@pytest.mark.parametrize(("cells", "side"), [(15, 60), (11, 66), (10, 40)])
def test_resized_frames_have_a_cell_in_each_patch(cells, side):
    """A board drawn on 64 pixels, of which cells do not divide, is cut along its cells again."""
    board = np.random.default_rng(0).uniform(-0.5, 0.5, (2, cells, cells, 3)).astype(np.float32)
    fine = board.repeat(64, 1).repeat(64, 2)  # `cells` fine pixels to a pixel
    frames = fine.reshape(2, 64, cells, 64, cells, 3).mean((2, 4))
    patches = to_patches(resize(jnp.asarray(frames), side), side // cells)
    means = patches.reshape(2, cells, cells, -1, 3).mean(3)
    np.testing.assert_allclose(means, board, atol=0.2)
    assert np.corrcoef(means.ravel(), board.ravel())[0, 1] > 0.98
    np.testing.assert_allclose(resize(jnp.asarray(frames), 64), frames, atol=1e-6)


@pytest.mark.parametrize("side", [7, 8, 16, 12, 19, 60])
def test_frames_are_resized_as_by_jax(side):
    x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    expected = jax.image.resize(x, (2, side, side, 3), "linear", antialias=True)
    np.testing.assert_allclose(resize(x, side), expected, atol=1e-5)


def test_maps_are_padded_where_patches_and_halvings_do_not_divide_them():
    x = jnp.ones((1, 3, 4, 2))
    np.testing.assert_array_equal(pad(x, 2)[:, :3], x)
    assert pad(x, 2).shape == (1, 4, 4, 2)
    assert not pad(x, 2)[:, 3].any()
    encoder = EncoderConfig((4, 6), multiplier=1, blocks=(0, 1), patch=4, resize=60)
    features = lambda frame: Trunk(encoder).init_with_output(jax.random.key(0), frame)[0]
    assert features(jnp.zeros((1, 64, 64, 3))).shape == (1, 8 * 8 * 6)  # 15 cells, padded to 16


def test_pixels_move_where_their_weights_say():
    """A row down and two columns to the left; pixels from beyond the border are its own."""
    frames = jax.random.uniform(jax.random.key(0), (2, 6, 8, 3))
    pick = lambda k: jnp.zeros((2, 6, 8, 5)).at[..., k].set(1000.0)
    moved = move(frames, across=pick(4), down=pick(1))  # from 2 to the right and 1 above
    np.testing.assert_allclose(moved[:, 1:, :6], frames[:, :-1, 2:])
    np.testing.assert_allclose(moved[:, 0, :6], frames[:, 0, 2:])
    np.testing.assert_allclose(moved[:, 1:, 6], moved[:, 1:, 7])
    still = move(frames, jnp.zeros((2, 6, 8, 5)), jnp.zeros((2, 6, 8, 5)))
    assert np.abs(still - frames).max() < 0.15
    between = jnp.zeros((2, 6, 8, 5)).at[..., 2].set(500.0 - OWN_LOGIT).at[..., 3].set(500.0)
    halved = move(frames, across=between, down=pick(2))
    np.testing.assert_allclose(
        halved[:, :, :-1], (frames[:, :, :-1] + frames[:, :, 1:]) / 2, atol=1e-6
    )


def sliding_error(reach):
    """Error of a forward model after 150 steps on textures that slide by a pixel, of copying's."""
    model = ForwardDynamics(FDMConfig(16, levels=1, patch=4, residual=True, reach=reach))
    optimiser = optax.adam(1e-2)
    z = jnp.zeros((32, 1))

    def batch(key):
        textures, left = jax.random.split(key)
        first = jax.random.randint(textures, (32, 8, 8, 3), 0, 256).astype(jnp.uint8)
        by = jnp.where(jax.random.bernoulli(left, shape=(32,)), 1, -1)
        slide = jax.vmap(lambda frame, steps: jnp.roll(frame, steps, 1))
        return first, slide(first, by), slide(first, 2 * by)

    def loss(params, frames):
        guess = model.apply({"params": params}, *frames[:2], z, train=True)
        current, following = map(scale, frames[1:])
        return jnp.mean((guess - following) ** 2) / jnp.mean((current - following) ** 2)

    @jax.jit
    def step(params, state, key):
        updates, state = optimiser.update(jax.grad(loss)(params, batch(key)), state)
        return optax.apply_updates(params, updates), state

    first = batch(jax.random.key(0))
    params = model.init(jax.random.key(0), *first[:2], z, train=False)["params"]
    state = optimiser.init(params)
    for key in jax.random.split(jax.random.key(1), 150):
        params, state = step(params, state, key)
    return float(loss(params, batch(jax.random.key(2))))


def test_a_model_that_moves_pixels_learns_what_slides():
    """Both frames before show the speed; without moving, textures would have to be learned."""
    assert sliding_error(reach=1) < 0.3
    assert sliding_error(reach=0) > 0.4


def test_published_sizes():
    """IMPALA x4 ends in 8 x 8 x 128; the U-Net has about 8M parameters (LAPO section 5)."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    frame = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    trunk = Trunk(EncoderConfig())
    features = jax.eval_shape(
        lambda x: trunk.init_with_output(jax.random.key(0), scale(x))[0], frame
    )
    assert features.shape == (1, 8 * 8 * 128)
    forward = ForwardDynamics(FDMConfig())
    variables = jax.eval_shape(
        lambda x: forward.init(jax.random.key(0), x, x, jnp.zeros((1, 128)), train=False), frame
    )
    assert 7.5e6 < count(variables["params"]) < 8.5e6
    for patch, levels, reach in ((8, 2, 0), (8, 2, 3), (0, 7, 3)):
        small = ForwardDynamics(FDMConfig(24, levels, patch, residual=True, reach=reach))
        out = jax.eval_shape(
            lambda x, small=small: small.init_with_output(
                jax.random.key(0), x, x, jnp.zeros((1, 128)), train=False)[0], frame,
        )
        assert out.shape == (1, 64, 64, 3)


@pytest.mark.parametrize("sees", [{}, {"pool": True}, {"glimpses": 2, "glimpse": 8}])
def test_bfloat16_is_close_to_float32(sees):
    frames = scale(jnp.asarray(noise_frames().observation))
    config = EncoderConfig((4,), multiplier=1, blocks=(1,), patch=2, features=8, **sees)
    network = FrameNetwork(config, 3)
    params = network.init(jax.random.key(0), frames)
    half = FrameNetwork(dataclasses.replace(config, dtype="bfloat16"), 3)
    exact, rough = network.apply(params, frames), half.apply(params, frames)
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=0.05)
    assert (rough != exact).any()


@pytest.mark.parametrize(("clip", "share"), [(2.0, 2.0 / 5.0), (10.0, 1.0), (0.0, 1.0)])
def test_gradients_are_clipped_by_their_norm_or_not_at_all(clip, share):
    """Adam's first moment after one step is a tenth of the gradient that reached it."""
    config = dataclasses.replace(TRAINING, gradient_clip=clip)
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    optimiser = make_optimiser(config)
    _, state = optimiser.update(gradient, optimiser.init(gradient), gradient)
    moment = optax.tree.get(state, "mu")
    for name, value in gradient.items():
        np.testing.assert_allclose(moment[name], 0.1 * share * value, rtol=1e-5)


def test_the_schedule_is_the_published_one():
    config = dataclasses.replace(
        TRAINING, steps=50_000, warmup_steps=50, learning_rate=3e-4, learning_rate_end=0.01
    )
    rate = schedule(config)
    np.testing.assert_allclose(
        [rate(0), rate(25), rate(50), rate(25_025), rate(50_000)],
        3e-4 * np.array([0.1, 0.55, 1.0, 0.505, 0.01]), rtol=1e-5,
    )


@pytest.mark.parametrize("published_form", [True, False])
def test_the_forward_model_sees_the_next_frame_through_z_alone(published_form):
    model = make_model(published_form)
    state = learner.init(model, TRAINING, SHAPE, 0)
    # Zero-initialised outputs would hide a dependence.
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: np.asarray(x) + 0.1 * rng.standard_normal(x.shape).astype(np.float32),
        jax.device_get(state.params),
    )
    state = state.replace(params=params)
    frames = noise_frames()
    windows = windows_at(frames, window_steps(frames.episode)[:2])
    other = windows._replace(next=255 - windows.next)
    z, other_z = (infer(model, params, w) for w in (windows, other))
    assert np.abs(z - other_z).max() > 1e-3

    prediction = jax.jit(lambda windows, z: learner.predict(
        model, state, windows, learner.bottleneck(model, state.codebook, z).z
    ))
    np.testing.assert_array_equal(prediction(windows, z), prediction(other, z))
    assert np.abs(prediction(windows, 3 * z) - prediction(windows, -3 * z)).max() > 1e-4
    for name in ("previous", "current"):
        changed = windows._replace(**{name: 255 - getattr(windows, name)})
        assert np.abs(prediction(changed, z) - prediction(windows, z)).max() > 1e-3
        assert np.abs(infer(model, params, changed) - z).max() > 1e-3

    # Straight through the quantiser, the error's gradient reaches the z of every window.
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(prediction(windows, z) ** 2)))(z)
    assert (np.abs(gradient).max(-1) > 0).all()


def test_normalised_latents_have_codes_of_one_length():
    model = make_model(published=False)
    state = learner.init(model, TRAINING, SHAPE, 0)
    frames = noise_frames()
    z = infer(model, state.params, windows_at(frames, window_steps(frames.episode)))
    mean_square = np.mean(np.reshape(z, (-1, VQ.size)) ** 2, -1)
    np.testing.assert_allclose(mean_square, 1.0, rtol=1e-3)


def test_a_step_moves_what_it_should(published):
    model, state, metrics = published
    fresh = jax.device_get(learner.init(model, TRAINING, SHAPE, 0))
    moved = jax.tree.map(lambda x, y: bool(np.any(x != y)), state, fresh)
    assert all(jax.tree.leaves(moved.params))
    assert all(jax.tree.leaves(moved.batch_stats)) and jax.tree.leaves(moved.batch_stats)
    assert all(jax.tree.leaves(moved.codebook))
    assert state.step == 3
    # counts approach the 8 rows x 3 codes of a batch from zero
    expected = (1 - model.idm.vq.decay**3) * 8 * 3
    np.testing.assert_allclose(state.codebook.ema_count.sum(-1), expected, rtol=1e-3)
    np.testing.assert_allclose(state.copy_error, metrics["copy_last_frame_error"].mean(), rtol=0.2)
    assert np.isfinite(list(metrics.values())).all()


def test_predicting_changes_no_state(published):
    """Evaluation has running statistics and the codebook as inputs only: rows do not mix."""
    model, state, _ = published
    frames = noise_frames()
    windows = windows_at(frames, window_steps(frames.episode))
    alone = FrameWindows(*(x[:1] for x in windows))
    z = infer(model, state.params, windows)
    quantised = learner.bottleneck(model, state.codebook, z)
    together = predict(model, state, windows, quantised.z)
    single = predict(model, state, alone, quantised.z[:1])
    np.testing.assert_allclose(together[:1], single, atol=1e-5)


def test_without_vq_the_forward_model_is_given_z():
    model = make_model(published=False, vq=dataclasses.replace(VQ, enabled=False))
    state, metrics = train(model, TRAINING, noise_frames(), 1)
    fresh = learner.init(model, TRAINING, SHAPE, 0)
    jax.tree.map(np.testing.assert_array_equal, state.codebook, jax.device_get(fresh.codebook))
    assert metrics["commitment"] == 0 and "perplexity" not in metrics
    z = jnp.ones((2, VQ.latent_size))
    assert learner.bottleneck(model, state.codebook, z).z is z
    assert isinstance(fresh.codebook, vq.Codebook)


def test_relative_error_is_in_units_of_copying_the_last_frame():
    """The forward model starts as a copy of the last frame, so its relative error starts at 1."""
    model = make_model(published=False, relative_error=True)
    _, metrics = train(model, TRAINING, noise_frames(), 1)
    np.testing.assert_allclose(metrics["fdm_error"], metrics["copy_last_frame_error"], rtol=1e-5)
    expected = 1.0 + model.idm.vq.commitment * metrics["commitment"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)


def test_a_pooled_network_tells_what_but_not_where():
    """A mark in the middle of a patch moves by a patch, far from the border: nothing changes."""
    encoder = EncoderConfig((8,), multiplier=1, blocks=(0,), patch=2, pool=True, features=16)
    frames = np.zeros((3, SIDE, SIDE, 3), np.float32)
    frames[0, 2, 2] = frames[1, 4, 4] = frames[2, 4, 5] = 0.5
    where = dataclasses.replace(encoder, pool=False)
    seen = {}
    for name, config in (("what", encoder), ("where", where)):
        network = FrameNetwork(config, 4)
        seen[name] = network.init_with_output(jax.random.key(0), jnp.asarray(frames))[0]
    np.testing.assert_array_equal(seen["what"][0], seen["what"][1])
    assert np.abs(seen["what"][0] - seen["what"][2]).max() > 1e-3
    assert np.abs(seen["where"][0] - seen["where"][1]).max() > 1e-3
