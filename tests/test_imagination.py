"""Imagination: against a Python loop, inside the support, differentiable where it should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import A, H, U, Z, make_model, make_params

from lawm_jax.lawm.actor_critic import Policy
from lawm_jax.lawm.imagination import imagine, to_support
from lawm_jax.lawm.world_model import State

HORIZON, ROWS, EPSILON = 3, 4, 1.5


def make_inputs(size, seed=0):
    """(start, noise_z, noise_v)."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    start = State(jnp.tanh(normal(ROWS, H)), normal(ROWS, Z))
    return start, normal(HORIZON, ROWS, Z), normal(HORIZON, ROWS, size)


@pytest.mark.parametrize("method", ["c_lap", "dreamer"])  # lawm has a simpler prior than c_lap
def test_imagination_equals_a_loop(method):
    model = make_model(method)
    params = make_params(model)
    size = A if method == "dreamer" else U
    policy = Policy(size, 8, 1)
    start, noise_z, noise_v = make_inputs(size)
    policy_params = jax.jit(policy.init)(jax.random.key(1), start, noise_v[0])["params"]
    rollout = jax.jit(imagine, static_argnums=(0, 2))(
        model, params, policy, policy_params, start, noise_z, noise_v, EPSILON
    )

    @jax.jit
    def step(state, noise_z, noise_v):
        head = lambda name, *args: model.apply({"params": params}, *args, method=name)
        v, log_prob = policy.apply({"params": policy_params}, state, noise_v)
        action = v
        if method != "dreamer":
            p_u = head("latent_prior", state)
            action = head("decode_action", state, p_u.mean + EPSILON * p_u.std * v)
        h = head("transition", state, action)
        p_z = head("prior", h)
        return State(h, p_z.mean + p_z.std * noise_z), action, v, log_prob

    same = lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    state = start
    assert rollout.state.h.shape == (HORIZON + 1, ROWS, H)
    for t in range(HORIZON):
        same(rollout.state.feature[t], state.feature)
        state, action, v, log_prob = step(state, noise_z[t], noise_v[t])
        same(rollout.action[t], action)
        same(rollout.v[t], v)
        same(rollout.log_prob[t], log_prob)
    same(rollout.state.feature[-1], state.feature)
    assert np.abs(rollout.action).max() <= 1.0


class Recorder:
    """A stand-in for a model that shows which u is decoded, under a prior of one's own."""

    def __init__(self, mean, std):
        self.latent_action, self.mean, self.std = True, mean, std

    def apply(self, variables, state, *u, method):
        if method == "latent_prior":
            return self
        assert method == "decode_action"
        return u[0]


def test_the_support_constraint_holds():
    """|u - mu| <= epsilon sigma for every policy output, and its border is reached."""
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(1000, U)), rng.uniform(0.01, 3.0, (1000, U))
    start, _, noise = make_inputs(U)
    policy = Policy(U, 8, 1)
    policy_params = jax.jit(policy.init)(jax.random.key(0), start, noise[0])
    saturated, _ = policy.apply(policy_params, start, 1e3 * noise[0])
    assert saturated.min() == -1.0
    assert saturated.max() == 1.0
    for v in (np.resize(saturated, (1000, U)), rng.uniform(-1, 1, (1000, U))):
        u = to_support(Recorder(mean, std), {}, None, v, EPSILON)
        assert np.all(np.abs(u - mean) <= EPSILON * std * (1 + 1e-6))
        np.testing.assert_allclose(u, mean + EPSILON * std * v)


def test_gradients_reach_the_policy_through_the_dynamics():
    """The last state depends on every action of the policy; its log-prob does not on later ones."""
    model = make_model()
    params = make_params(model)
    policy = Policy(U, 8, 1)
    start, noise_z, noise_v = make_inputs(U)
    policy_params = jax.jit(policy.init)(jax.random.key(1), start, noise_v[0])["params"]

    def outputs(noise_v):
        found = imagine(model, params, policy, policy_params, start, noise_z, noise_v, EPSILON)
        return found.state.feature[:, 0].sum(-1), found.log_prob[:, 0]

    state, log_prob = jax.jit(jax.jacrev(outputs))(noise_v)
    sees = np.any(np.asarray(state)[:, :, 0] != 0, -1)  # [state t, noise t']
    np.testing.assert_array_equal(sees, np.tril(np.ones((HORIZON + 1, HORIZON), bool), k=-1))
    sees = np.any(np.asarray(log_prob)[:, :, 0] != 0, -1)
    np.testing.assert_array_equal(sees, np.tril(np.ones((HORIZON, HORIZON), bool)))
    assert not np.any(np.asarray(state)[:, :, 1:])  # nor do rows see one another
