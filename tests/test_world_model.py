"""The world model: its parts by hand, which heads a method has, and what a state may see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import OBS, A, H, U, Z, make_model, make_params, make_windows

from lawm_jax.lawm.world_model import InferenceNoise, State, infer, init_params
from lawm_jax.nets import GRUCell, Hidden, normal_from

LENGTH, LABELLED, UNLABELLED = 5, 2, 3


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def test_the_gru_cell_by_hand():
    rng = np.random.default_rng(0)
    h, x = rng.standard_normal((3, 4)), rng.standard_normal((3, 2))
    kernel, shift, scale, bias = (rng.standard_normal(shape) for shape in ((6, 12), 12, 12, 12))
    params = {
        "Dense_0": {"kernel": kernel, "bias": shift},
        "LayerNorm_0": {"scale": scale, "bias": bias},
    }

    gates = np.concatenate([h, x], -1) @ kernel + shift
    gates = (gates - gates.mean(-1, keepdims=True)) / np.sqrt(gates.var(-1, keepdims=True) + 1e-6)
    reset, candidate, update = np.split(gates * scale + bias, 3, -1)
    candidate = np.tanh(sigmoid(reset) * candidate)
    update = sigmoid(update - 1.0)
    expected = update * candidate + (1.0 - update) * h

    found = GRUCell(4).apply({"params": params}, jnp.asarray(h), jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_layer_sees_the_size_of_its_input():
    """LayerNorm alone would hide it: LayerNorm(W x) is the same for x and 2 x."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 4)), jnp.float32)
    layer = Hidden(8)
    params = layer.init(jax.random.key(0), x)["params"]
    params["Dense_0"]["bias"] = jnp.asarray(rng.standard_normal(8), jnp.float32)
    one, two = (layer.apply({"params": params}, y) for y in (x, 2 * x))
    assert np.abs(one - two).max() > 0.1


def test_a_std_has_a_floor():
    x = jnp.array([[3.0, -1.0, -200.0, 2.0]])
    mean, std = normal_from(x, 0.1)
    np.testing.assert_array_equal(mean, [[3.0, -1.0]])
    np.testing.assert_allclose(std, [[0.1, np.log1p(np.exp(2.0)) + 0.1]], rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "has", "has_not"),
    [
        ("lawm", {"inverse_head", "latent_posterior_head", "action_head"}, {"latent_prior_head"}),
        ("c_lap", {"latent_prior_head", "latent_posterior_head", "action_head"}, set()),
        (
            "dreamer",
            {"prior_head", "reward_head"},
            {"inverse_head", "inverse_projection", "latent_posterior_head", "action_head",
             "latent_prior_head"},
        ),
    ],
)
def test_the_heads_of_a_method(method, has, has_not):
    params = jax.eval_shape(functools.partial(init_params, make_model(method)), jax.random.key(0))
    assert has <= set(params)
    assert not has_not & set(params)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}


def test_heads_compute_in_their_dtype_and_answer_in_float32():
    model = make_model(dtype=jnp.bfloat16)
    state = State(jnp.zeros((1, H)), jnp.zeros((1, Z)))

    def everything(key):
        params = init_params(model, key)
        apply = functools.partial(model.apply, {"params": params})
        embedding = apply(jnp.zeros((1, OBS)), method="embed")
        return params, [
            apply(state.h, embedding.posterior, method="posterior"),
            apply(state.h, method="prior"),
            apply(state, jnp.zeros((1, A)), method="transition"),
            apply(state, embedding.inverse, method="inverse_dynamics"),
            apply(state, jnp.zeros((1, U)), method="decode_action"),
            apply(state, method="decode_observation"),
            apply(state, method="reward"),
        ], embedding

    params, answers, embedding = jax.eval_shape(everything, jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves((params, answers))} == {jnp.dtype("float32")}
    assert embedding.posterior.dtype == jnp.bfloat16


# ---- inference


@pytest.fixture(scope="module")
def inference():
    """(infer of (observation, action, std of decoded actions), its inputs) on a mixed batch."""
    model = make_model()
    params = make_params(model)
    rng = np.random.default_rng(0)
    noise = InferenceNoise(*(
        jnp.asarray(rng.standard_normal(shape), jnp.float32)
        for shape in (
            (LENGTH, LABELLED + UNLABELLED, Z), (LENGTH - 1, UNLABELLED, U),
            (LENGTH - 1, UNLABELLED, A),
        )
    ))
    noise = noise._replace(a=jnp.full_like(noise.a, 2.0))
    windows = make_windows(LABELLED + UNLABELLED, LENGTH)
    run = jax.jit(lambda observation, action, std: infer(
        model, params, observation, action, noise, std
    ))
    return run, (windows.observation, windows.action[:, :LABELLED], 0.0)


@pytest.fixture(scope="module")
def depends(inference):
    """depends[output][t, row, s, row'] is whether the output of t, row sees observation s, row'."""
    run, (observation, action, std) = inference

    def outputs(observation):
        found = run(observation, action, std)
        return {"state": found.state.feature, "latent": found.latent_action.mean,
                "action": found.action}

    jacobian = jax.jit(jax.jacrev(outputs))(observation)
    return {name: np.any(np.asarray(x) != 0.0, (2, 5)) for name, x in jacobian.items()}


def test_a_state_sees_its_past_and_not_its_future(depends):
    sees = depends["state"]
    for row in range(LABELLED + UNLABELLED):
        expected = np.tril(np.ones((LENGTH, LENGTH), bool))
        np.testing.assert_array_equal(sees[:, row, :, row], expected)


def test_a_latent_action_sees_the_next_observation_and_none_after(depends):
    expected = np.tril(np.ones((LENGTH - 1, LENGTH), bool), k=1)
    for row in range(UNLABELLED):
        for name in ("latent", "action"):
            shift = LABELLED if name == "action" else 0
            sees = depends[name][:, shift + row, :, LABELLED + row]
            np.testing.assert_array_equal(sees, expected)


def test_a_labelled_action_sees_no_observation(depends):
    assert not depends["action"][:, :LABELLED].any()


def test_rows_do_not_see_one_another(depends):
    for name, first in (("state", 0), ("action", 0), ("latent", LABELLED)):
        for row in range(depends[name].shape[1]):
            others = np.delete(depends[name][:, row], first + row, axis=2)
            assert not others.any(), (name, row)


def test_labelled_rows_are_driven_by_their_actions(inference):
    run, (observation, action, std) = inference
    a = run(observation, action, std)
    b = run(observation, action.at[2, 0].add(0.5), std)
    np.testing.assert_array_equal(a.action[:, :LABELLED], action)
    changed = np.any(np.asarray(a.state.feature != b.state.feature), -1)
    expected = np.zeros((LENGTH, LABELLED + UNLABELLED), bool)
    expected[3:, 0] = True  # action[2] leads to observation[3]
    np.testing.assert_array_equal(changed, expected)


def test_decoded_actions_are_in_range_and_their_noise_is_optional(inference):
    run, (observation, action, _) = inference
    plain, noisy, clipped = (run(observation, action, std).action for std in (0.0, 0.1, 10.0))
    assert plain.shape == (LENGTH - 1, LABELLED + UNLABELLED, A)
    first = noisy[0, LABELLED:]  # later ones follow from other states
    np.testing.assert_allclose(first, np.clip(plain[0, LABELLED:] + 0.2, -1.0, 1.0), rtol=1e-6)
    np.testing.assert_array_equal(clipped[:, LABELLED:], 1.0)
    for found in (plain, noisy, clipped):
        assert np.abs(found).max() <= 1.0
        np.testing.assert_array_equal(found[:, :LABELLED], action)
