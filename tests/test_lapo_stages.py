"""LAPO on a dot that moves: latents that tell the action, a policy that guesses them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lapo_small import DECODER, MOVES, PATCHES, SIDE, TRAINING, make_model, moving_dots, run

from lawm_jax.data.frames import draw_steps, shard_frames, window_steps, windows_at
from lawm_jax.lapo import decode, embed, evaluate, imitation, learner
from lawm_jax.lapo.decode import Decoder, Latents
from lawm_jax.lapo.vq import VQConfig
from lawm_jax.vision import FrameNetwork

OPTIMISED = True  # hundreds of steps of convolutions: here running takes longer than compiling
SHAPE = (SIDE, SIDE, 3)
ACTIONS = len(MOVES)
MODEL = make_model(
    published=False, relative_error=True,
    vq=VQConfig(books=1, codes=1, size=4, embeddings=6, decay=0.98, initial_count=1.0,
                initial_scale=1.7, restart_below=0.05),
)
LONG = dataclasses.replace(TRAINING, steps=600, rows=64, learning_rate=3e-3, warmup_steps=20)


@pytest.fixture(scope="module")
def frames():
    """Training and held-out episodes."""
    return moving_dots(seed=0), moving_dots(episodes=20, seed=1)


@pytest.fixture(scope="module")
def several():
    """The same with four dots, whose places no code of the bottleneck could tell."""
    return moving_dots(4, seed=0), moving_dots(4, episodes=20, seed=1)


@pytest.fixture(scope="module")
def trained(several):
    state = learner.init(MODEL, LONG, SHAPE, 0)
    step = learner.make_step(MODEL, LONG, 1)
    return run(step, state, None, shard_frames(several[0], 1), LONG.steps)


@pytest.fixture(scope="module")
def described(several, trained):
    """Training and held-out windows as the trained model sees them."""
    return tuple(
        evaluate.describe(MODEL, trained[0], part, draw_steps(part, 400, 0)) for part in several
    )


def test_the_latents_tell_the_action(several, described):
    metrics = evaluate.action_metrics(*described, ACTIONS, merge=[0, 0, 1, 1])
    assert metrics["probe_accuracy"] > 0.9
    assert metrics["probe_accuracy_quantised"] > 0.8
    assert metrics["majority_accuracy"] < 0.4
    assert metrics["probe_accuracy_merged"] > 0.9
    assert 0.45 < metrics["majority_accuracy_merged"] < 0.65

    errors = evaluate.prediction_metrics(MODEL, described[1])
    assert errors["fdm_error"] < 0.3 * errors["copy_last_frame_error"]
    assert errors["changed_frames"] == 1.0
    np.testing.assert_allclose(errors["fdm_error_changed"], errors["fdm_error"], rtol=1e-5)
    assert 3 < errors["codebook_perplexity"] <= 6
    assert errors["dead_codes"] <= 2
    windows = windows_at(several[1], draw_steps(several[1], 400, 0))
    changed = np.mean(windows.current != windows.next)  # a white pixel, or none, is off by one
    np.testing.assert_allclose(errors["copy_last_frame_error"], changed, rtol=1e-4)


def test_examples_of_latents_and_what_they_predict(several, trained, described):
    seen, steps = described[1], draw_steps(several[1], 400, 0)
    chosen = evaluate.examples(seen, 3)
    codes = seen.indices.reshape(len(seen.z), -1)
    uses = [int((codes == codes[i]).all(-1).sum()) for i in chosen]
    assert len({tuple(codes[i]) for i in chosen}) == 3 and uses == sorted(uses, reverse=True)
    assert uses[0] == np.unique(codes, axis=0, return_counts=True)[1].max()
    z = seen.quantised[chosen]
    predicted = evaluate.predicted_frames(MODEL, trained[0], several[1], steps[chosen], z)
    error = (predicted / 255.0 - several[1].observation[steps[chosen] + 1] / 255.0) ** 2
    np.testing.assert_allclose(error.mean((1, 2, 3)), seen.fdm_error[chosen], rtol=0.1, atol=2e-3)
    of_first = evaluate.predicted_frames(
        MODEL, trained[0], several[1], np.repeat(steps[chosen[:1]], 3), z
    )
    np.testing.assert_array_equal(of_first[0], predicted[0])
    assert not (of_first[1] == of_first[0]).all()


def test_metrics_of_frames_that_do_not_change(described):
    seen = jax.tree.map(lambda x: x[:4], described[1])
    seen = seen._replace(
        fdm_error=np.array([1.0, 2.0, 3.0, 4.0]), copy_error=np.array([0.0, 4.0, 0.0, 8.0]),
        changed=np.array([False, True, False, True]),
    )
    metrics = evaluate.prediction_metrics(MODEL, seen)
    assert metrics["fdm_error"] == 2.5 and metrics["fdm_error_changed"] == 3.0
    assert metrics["copy_last_frame_error_changed"] == 6.0 and metrics["changed_frames"] == 0.5
    still = seen._replace(changed=np.zeros(4, bool))
    assert "fdm_error_changed" not in evaluate.prediction_metrics(MODEL, still)


def test_metrics_over_the_windows_that_change(several, described):
    some = [x._replace(changed=np.arange(len(x.z)) % 2 == 0) for x in described]
    alone = [
        jax.tree.map(lambda x, part=part: x[part.changed], part)._replace(
            changed=np.zeros(len(part.z) // 2, bool))
        for part in some
    ]
    metrics = evaluate.action_metrics(*some, ACTIONS, merge=[0, 0, 1, 1])
    expected = evaluate.action_metrics(*alone, ACTIONS, merge=[0, 0, 1, 1])
    assert len(metrics) == 2 * len(expected) == 12
    for name, value in expected.items():
        assert metrics[f"{name}_changed"] == value

    frames, steps = several[1], window_steps(several[1].episode)[:40:2]
    observation = frames.observation.copy()
    observation[steps[:10] + 1] = observation[steps[:10]]
    frames = frames._replace(observation=observation)
    policy = FrameNetwork(PATCHES, MODEL.idm.vq.latent_size)
    params = imitation.init(policy, TRAINING, SHAPE, 0).params
    z = np.random.default_rng(0).standard_normal((20, MODEL.idm.vq.latent_size))
    metrics = evaluate.latent_policy_metrics(policy, params, frames, steps, z)
    moving = evaluate.latent_policy_metrics(policy, params, frames, steps[10:], z[10:])
    for name in ("latent_policy_error", "latent_policy_explained"):
        np.testing.assert_allclose(metrics[f"{name}_changed"], moving[name], rtol=1e-5)
        assert metrics[name] != metrics[f"{name}_changed"]
    network = FrameNetwork(PATCHES, ACTIONS)
    params = imitation.init(network, TRAINING, SHAPE, 0).params
    metrics = evaluate.cloning_accuracy(network, params, frames, steps, [0, 0, 1, 1])
    moving = evaluate.cloning_accuracy(network, params, frames, steps[10:], [0, 0, 1, 1])
    assert len(metrics) == 4
    for name in ("cloning_accuracy", "cloning_accuracy_merged"):
        np.testing.assert_allclose(metrics[f"{name}_changed"], moving[name])


def test_a_probe_of_noise_is_no_better_than_the_majority():
    rng = np.random.default_rng(0)
    inputs, labels = rng.standard_normal((2, 300, 5)), rng.integers(0, 3, (2, 300))
    assert evaluate.probe_accuracy(inputs[0], labels[0], inputs[1], labels[1]) < 0.45
    labels = inputs[..., 2].round().astype(int).clip(-1, 1) + 1
    assert evaluate.probe_accuracy(inputs[0], labels[0], inputs[1], labels[1]) > 0.9
    assert evaluate.majority_accuracy(np.array([1, 1, 2]), np.array([1, 2, 1, 2])) == 0.5


def test_a_latent_policy_imitates_and_freezes_what_it_should(frames, trained):
    """Actions here are random, so z is predicted only as far as o_t tells it: the mean."""
    policy = FrameNetwork(PATCHES, MODEL.idm.vq.latent_size)
    config = dataclasses.replace(TRAINING, steps=40, rows=32, shift=1)
    state = imitation.init(policy, config, SHAPE, 0)
    step = imitation.make_step(imitation.latent_policy_loss(policy, MODEL), config, 1)
    frozen = {"idm": trained[0].params["idm"]}
    state, metrics = run(step, state, frozen, shard_frames(frames[0], 1), 40)
    assert metrics["loss"][-5:].mean() < metrics["loss"][:5].mean()
    steps = window_steps(frames[1].episode)[:300]
    z = evaluate.latents(MODEL, trained[0].params, frames[1], steps)
    metrics = evaluate.latent_policy_metrics(policy, state.params, frames[1], steps, z)
    np.testing.assert_allclose(z.shape, (300, MODEL.idm.vq.latent_size))
    assert -0.5 < metrics["latent_policy_explained"] < 0.3
    # The target carries no gradient into the inverse model, which is not among the parameters.
    windows = windows_at(frames[1], steps[:4])
    loss = imitation.latent_policy_loss(policy, MODEL)
    gradient = jax.jit(jax.grad(
        lambda frozen: loss(state.params, frozen, windows, windows)[0]))(frozen)
    assert all((x == 0).all() for x in jax.tree.leaves(gradient))


def test_distilled_policies_give_the_mean_of_what_decoders_say(frames, trained):
    """Not what decoders say of the mean: actions are random here, so o_t tells nothing of z."""
    policy = FrameNetwork(PATCHES, MODEL.idm.vq.latent_size)
    network, decoder = FrameNetwork(PATCHES, ACTIONS), Decoder(DECODER.units, ACTIONS)
    config = dataclasses.replace(TRAINING, steps=300, rows=64, learning_rate=3e-3)
    latent = imitation.init(policy, config, SHAPE, 0).params
    idm = {"idm": trained[0].params["idm"]}
    steps = window_steps(frames[0].episode)[:600]
    z = evaluate.latents(MODEL, idm, frames[0], steps)
    action = frames[0].action[steps]
    decoders = [
        decode.fit(decoder, DECODER, Latents(z, action, np.int32(count)), 0)[0]
        for count in (20, 600)
    ]
    frozen = idm | {
        "trunk": latent["trunk"], "decoders": jax.tree.map(lambda *x: jnp.stack(x), *decoders),
    }
    head = imitation.init(network, config, SHAPE, 1).params["head"]
    state = imitation.distillation_start(latent, head, 2, config, 0)
    assert set(state.params) == {"fc", "head"}
    loss = imitation.distillation_loss(network, MODEL, decoder)

    windows = windows_at(frames[0], steps[:8])
    probability = lambda one, z: jax.nn.softmax(decoder.apply({"params": one}, z))
    wanted = 0.0
    for index, one in enumerate(decoders):
        params = jax.tree.map(lambda x, index=index: x[index], state.params)
        params |= {"trunk": latent["trunk"]}
        guess = jax.nn.log_softmax(evaluate.guesses(network, params, frames[0], steps[:8]))
        wanted -= float(jnp.mean(jnp.sum(probability(one, z[:8]) * guess, -1)))
    value, metrics = jax.jit(loss)(state.params, frozen, windows, windows)
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], wanted / 2, rtol=1e-4)
    gradient = jax.jit(jax.grad(
        lambda frozen: loss(state.params, frozen, windows, windows)[0]))(frozen)
    for name in ("idm", "decoders"):
        assert all((x == 0).all() for x in jax.tree.leaves(gradient[name]))

    step = imitation.make_step(loss, config, 1, many=True)
    alone = imitation.distillation_start(latent, head, 1, config, 0)  # donated: made anew
    state, _ = run(step, state, frozen, shard_frames(frames[0], 1), config.steps)
    second = frozen | {"decoders": jax.tree.map(lambda x: x[1:], frozen["decoders"])}
    alone, _ = run(step, alone, second, shard_frames(frames[0], 1), config.steps)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[1], y[0], atol=1e-4), state.params, alone.params
    )
    for index, one in enumerate(decoders):
        params = jax.tree.map(lambda x, index=index: x[index], state.params)
        logits = evaluate.guesses(network, params | {"trunk": latent["trunk"]}, frames[0], steps)
        mean = jax.nn.softmax(logits).mean(0)
        of_each, of_mean = probability(one, z).mean(0), probability(one, z.mean(0))
        assert abs(mean - of_each).max() < 0.06
        assert abs(of_mean - of_each).max() > 0.15  # the test can tell the two


def test_distilled_policies_with_trunks_of_their_own_learn_as_each_would_alone(frames, trained):
    """Where trunks learn too, decoders do not share one, and the loss is that of whole networks."""
    network, decoder = FrameNetwork(PATCHES, ACTIONS), Decoder(DECODER.units, ACTIONS)
    config = dataclasses.replace(TRAINING, steps=20, rows=16, gradient_clip=0.05)
    size = MODEL.idm.vq.latent_size
    latent = imitation.init(FrameNetwork(PATCHES, size), config, SHAPE, 0).params
    fresh = jax.tree.map(np.asarray, decode.init(decoder, DECODER, size, 0).params)
    rng = np.random.default_rng(0)
    shaken = lambda x: x + rng.normal(size=x.shape, scale=0.3).astype(x.dtype)
    decoders = [jax.tree.map(shaken, fresh) for _ in range(2)]
    frozen = {"idm": trained[0].params["idm"],
              "decoders": jax.tree.map(lambda *x: jnp.stack(x), *decoders)}
    head = imitation.init(network, config, SHAPE, 1).params["head"]
    begin = lambda count: imitation.distillation_start(latent, head, count, config, 0, trunk=True)
    state, loss = begin(2), imitation.distillation_loss(network, MODEL, decoder)
    assert set(state.params) == {"trunk", "fc", "head"}

    steps = window_steps(frames[0].episode)[:8]
    windows, z = windows_at(frames[0], steps), evaluate.latents(MODEL, frozen, frames[0], steps)
    guess = jax.nn.log_softmax(evaluate.guesses(
        network, jax.tree.map(lambda x: x[0], state.params), frames[0], steps))
    wanted = -sum(
        float(jnp.mean(jnp.sum(jax.nn.softmax(decoder.apply({"params": one}, z)) * guess, -1)))
        for one in decoders
    )
    value, _ = jax.jit(loss)(state.params, frozen, windows, windows)
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    objective = lambda params: loss(params, frozen, windows, windows)[0]
    grads = jax.jit(jax.grad(objective))(state.params)
    for k in range(2):  # the clip has something to do
        squares = [float((x[k] ** 2).sum()) for x in jax.tree.leaves(grads)]
        assert sum(squares) > config.gradient_clip**2

    step = imitation.make_step(loss, config, 1, many=True)
    state, _ = run(step, state, frozen, shard_frames(frames[0], 1), config.steps)
    second = frozen | {"decoders": jax.tree.map(lambda x: x[1:], frozen["decoders"])}
    alone, _ = run(step, begin(1), second, shard_frames(frames[0], 1), config.steps)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x[1], y[0], atol=1e-4), state.params, alone.params
    )
    for first, other, start in zip(*(jax.tree.leaves(x["trunk"]) for x in (
            jax.tree.map(lambda x: x[0], state.params), alone.params, latent)), strict=True):
        assert abs(first - start).max() > 1e-4  # trunks learn,
        assert abs(first - other[0]).max() > 1e-4  # each its own


def test_a_supervised_inverse_model_and_cloning(frames):
    """Three frames tell the action exactly; one frame tells that of a policy that reads it."""
    network = FrameNetwork(PATCHES, ACTIONS)
    config = dataclasses.replace(TRAINING, steps=100, rows=64, learning_rate=5e-3)
    steps = window_steps(frames[1].episode)[:300]

    state = imitation.init(network, config, (SIDE, SIDE, 9), 0)
    step = imitation.make_step(imitation.supervised_idm_loss(network, True), config, 1)
    state, _ = run(step, state, None, shard_frames(frames[0], 1), 100)
    accuracy = evaluate.supervised_idm_accuracy(
        network, True, state.params, frames[1], steps, merge=[0, 0, 1, 1])
    assert accuracy["supervised_idm_accuracy"] > 0.95
    assert accuracy["supervised_idm_accuracy_merged"] >= accuracy["supervised_idm_accuracy"]

    def by_column(part):
        """Relabelled: the action is the dot's column."""
        column = part.observation[:, :, ::2, 0].max(1).argmax(-1).astype(np.int32)
        return part._replace(action=column)

    state = imitation.init(network, config, SHAPE, 0)
    step = imitation.make_step(imitation.cloning_loss(network), config, 1)
    state, _ = run(step, state, None, shard_frames(by_column(frames[0]), 1), 100)
    accuracy = evaluate.cloning_accuracy(network, state.params, by_column(frames[1]), steps)
    assert accuracy["cloning_accuracy"] > 0.95


def test_gathered_transitions_are_of_one_episode(trained):
    """Two environments, six steps; the first resets in the middle as EnvPool does."""
    rng = np.random.default_rng(0)
    observation = rng.integers(0, 256, (2, 7, *SHAPE)).astype(np.uint8)
    action = np.arange(12).reshape(2, 6).astype(np.int32)
    weight = np.ones((2, 6), np.float32)
    weight[0, 3] = 0  # frame 3 is terminal, its action ignored, frame 4 the reset
    params = {"idm": trained[0].params["idm"]}
    size = MODEL.idm.vq.latent_size
    frames = decode.episodes_of(observation, action, np.zeros((2, 6)), weight)
    steps = window_steps(frames.episode)
    z = evaluate.latents(MODEL, params, frames, steps)
    gather = lambda latents: decode.append(
        latents, np.pad(z, ((0, 3), (0, 0))), np.pad(frames.action[steps], (0, 3)), len(steps))
    once = gather(decode.empty_latents(20, size))
    kept = [1, 2, 5, 7, 8, 9, 10, 11]
    assert once.count == len(kept)
    np.testing.assert_array_equal(once.action[: len(kept)], kept)
    first = learner.FrameWindows(*(observation[:1, t] for t in (0, 1, 2)), action[0, 1:2])
    expected = jax.jit(learner.infer, static_argnums=0)(MODEL, params, first)
    np.testing.assert_allclose(once.z[0], expected[0], atol=1e-4)
    full = gather(gather(once))
    assert full.count == 20
    np.testing.assert_array_equal(full.action, (kept * 3)[:20])


def test_latents_in_the_plane_keep_their_clusters():
    rng = np.random.default_rng(0)
    label = np.arange(60) % 2
    z = rng.standard_normal((60, 5)) + 20 * label[:, None]
    points, method = embed.plane(z, 0)
    assert points.shape == (60, 2) and method in ("PCA", "UMAP")
    np.testing.assert_array_equal(points, embed.plane(z, 0)[0])
    centres = np.stack([points[label == i].mean(0) for i in (0, 1)])
    nearest = np.linalg.norm(points[:, None] - centres, axis=-1).argmin(1)
    assert (nearest == label).all()


@pytest.mark.parametrize("different", [1, 3, 40])
def test_equal_latents_come_to_one_place_in_the_plane(different):
    z = np.random.default_rng(0).standard_normal((different, 5))
    which = np.arange(120) % different
    points, _ = embed.plane(z[which] + 1e-6 * np.arange(120)[:, None] / 120, 0)
    assert points.shape == (120, 2) and np.isfinite(points).all()
    places = np.stack([points[which == i].mean(0) for i in range(different)])
    extent = max(np.ptp(places, axis=0).max(), 1e-3)
    spread = np.linalg.norm(points - places[which], axis=1)
    assert spread.max() < 0.06 * extent and (spread > 0).any()
