"""Diagonal Gaussians and their tanh-squashed form, as functions of means and standard deviations.

Every function reduces the last axis, the event: log-probabilities and divergences are in nats.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LOG_TWO_PI = 1.8378770664093453


class Normal(NamedTuple):
    """A diagonal Gaussian: mean and std [..., D], std > 0."""

    mean: jax.Array
    std: jax.Array

    def sample(self, noise: jax.Array) -> jax.Array:
        """The reparameterised sample for standard-normal noise [..., D]."""
        return self.mean + self.std * noise


def standard_normal_like(x: jax.Array) -> Normal:
    """N(0, 1) of the shape of x."""
    return Normal(jnp.zeros_like(x), jnp.ones_like(x))


def log_prob(p: Normal, x: jax.Array) -> jax.Array:
    """log p(x) [...], for x [..., D]."""
    deviation = (x - p.mean) / p.std
    return jnp.sum(-0.5 * (deviation**2 + LOG_TWO_PI) - jnp.log(p.std), axis=-1)


def kl(q: Normal, p: Normal) -> jax.Array:
    """KL[q || p] [...]."""
    variance_ratio = (q.std / p.std) ** 2
    distance = ((q.mean - p.mean) / p.std) ** 2
    return 0.5 * jnp.sum(variance_ratio + distance - 1.0 - jnp.log(variance_ratio), axis=-1)


def balanced_kl(q: Normal, p: Normal, balance: float) -> jax.Array:
    """KL[q || p] [...] whose gradient reaches p with weight `balance` and q with the rest.

    The value is the plain divergence. Training the prior towards the posterior faster than the
    reverse keeps the posterior from being pulled to an untrained prior (DreamerV2, section 2).
    """
    to_prior = kl(jax.lax.stop_gradient(q), p)
    to_posterior = kl(q, jax.lax.stop_gradient(p))
    return balance * to_prior + (1.0 - balance) * to_posterior


def tanh_normal_log_prob(p: Normal, pre_tanh: jax.Array) -> jax.Array:
    """log-density [...] of tanh(x) for x = pre_tanh [..., D] drawn from p.

    log(1 - tanh(x)^2) is written as 2 (log 2 - x - softplus(-2 x)), which does not underflow.
    """
    log_slope = 2.0 * (jnp.log(2.0) - pre_tanh - jax.nn.softplus(-2.0 * pre_tanh))
    return log_prob(p, pre_tanh) - jnp.sum(log_slope, axis=-1)
