"""Return estimates over imagined or recorded trajectories, time on the leading axis."""

import chex
import jax
import jax.numpy as jnp


def lambda_returns(r_t: jax.Array, v_t: jax.Array, discount: float, lambda_: float) -> jax.Array:
    """TD(lambda) returns of the states a trajectory leaves.

    G_t = r_{t+1} + discount * ((1 - lambda) v_{t+1} + lambda G_{t+1}), with G_H = v_H
    (LAWM appendix C; Sutton and Barto, equation 12.18).

    Args:
      r_t: [H, ...] rewards of steps 1..H, each earned on arriving at that step's state.
      v_t: [H, ...] values of the states of steps 1..H.
      discount: in [0, 1].
      lambda_: in [0, 1].

    Returns:
      [H, ...] the returns G_0..G_{H-1}.
    """
    chex.assert_equal_shape([r_t, v_t])

    def backward(g: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        reward, value = inputs
        g = reward + discount * ((1.0 - lambda_) * value + lambda_ * g)
        return g, g

    return jax.lax.scan(backward, v_t[-1], (r_t, v_t), reverse=True)[1]


def discounted_return(reward: jax.Array, discount: float) -> jax.Array:
    """sum_t discount^t reward[t] over the leading axis: [T, ...] -> [...]."""
    weight = discount ** jnp.arange(reward.shape[0], dtype=reward.dtype)
    return jnp.tensordot(weight, reward, axes=1)


def generalised_advantages(
    r_t: jax.Array, v_t: jax.Array, v_next: jax.Array, continues: jax.Array, discount: float,
    lambda_: float,
) -> jax.Array:
    """Generalised advantage estimates (Schulman et al., 2016, equations 11, 12 and 16).

    A_t = delta_t + discount lambda continues_t A_{t+1}, with
    delta_t = r_t + discount continues_t V_{t+1} - V_t.

    Args:
      r_t: [T, ...] reward of the action taken at step t.
      v_t: [T, ...] values of the states it was taken in.
      v_next: [...] value of the state after the last action.
      continues: [T, ...] 0 where that action ended the episode, otherwise 1.

    Returns:
      [T, ...] advantages; with v_t added they are targets for the values.
    """
    chex.assert_equal_shape([r_t, v_t, continues])
    v_after = jnp.concatenate([v_t[1:], v_next[None]])
    delta = r_t + discount * continues * v_after - v_t

    def backward(a: jax.Array, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, continues = inputs
        a = delta + discount * lambda_ * continues * a
        return a, a

    return jax.lax.scan(backward, jnp.zeros_like(v_next), (delta, continues), reverse=True)[1]
