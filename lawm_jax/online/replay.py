"""Experience of lock-step environments on the device, and n-step transitions drawn from it.

Shapes: B batch, N environments, T steps an episode, O observation, A action.
"""

from typing import NamedTuple

import chex
import flax
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Replay:
    """Lock-step episodes of N environments, in the order of collection.

    Attributes:
        observation: [episodes, T + 1, N, O] float32.
        action: [episodes, T, N, A] float32.
        reward: [episodes, T, N] float32.
        steps: [] vector steps written so far; the rest of the arrays is unused.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    steps: jax.Array


class Batch(NamedTuple):
    """n-step transitions.

    Attributes:
        observation: [B, O] o_t.
        action: [B, A] a_t.
        reward: [B] sum over k < n of discount^k r_{t+k}.
        discount: [B] discount^n: episodes end by a time limit only, so it never vanishes.
        next_observation: [B, O] o_{t+n}, where n is cut at the episode's (or the data's) end.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    discount: jax.Array
    next_observation: jax.Array


def empty_replay(
    episodes: int, episode_steps: int, num_envs: int, observation_size: int, action_size: int
) -> Replay:
    """A buffer for `episodes` lock-step episodes of `num_envs` environments."""
    shape = (episodes, episode_steps, num_envs)
    return Replay(
        observation=jnp.zeros((episodes, episode_steps + 1, num_envs, observation_size)),
        action=jnp.zeros((*shape, action_size)),
        reward=jnp.zeros(shape),
        steps=jnp.int32(0),
    )


def append(replay: Replay, observation: jax.Array, action: jax.Array, reward: jax.Array) -> Replay:
    """Writes K steps of one episode: observation [K + 1, N, O], action [K, N, A], reward [K, N]."""
    chex.assert_equal(observation.shape[0], action.shape[0] + 1)
    episode, t = jnp.divmod(replay.steps, replay.action.shape[1])
    put = jax.lax.dynamic_update_slice
    return Replay(
        observation=put(replay.observation, observation[None], (episode, t, 0, 0)),
        action=put(replay.action, action[None], (episode, t, 0, 0)),
        reward=put(replay.reward, reward[None], (episode, t, 0)),
        steps=replay.steps + action.shape[0],
    )


def sample(
    replay: Replay, rng: jax.Array, batch_size: int, n_step: int, discount: float
) -> Batch:
    """Draws n-step transitions uniformly; none crosses an episode's end or the end of the data."""
    episode_steps, num_envs = replay.reward.shape[1:]
    step_rng, env_rng = jax.random.split(rng)
    step = jax.random.randint(step_rng, (batch_size,), 0, replay.steps)
    n = jax.random.randint(env_rng, (batch_size,), 0, num_envs)
    episode, t = jnp.divmod(step, episode_steps)
    end = jnp.minimum(t + n_step, jnp.minimum(episode_steps, t + replay.steps - step))
    reward = jnp.zeros(batch_size)
    for k in range(n_step):
        r = replay.reward[episode, jnp.minimum(t + k, episode_steps - 1), n]
        reward += jnp.where(t + k < end, discount**k * r, 0.0)
    return Batch(
        observation=replay.observation[episode, t, n],
        action=replay.action[episode, t, n],
        reward=reward,
        discount=jnp.power(discount, (end - t).astype(jnp.float32)),
        next_observation=replay.observation[episode, end, n],
    )
