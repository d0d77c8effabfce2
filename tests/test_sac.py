"""Soft actor-critic: its arithmetic by hand, its buffer, and a tiny problem that it must solve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawm_jax.online import replay as replay_buffer
from lawm_jax.online import sac

TINY = sac.SACConfig(
    actor_units=32, critic_units=32, ensemble_units=16, batch_size=64, learning_rate=3e-3, n_step=1
)

update = jax.jit(sac.update, static_argnames="config")


def _batch(rng, size=5, observation_size=3, action_size=2):
    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return replay_buffer.Batch(
        observation=normal(size, observation_size),
        action=jnp.tanh(normal(size, action_size)),
        reward=normal(size),
        discount=jnp.full(size, 0.9),
        next_observation=normal(size, observation_size),
    )


def _policy_by_hand(actor, observation, noise):
    """Action and log-probability of the squashed Gaussian, in numpy float64."""
    layers = [actor["params"][f"Dense_{i}"] for i in range(3)]
    x = np.asarray(observation, np.float64)
    for i, layer in enumerate(layers):
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        x = np.maximum(x, 0) if i < 2 else x
    mean, raw = np.split(x, 2, axis=-1)
    log_std = -5 + 6 / (1 + np.exp(-(raw + np.log(5))))
    u = mean + np.exp(log_std) * noise
    gaussian = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
    action = np.tanh(u)
    return action, (gaussian - np.log(1 - action**2)).sum(-1), -log_std.mean()


def test_untrained_policy_has_unit_standard_deviation():
    actor = sac.Actor(8, 2)
    params = actor.init(jax.random.key(0), jnp.zeros((1, 3)))
    np.testing.assert_allclose(actor.apply(params, jnp.zeros((1, 3))).std, 1.0, rtol=1e-5)


def test_acting_params_take_raw_observations():
    state = sac.init(0, 3, 2, TINY).replace(
        observation_mean=jnp.array([1.0, -2.0, 0.5]), observation_std=jnp.array([2.0, 0.1, 1.0])
    )
    observation = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    normalised = (observation - state.observation_mean) / state.observation_std
    noise = np.ones((4, 2), np.float32)
    np.testing.assert_allclose(
        sac.act(sac.acting_params(state), observation, noise, TINY.actor_units),
        sac.act(state.params["actor"], normalised, noise, TINY.actor_units),
        atol=1e-5,
    )


def test_losses_against_numpy():
    state = sac.init(0, 3, 2, TINY)
    batch = _batch(np.random.default_rng(0))
    rng = jax.random.key(3)
    noise = np.asarray(jax.random.normal(rng, (5, 2)))
    alpha = 0.1

    next_action, log_prob, _ = _policy_by_hand(state.params["actor"], batch.next_observation, noise)
    critic = sac.TwinCritic(32)
    next_q = critic.apply(state.target_critic, batch.next_observation, next_action)
    target = batch.reward + 0.9 * (np.min(next_q, -1) - alpha * log_prob)
    q = critic.apply(state.params["critic"], batch.observation, batch.action)
    expected = np.mean(np.sum((np.asarray(q) - np.asarray(target)[:, None]) ** 2, -1))
    loss, _ = sac.critic_loss(state.params["critic"], state, batch, rng, TINY)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)

    action, log_prob, _ = _policy_by_hand(state.params["actor"], batch.observation, noise)
    q = np.min(critic.apply(state.params["critic"], batch.observation, action), -1)
    loss, metrics = sac.actor_loss(state.params["actor"], state, batch, rng, TINY)
    np.testing.assert_allclose(loss, np.mean(alpha * log_prob - q), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], -np.mean(log_prob), rtol=1e-4)


def test_no_gradient_through_the_target():
    state = sac.init(0, 3, 2, TINY)
    batch = _batch(np.random.default_rng(0))

    def loss(critic, target_critic):
        with_target = state.replace(target_critic=target_critic)
        return sac.critic_loss(critic, with_target, batch, jax.random.key(0), TINY)[0]

    grads = jax.grad(loss, argnums=1)(state.params["critic"], state.target_critic)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_target_critic_and_temperature_move_as_they_should():
    state = sac.init(0, 3, 2, TINY)
    batch = _batch(np.random.default_rng(0))
    after, metrics = update(state, batch, jax.random.key(1), config=TINY)
    for old, new, target in zip(
        jax.tree.leaves(state.target_critic),
        jax.tree.leaves(after.params["critic"]),
        jax.tree.leaves(after.target_critic),
        strict=True,
    ):
        np.testing.assert_allclose(target, 0.99 * old + 0.01 * new, rtol=1e-5, atol=1e-7)
    assert after.step == 1
    # The untrained policy's entropy lies above its target of -1 nat, so the temperature falls.
    assert metrics["entropy"] > -1
    assert after.params["log_alpha"] < state.params["log_alpha"]
    # A nearly deterministic policy lies below it, so the temperature rises.
    bias = state.params["actor"]["params"]["Dense_2"]["bias"]
    bias = bias.at[2:].set(-10.0)
    state.params["actor"]["params"]["Dense_2"]["bias"] = bias
    after, metrics = update(state, batch, jax.random.key(1), config=TINY)
    assert metrics["entropy"] < -1
    assert after.params["log_alpha"] > state.params["log_alpha"]


def _counting_replay(steps, episodes=2, episode_steps=4, num_envs=2):
    """Observation = 100 * env + 10 * episode + t, reward = t + 1."""
    replay = replay_buffer.empty_replay(episodes, episode_steps, num_envs, 1, 1)
    for start in range(0, steps, 2):
        episode, t = divmod(start, episode_steps)
        time = np.arange(t, t + 3)
        observation = (100 * np.arange(num_envs) + 10 * episode + time[:, None])[..., None]
        reward = np.broadcast_to(time[:2, None] + 1, (2, num_envs))
        replay = replay_buffer.append(
            replay, jnp.float32(observation), jnp.zeros((2, num_envs, 1)), jnp.float32(reward)
        )
    return replay


@pytest.mark.parametrize("steps", [2, 6, 8])
def test_n_step_transitions_stay_within_episode_and_data(steps):
    batch = replay_buffer.sample(
        _counting_replay(steps), jax.random.key(0), batch_size=256, n_step=3, discount=0.5
    )
    observation, following = (np.asarray(x[:, 0]) for x in (batch[0], batch[4]))
    assert (observation // 10 == following // 10).all()  # same environment, same episode
    t, n = observation % 10, following - observation
    written = np.where(observation % 100 < 10, min(steps, 4), steps - 4)
    np.testing.assert_array_equal(n, np.minimum(3, written - t))
    np.testing.assert_allclose(batch.discount, 0.5**n)
    expected = [
        sum(0.5**k * (t_ + k + 1) for k in range(int(n_))) for t_, n_ in zip(t, n, strict=True)
    ]
    np.testing.assert_allclose(batch.reward, expected)
    assert len(np.unique(observation)) == 2 * steps  # every transition can be drawn


def test_learns_the_best_action_of_a_one_step_problem():
    """Reward -(a - o)^2 whatever comes next: the best action is the observation itself."""
    config = sac.SACConfig(**{**TINY.__dict__, "discount": 0.0, "target_entropy": -2.0})
    rng = np.random.default_rng(0)
    observation = rng.uniform(-0.8, 0.8, (26, 64, 1)).astype(np.float32)
    action = rng.uniform(-1, 1, (25, 64, 1)).astype(np.float32)
    reward = -((action - observation[:-1]) ** 2)[..., 0]
    state = sac.init(0, 1, 1, config)
    replay = replay_buffer.empty_replay(1, 25, 64, 1, 1)
    state, _, metrics = sac.learn(state, replay, observation, action, reward, 1500, config)
    test = np.linspace(-0.7, 0.7, 8, dtype=np.float32)[:, None]
    mode = sac.act(sac.acting_params(state), test, np.zeros_like(test), config.actor_units)
    np.testing.assert_allclose(mode, test, atol=0.15)
    assert np.isfinite(metrics["critic_loss"])


def test_learning_reproduces():
    chunk = _batch(np.random.default_rng(0), size=4 * 8)
    observation = np.asarray(chunk.observation).reshape(4, 8, 3)
    data = observation, np.asarray(chunk.action).reshape(4, 8, 2)[:3], np.ones((3, 8), np.float32)

    def run(seed):
        state, replay = sac.init(seed, 3, 2, TINY), replay_buffer.empty_replay(1, 9, 8, 3, 2)
        for _ in range(3):
            state, replay, _ = sac.learn(state, replay, *data, 2, TINY)
        return state

    once = run(0)
    jax.tree.map(np.testing.assert_array_equal, once.params, run(0).params)
    assert once.step == 6
    other = run(1).params["actor"]["params"]["Dense_0"]["kernel"]
    assert not np.allclose(once.params["actor"]["params"]["Dense_0"]["kernel"], other)


def test_disagreement_is_zero_for_identical_members_and_a_variance_otherwise():
    same = jnp.broadcast_to(jnp.arange(6.0).reshape(1, 2, 3), (4, 2, 3))
    np.testing.assert_array_equal(sac.disagreement(same), 0.0)
    two = jnp.stack([jnp.zeros((1, 2)), jnp.array([[2.0, 4.0]])])
    np.testing.assert_allclose(sac.disagreement(two), [(1.0 + 4.0) / 2])


def test_explorer_never_sees_the_task_reward():
    config = sac.SACConfig(**{**TINY.__dict__, "intrinsic": True})
    batch = _batch(np.random.default_rng(0))
    state = sac.init(0, 3, 2, config)
    after, metrics = update(state, batch, jax.random.key(0), config=config)
    blind, _ = update(
        state, batch._replace(reward=jnp.full(5, jnp.nan)), jax.random.key(0), config=config
    )
    jax.tree.map(np.testing.assert_array_equal, after.params, blind.params)
    np.testing.assert_allclose(metrics["reward"], 1.0, rtol=1e-4)  # scaled by its own mean
    assert metrics["disagreement"] > 0


def test_observation_statistics_are_those_of_everything_seen():
    config = sac.SACConfig(**{**TINY.__dict__, "intrinsic": True})
    rng = np.random.default_rng(0)
    observation = rng.normal(3.0, 2.0, (9, 4, 3)).astype(np.float32)
    state, replay = sac.init(0, 3, 2, config), replay_buffer.empty_replay(1, 8, 4, 3, 2)
    for chunk in (observation[:5], observation[4:]):
        chunk = jnp.asarray(chunk)
        replay = replay_buffer.append(replay, chunk, jnp.zeros((4, 4, 2)), jnp.zeros((4, 4)))
        state = sac.update_observation_statistics(state, replay, chunk)
    seen = observation[1:].reshape(-1, 3)
    np.testing.assert_allclose(state.observation_mean, seen.mean(0), rtol=1e-4)
    np.testing.assert_allclose(state.observation_std, seen.std(0), rtol=1e-3)


def test_intrinsic_reward_wants_one_step_transitions():
    with pytest.raises(ValueError, match="n_step"):
        sac.init(0, 3, 2, sac.SACConfig(intrinsic=True))
