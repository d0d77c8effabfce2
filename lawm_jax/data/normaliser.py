"""Observations to zero mean and unit variance."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np


@flax.struct.dataclass
class Normaliser:
    """Per-dimension mean and std [O] of the observations, fixed when training starts."""

    mean: jax.Array
    std: jax.Array

    def __call__(self, observation: jax.Array) -> jax.Array:
        """Raw [..., O] to zero mean and unit variance."""
        return (observation - self.mean) / self.std


def fit(observations: Sequence[np.ndarray], offset: float = 0.0) -> Normaliser:
    """The normaliser of observations [..., O]; a constant dimension keeps std 1.

    offset: added to every std; it keeps a dimension that hardly moved in training from growing
      without bound when it moves later.
    """
    everything = np.concatenate(observations).astype(np.float64)
    std = everything.std(0)
    return Normaliser(
        mean=jnp.asarray(everything.mean(0), jnp.float32),
        std=jnp.asarray(np.where(std < 1e-6, 1.0, std) + offset, jnp.float32),
    )
