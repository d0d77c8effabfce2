"""TD3+BC: its arithmetic in numpy, its randomness, resumption, and tiny problems to solve."""

import dataclasses

import baselines_on_devices
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_runner import output, start

from lawm_jax import runner
from lawm_jax.data.normaliser import Normaliser, fit
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.transitions import Transitions, fill, transitions, window_rows
from lawm_jax.offline import td3_bc
from lawm_jax.offline.td3_bc import TD3BCConfig

OBS, A = 3, 2
CONFIG = TD3BCConfig(
    steps=10, batch_rows=5, units=8, layers=2, learning_rate=1e-2, discount=0.9, target_rate=0.1,
    policy_delay=2, policy_noise=0.4, noise_clip=0.3, alpha=2.5, critic_layer_norm=False,
    action_size=A, critics=True,
)
CLONING = dataclasses.replace(CONFIG, critics=False, policy_delay=1)
IDENTITY = Normaliser(jnp.zeros(OBS), jnp.ones(OBS))


def make_batch(rows=5, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    batch = Transitions(
        normal(rows, OBS), np.tanh(normal(rows, A)), normal(rows), normal(rows, OBS)
    )
    return batch, normal(rows, A)


def mapped(step):
    """The step over one device, as training runs it."""
    return runner.data_parallel(step, runner.make_mesh(jax.devices()[:1]))


def update(config, state, batch, noise):
    """One update on a given batch; the state passed in stays."""
    run = mapped(lambda state, shared, local: td3_bc.update(config, state, *local))
    return jax.device_get(run(jax.tree.map(jnp.copy, state), None, (batch, noise), steps=1))


# ---- the same in numpy, float64


def network(params, x, backwards=None):
    """Output of a ReLU network; with the output's gradient, those of parameters and input."""
    layers = [params[f"Dense_{i}"] for i in range(3)]
    inputs = []
    for i, layer in enumerate(layers):
        inputs.append(x)
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        x = np.maximum(x, 0) if i < 2 else x
    if backwards is None:
        return x
    grads, g = {}, backwards
    for i in (2, 1, 0):
        grads[f"Dense_{i}"] = {"kernel": inputs[i].T @ g, "bias": g.sum(0)}
        g = g @ np.asarray(layers[i]["kernel"], np.float64).T
        g = g * (inputs[i] > 0) if i else g
    return grads, g


def first_adam_step(params, grads):
    """Adam's first step: the gradient's sign, nearly."""
    move = lambda p, g: p - CONFIG.learning_rate * g / (np.abs(g) + 1e-8)
    return jax.tree.map(move, params, grads)


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6), a, b)


def one_of(critics, k):
    return jax.tree.map(lambda x: x[k], critics)


def test_two_updates_against_numpy():
    state = td3_bc.init(CONFIG, IDENTITY, seed=0)
    # Targets in general position, so that a mix-up of target and online cannot go unseen.
    state = state.replace(target=td3_bc.init(CONFIG, IDENTITY, seed=1).params)
    batch, noise = make_batch()
    after, metrics = update(CONFIG, state, batch, noise)

    smooth = np.clip(0.4 * noise, -0.3, 0.3)
    assert (np.abs(smooth) == np.float32(0.3)).any()
    action = np.tanh(network(state.target["actor"], batch.next_observation)) + smooth
    inputs = np.concatenate([batch.next_observation, np.clip(action, -1, 1)], -1)
    critics = state.target["critic"]
    following = np.minimum(*(network(one_of(critics, k), inputs)[:, 0] for k in (0, 1)))
    wanted = batch.reward + 0.9 * following
    inputs = np.concatenate([batch.observation, batch.action], -1)
    loss, expected = 0.0, []
    for k in (0, 1):
        one = one_of(state.params["critic"], k)
        error = network(one, inputs)[:, 0] - wanted
        loss += np.mean(error**2)
        grads, _ = network(one, inputs, backwards=2 * error[:, None] / len(error))
        expected.append(first_adam_step(one, grads))
        close(one_of(after.params["critic"], k), expected[k])
    np.testing.assert_allclose(metrics["critic_loss"], [loss], rtol=1e-5)

    # The actor and the slow copies wait for the second update.
    jax.tree.map(np.testing.assert_array_equal, after.params["actor"], state.params["actor"])
    jax.tree.map(np.testing.assert_array_equal, after.target, state.target)
    assert after.step == 1

    last, metrics = update(CONFIG, after, batch, noise)
    before_tanh = network(after.params["actor"], batch.observation)
    action = np.tanh(before_tanh)
    inputs = np.concatenate([batch.observation, action], -1)
    critic = one_of(last.params["critic"], 0)  # the first one, as just updated
    value = network(critic, inputs)[:, 0]
    weight = 2.5 / np.mean(np.abs(value))
    imitation = np.mean((action - batch.action) ** 2)
    np.testing.assert_allclose(metrics["actor_loss"], imitation - weight * value.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["imitation_error"], imitation, rtol=1e-4)
    _, by_input = network(critic, inputs, backwards=np.full((5, 1), -weight / 5))
    by_action = by_input[:, OBS:] + 2 * (action - batch.action) / action.size
    grads, _ = network(
        after.params["actor"], batch.observation, backwards=by_action * (1 - action**2)
    )
    close(last.params["actor"], first_adam_step(after.params["actor"], grads))
    slowly = lambda new, old: 0.1 * new + 0.9 * old
    close(last.target, jax.tree.map(slowly, last.params, state.target))


def test_normalised_critics_are_bounded_far_from_the_data():
    config = dataclasses.replace(CONFIG, critic_layer_norm=True)
    params = one_of(jax.device_get(td3_bc.init(config, IDENTITY, seed=0).params["critic"]), 0)
    batch, _ = make_batch()
    x = np.concatenate([batch.observation, batch.action], -1)
    for i in range(2):
        layer, norm = params[f"Dense_{i}"], params[f"LayerNorm_{i}"]
        x = x @ layer["kernel"] + layer["bias"]
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = np.maximum(x * norm["scale"] + norm["bias"], 0)
    last = params["Dense_2"]
    value = td3_bc.critic(config, params, batch.observation, batch.action)
    np.testing.assert_allclose(value, (x @ last["kernel"] + last["bias"])[:, 0], rtol=1e-4)
    # A normalised layer of U units has a length of sqrt(U) at most.
    bound = np.linalg.norm(last["kernel"]) * np.sqrt(CONFIG.units) + np.abs(last["bias"])
    far = 1e4 * batch.observation
    assert np.abs(td3_bc.critic(config, params, far, batch.action)).max() <= bound
    plain = one_of(td3_bc.init(CONFIG, IDENTITY, seed=0).params["critic"], 0)
    assert np.abs(td3_bc.critic(CONFIG, plain, far, batch.action)).max() > 10 * bound


def test_cloning_sees_actions_only():
    """Behaviour cloning: the actor's imitation at every step, no critics, no rewards."""
    state = td3_bc.init(CLONING, IDENTITY, seed=0)
    assert set(state.params) == {"actor"}
    batch, noise = make_batch()
    after, metrics = update(CLONING, state, batch, noise)
    assert set(metrics) == {"imitation_error"}
    action = np.tanh(network(state.params["actor"], batch.observation))
    by_output = 2 * (action - batch.action) / action.size * (1 - action**2)
    grads, _ = network(state.params["actor"], batch.observation, backwards=by_output)
    close(after.params["actor"], first_adam_step(state.params["actor"], grads))
    blind = batch._replace(
        reward=np.full_like(batch.reward, np.nan),
        next_observation=np.full_like(batch.next_observation, np.nan),
    )
    same, _ = update(CLONING, state, blind, noise)
    jax.tree.map(np.testing.assert_array_equal, same.params, after.params)


# ---- the scanned step


@pytest.mark.parametrize("config", [CONFIG, CLONING])
def test_steps_of_one_dispatch_equal_steps_one_by_one(config):
    """To the last bit: where a run is interrupted does not matter."""
    data, _ = make_batch(rows=40)
    run = mapped(td3_bc.make_step(config, 1))

    def train(*counts, seed=3):
        state, metrics = td3_bc.init(config, IDENTITY, seed), []
        for count in counts:
            state, part = run(state, None, data, steps=count)
            metrics.append(jax.device_get(part))
        return jax.device_get(state), jax.tree.map(lambda *x: np.concatenate(x), *metrics)

    one, many = train(1, 1, 1, 1), train(4)
    jax.tree.map(np.testing.assert_array_equal, one, many)
    assert many[0].step == 4
    assert len(np.unique(many[1]["imitation_error"])) == 4 // config.policy_delay + (
        config.policy_delay > 1  # zero until the first update of the actor
    )
    other, _ = train(4, seed=4)
    assert not np.array_equal(other.params["actor"]["Dense_0"]["kernel"],
                              many[0].params["actor"]["Dense_0"]["kernel"])


def one_step_problem(rng, rows=4000):
    """Reward -(a - o)^2: the best action is the observation, the data's are uniform."""
    observation = rng.uniform(-0.8, 0.8, (rows, 1)).astype(np.float32)
    action = rng.uniform(-1, 1, (rows, 1)).astype(np.float32)
    reward = -((action - observation) ** 2)[:, 0]
    return Transitions(observation, action, reward, observation)


@pytest.mark.parametrize(("critics", "expected"), [(True, 1.0), (False, 0.0)])
def test_value_leads_where_imitation_only_averages(critics, expected):
    config = dataclasses.replace(
        CONFIG, action_size=1, units=32, batch_rows=64, discount=0.0, learning_rate=3e-3,
        critics=critics, policy_delay=2 if critics else 1, alpha=50.0,
    )
    data = one_step_problem(np.random.default_rng(0))
    normaliser = Normaliser(jnp.zeros(1), jnp.ones(1))
    state, _ = mapped(td3_bc.make_step(config, 1))(
        td3_bc.init(config, normaliser, 0), None, data, steps=1500
    )
    test = np.linspace(-0.7, 0.7, 8, dtype=np.float32)[:, None]
    action = td3_bc.make_actor(config)(state.params["actor"], normaliser, test)
    np.testing.assert_allclose(action, expected * test, atol=0.15)
    if critics:
        expect = td3_bc.expected_return(config, state, test)
        np.testing.assert_allclose(expect, 0.0, atol=0.1)


def test_the_acting_policy_takes_raw_observations():
    normaliser = Normaliser(jnp.array([1.0, -2.0, 0.5]), jnp.array([2.0, 0.1, 1.0]))
    state = td3_bc.init(CONFIG, normaliser, 0)
    raw = np.random.default_rng(0).standard_normal((4, OBS)).astype(np.float32)
    action, _ = td3_bc.acting(td3_bc.make_actor(CONFIG), state)(None, raw, 0)
    expected = td3_bc.actor(CONFIG, state.params["actor"], (raw - normaliser.mean) / normaliser.std)
    np.testing.assert_allclose(action, expected, rtol=1e-5)


# ---- data


def test_transitions_are_all_steps_of_all_trajectories():
    rng = np.random.default_rng(0)
    trajectories = [
        Trajectory(rng.normal(2.0, 3.0, (n + 1, OBS)).astype(np.float32),
                   rng.uniform(-1, 1, (n, A)).astype(np.float32),
                   np.arange(n, dtype=np.float32) + 10 * n)
        for n in (3, 5)
    ]
    normaliser = fit([t.observation for t in trajectories], offset=0.5)
    everything = np.concatenate([t.observation for t in trajectories])
    np.testing.assert_allclose(normaliser.std, everything.std(0) + 0.5, rtol=1e-5)
    data = transitions(trajectories, normaliser)
    for trajectory, rows in zip(trajectories, (slice(0, 3), slice(3, 8)), strict=True):
        seen = (trajectory.observation - everything.mean(0)) / (everything.std(0) + 0.5)
        np.testing.assert_allclose(data.observation[rows], seen[:-1], atol=1e-5)
        np.testing.assert_allclose(data.next_observation[rows], seen[1:], atol=1e-5)
        np.testing.assert_array_equal(data.action[rows], trajectory.action)
        np.testing.assert_array_equal(data.reward[rows], trajectory.reward)
    filled = transitions(trajectories, normaliser, multiple_of=3)  # 9 rows for 3 devices
    np.testing.assert_array_equal(filled.reward, [*data.reward, data.reward[0]])


def test_a_small_set_is_repeated_as_often_as_needed():
    data, _ = make_batch(rows=2)
    np.testing.assert_array_equal(fill(data, 5).reward, data.reward[[0, 1, 0, 1, 0]])


def test_windows_stay_within_their_trajectory():
    rows = window_rows([2, 3], context=1)  # observations 0..2 and 3..6
    np.testing.assert_array_equal(
        rows, [[0, 0, 1, 2], [0, 1, 2, 2], [3, 3, 4, 5], [3, 4, 5, 6], [4, 5, 6, 6]]
    )


def test_several_devices_learn_the_same_as_one():
    """In a process that has four: TD3+BC with its noise, the inverse dynamics with its dropout."""
    found = output(start(baselines_on_devices, devices=4))
    assert set(found) == {"td3_bc", "inverse_dynamics"}
    assert max(found.values()) < 1e-4
