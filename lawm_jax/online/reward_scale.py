"""Normalisation of rewards by the deviation of the running discounted return."""

import flax.struct
import jax
import jax.numpy as jnp

from lawm_jax.runner import AXIS


@flax.struct.dataclass
class RewardScale:
    """Moments of the running discounted return, by which rewards are normalised.

    running: [N] each environment's discounted sum of rewards so far; zero it where environments are
      built anew. mean, variance, count: [] of all its values.
    """

    running: jax.Array
    mean: jax.Array
    variance: jax.Array
    count: jax.Array


def init(envs: int) -> RewardScale:
    """Nothing seen yet."""
    return RewardScale(jnp.zeros(envs), jnp.zeros(()), jnp.ones(()), jnp.full((), 1e-4))


def normalise(
    scale: RewardScale,
    reward: jax.Array,
    done: jax.Array,
    weight: jax.Array,
    discount: float,
    clip: float,
) -> tuple[RewardScale, jax.Array]:
    """Rewards [N, T] over the deviation of the running discounted return, clipped at +- clip.

    Inside a mapped step: N is this device's share; the moments are of all devices. The rollout's
    own returns are counted before its rewards are scaled; steps of weight 0, which must have no
    reward and end nothing, are not.
    """
    rows = reward.shape[0]
    first = jax.lax.axis_index(AXIS) * rows
    running = jax.lax.dynamic_slice(scale.running, (first,), (rows,))

    def forward(running: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        reward, done = inputs
        value = running * discount + reward
        return jnp.where(done, 0.0, value), value

    running, values = jax.lax.scan(forward, running, (reward.T, done.T))
    total = lambda x: jax.lax.psum(jnp.sum(weight.T * x), AXIS)
    size = total(jnp.ones_like(values))
    mean = total(values) / jnp.maximum(size, 1.0)
    variance = total((values - mean) ** 2) / jnp.maximum(size, 1.0)
    # Chan et al.'s sum of moments
    count = scale.count + size
    change = mean - scale.mean
    variance = (
        scale.variance * scale.count + variance * size + change**2 * scale.count * size / count
    ) / count
    mean = scale.mean + change * size / count
    running = jax.lax.all_gather(running, AXIS, tiled=True)
    reward = jnp.clip(reward / jnp.sqrt(variance + 1e-8), -clip, clip)
    return RewardScale(running, mean, variance, count), reward
