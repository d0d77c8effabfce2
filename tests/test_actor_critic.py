"""The actor-critic: whose gradient goes where, values and returns that can be checked by hand."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import H, U, Z, make_model, make_params

from lawm_jax import runner
from lawm_jax.lawm import actor_critic
from lawm_jax.lawm.actor_critic import AgentConfig, agent_loss, critic
from lawm_jax.lawm.imagination import imagine
from lawm_jax.lawm.world_model import State

CONFIG = AgentConfig(
    steps=300, start_rows=16, horizon=4, epsilon=2.0, discount=0.8, lambda_=0.9, entropy=0.0,
    prior=0.0, disagreement=0.0, target_rate=0.1, units=8, layers=1, value_networks=2,
    policy_size=U, learning_rate=1e-2, gradient_clip=100.0,
)
REWARD, WEIGHT = 1.5, 0.7


def make_states(rows, seed=0):
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return State(jnp.tanh(normal(rows, H)), normal(rows, Z))


def constant_reward(params, reward):
    """The world whose reward head says the same everywhere."""
    head = jax.tree.map(jnp.zeros_like, params["reward_head"])
    head["Dense_0"]["bias"] += reward
    return params | {"reward_head": head}


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def world(model):
    return make_params(model)


@pytest.fixture(scope="module")
def train(model):
    """train(world, steps) -> (first state, last state, metrics): one compiled program."""
    mesh = runner.make_mesh(jax.devices()[:1])
    run = runner.data_parallel(actor_critic.make_step(model, CONFIG, 1), mesh)

    def train(world, steps):
        first = actor_critic.init(model, CONFIG, seed=0)
        kept = jax.tree.map(jnp.copy, first)
        last, metrics = run(first, world, make_states(64), steps=steps)
        return kept, last, metrics

    return train


@pytest.fixture(scope="module")
def gradients(model, world):
    """Gradients of policy_loss and value_loss in (trained, target)."""
    agent = actor_critic.init(model, CONFIG, seed=0)
    rng = np.random.default_rng(1)
    shake = lambda tree: jax.tree.map(lambda x: x + 0.3 * rng.standard_normal(x.shape), tree)
    trained = {"policy": shake(agent.policy), "value": shake(agent.value)}
    noise = [jnp.asarray(rng.standard_normal((4, 5, n)), jnp.float32) for n in (Z, U)]

    def losses(trained, target):
        metrics = agent_loss(
            model, CONFIG, trained, target, world, make_states(5), tuple(noise)
        )[1]
        return {name: metrics[name] for name in ("policy_loss", "value_loss")}

    return jax.jit(jax.jacrev(losses, argnums=(0, 1)))(trained, shake(agent.target))


def any_gradient(tree):
    return any(np.any(x) for x in jax.tree.leaves(tree))


def test_each_loss_trains_its_own_networks_only(gradients):
    policy_loss, value_loss = gradients["policy_loss"][0], gradients["value_loss"][0]
    assert all(np.any(x) for x in jax.tree.leaves(policy_loss["policy"]))
    assert not any_gradient(policy_loss["value"])
    assert all(np.any(x) for x in jax.tree.leaves(value_loss["value"]))
    assert not any_gradient(value_loss["policy"])


def test_the_values_learn_from_fixed_returns(gradients):
    """The value loss has no path into the slow target that its returns stand on."""
    assert not any_gradient(gradients["value_loss"][1])
    assert any_gradient(gradients["policy_loss"][1])


def test_returns_by_hand(model, world):
    """With r = 1.5 everywhere and values of zero, G_t = r sum_k (discount lambda)^k up to H."""
    agent = actor_critic.init(model, CONFIG, seed=0)
    noise = jnp.zeros((4, 5, Z)), jnp.zeros((4, 5, U))
    trained = {"policy": agent.policy, "value": agent.value}
    loss, metrics = jax.jit(lambda: agent_loss(
        model, CONFIG, trained, agent.target, constant_reward(world, REWARD), make_states(5), noise
    ))()
    returns = np.array([REWARD * sum(0.72**k for k in range(n)) for n in (4, 3, 2, 1)])
    scaled = 0.2 * returns  # values are average rewards a step: times 1 - discount
    metrics = jax.tree.map(float, metrics)
    assert metrics["imagined_reward"] == pytest.approx(REWARD, rel=1e-6)
    assert metrics["imagined_return"] == pytest.approx(returns.mean(), rel=1e-5)
    assert metrics["policy_loss"] == pytest.approx(-scaled.mean(), rel=1e-5)
    assert metrics["value_loss"] == pytest.approx(2 * 0.5 * np.mean(scaled**2), rel=1e-5)
    assert float(loss) == pytest.approx(metrics["policy_loss"] + metrics["value_loss"], rel=1e-6)


def test_another_reward_takes_the_place_of_the_worlds(model, world):
    """And its gradient reaches the policy through the imagined actions."""
    agent = actor_critic.init(model, CONFIG, seed=0)
    noise = jnp.ones((4, 5, Z)), jnp.ones((4, 5, U))

    @jax.jit
    def gradient(policy, weight, offset):
        def loss(policy):
            return agent_loss(
                model, CONFIG, {"policy": policy, "value": agent.value}, agent.target,
                constant_reward(world, REWARD), make_states(5), noise,
                lambda rollout: weight * rollout.action[..., 0] + offset,
            )

        return jax.grad(loss, has_aux=True)(policy)

    still, metrics = gradient(agent.policy, 0.0, 7.0)
    assert float(metrics["imagined_reward"]) == pytest.approx(7.0)
    moved, _ = gradient(agent.policy, 1.0, 7.0)
    assert any_gradient(jax.tree.map(jnp.subtract, still, moved))


class Disagreement(NamedTuple):
    """What agent_loss makes of slow targets that may disagree, without weight and with 0.7."""

    plain: dict
    lowered: dict
    gradients: dict  # of the lowered loss
    values: np.ndarray  # [2, H, N] the targets' at the states arrived at


@pytest.fixture(scope="module")
def disagreement(model, world):
    """disagreement(target) -> Disagreement, in a world that always pays."""
    agent = actor_critic.init(model, CONFIG, seed=0)
    trained = {"policy": agent.policy, "value": agent.value}
    noise = jnp.ones((4, 5, Z)), jnp.ones((4, 5, U))
    start, paid = make_states(5), constant_reward(world, REWARD)

    @jax.jit
    def run(target):
        loss = lambda trained, weight: agent_loss(
            model, dataclasses.replace(CONFIG, disagreement=weight), trained, target, paid, start,
            noise,
        )
        gradients, lowered = jax.grad(loss, has_aux=True)(trained, WEIGHT)
        policy = actor_critic.make_policy(CONFIG)
        states = imagine(
            model, paid, policy, trained["policy"], start, *noise, CONFIG.epsilon
        ).state
        values = critic(CONFIG, target, jax.tree.map(lambda x: x[1:], states))
        return Disagreement(loss(trained, 0.0)[1], lowered, gradients, values)

    return lambda target: jax.tree.map(np.asarray, run(target))


def critics_that_say(model, *biases):
    """Value parameters whose networks say a constant each, whatever the state."""
    value = jax.tree.map(np.zeros_like, actor_critic.init(model, CONFIG, seed=0).value)
    value["VmapMLP_0"]["Dense_0"]["bias"] += np.array(biases, np.float32)[:, None]
    return value


def mean_return(reward, bootstrap):
    """The mean of the lambda-returns of rewards and values [H, N], in rewards a step."""
    g, returns = bootstrap[-1], []
    for r, v in zip(reward[::-1], bootstrap[::-1], strict=True):
        g = 0.2 * r + 0.8 * (0.1 * v + 0.9 * g)
        returns.append(g)
    return np.mean(returns)


def test_disagreement_lowers_the_returns_by_hand(disagreement, model):
    """By w s at every state arrived at, where s is half the difference of two values."""
    rng = np.random.default_rng(3)
    everywhere = critics_that_say(model, 3.0, 1.0)
    random = lambda x: rng.standard_normal(x.shape).astype(np.float32)
    for target in (everywhere, jax.tree.map(random, everywhere)):
        found = disagreement(target)
        first, second = found.values
        if target is everywhere:
            assert np.all(first == 3.0) and np.all(second == 1.0)
        else:
            assert np.ptp(np.abs(first - second)) > 0.1
        for metrics, weight in ((found.plain, 0.0), (found.lowered, WEIGHT)):
            reward = REWARD - weight * np.abs(first - second) / 2
            expected = mean_return(reward, np.minimum(first, second))
            np.testing.assert_allclose(metrics["imagined_return"], expected / 0.2, rtol=1e-5)
            np.testing.assert_allclose(metrics["policy_loss"], -expected, rtol=1e-5)
            np.testing.assert_allclose(metrics["imagined_reward"], REWARD, rtol=1e-6)  # as it was


def test_without_weight_disagreement_changes_no_bit(disagreement, model):
    """Only the least of the values counts; how far others are above it does not."""
    apart, together = (disagreement(critics_that_say(model, x, 1.0)) for x in (3.0, 1.0))
    assert apart.plain == together.plain
    assert apart.lowered["policy_loss"] > together.lowered["policy_loss"] + 0.01


def test_values_that_agree_have_finite_gradients(disagreement, model):
    """All networks start at zero, where a standard deviation has none."""
    found = disagreement(critics_that_say(model, 0.0, 0.0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.gradients))
    np.testing.assert_allclose(
        found.lowered["policy_loss"], found.plain["policy_loss"], rtol=1e-5
    )


def test_values_reach_a_constant_reward(train, world):
    """Every state of a world that always pays r is worth r / (1 - discount)."""
    _, last, metrics = train(constant_reward(world, REWARD), 300)
    estimate = critic(CONFIG, last.value, make_states(64))
    np.testing.assert_allclose(estimate, REWARD, rtol=0.05)
    assert metrics["imagined_return"][-1] == pytest.approx(REWARD / 0.2, rel=0.05)
    assert int(last.step) == 300


def test_the_policy_finds_reward(model, train, world):
    """Measured on the same starts and the same noise before and after."""
    first, last, _ = train(world, 300)
    rng = np.random.default_rng(2)
    noise = tuple(jnp.asarray(rng.standard_normal((4, 64, n)), jnp.float32) for n in (Z, U))
    reward = jax.jit(lambda agent: agent_loss(
        model, CONFIG, {"policy": agent.policy, "value": agent.value}, agent.target, world,
        make_states(64, seed=5), noise,
    )[1]["imagined_reward"])
    assert reward(last) > reward(first) + 0.02


def test_the_slow_target_moves_by_its_rate(train, world):
    first, last, _ = train(world, 1)
    assert any_gradient(jax.tree.map(jnp.subtract, last.value, first.value))
    jax.tree.map(
        lambda target, old, new: np.testing.assert_allclose(
            target, 0.9 * old + 0.1 * new, rtol=1e-5, atol=1e-7
        ),
        last.target, first.target, last.value,
    )


def test_the_regulariser_by_hand(model, world):
    """(1 - discount) times the mean of entropy log pi(v | s) - prior log p(u), u = epsilon v."""
    agent = actor_critic.init(model, CONFIG, seed=0)
    trained = {"policy": agent.policy, "value": agent.value}
    noise = jnp.ones((4, 5, Z)), jnp.ones((4, 5, U))
    config = dataclasses.replace(CONFIG, entropy=0.5, prior=0.25)
    plain, regularised = (
        jax.tree.map(float, jax.jit(functools.partial(agent_loss, model, c))(
            trained, agent.target, world, make_states(5), noise
        )[1]) for c in (CONFIG, config)
    )
    prior_log_prob = -0.5 * U * CONFIG.epsilon**2 * plain["policy_saturation"]
    regulariser = 0.2 * (0.5 * plain["policy_log_prob"] - 0.25 * prior_log_prob)
    assert regularised["policy_loss"] == pytest.approx(
        plain["policy_loss"] + regulariser, rel=1e-5
    )
