"""Network parts: each computes one step of one thing; functions elsewhere own time."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from lawm_jax.dists import Normal


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., D] @ kernel [D, F] -> [..., F].

    The leading axes are made one: the kernel's gradient contracts them, and XLA's products on CPUs
    are slower with several contracted axes.
    """
    y = x.reshape(-1, x.shape[-1]) @ kernel
    return y.reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """A linear layer that can show its input and have its output perturbed, as `scan` needs.

    Parameters are float32; the product is computed in `dtype`.
    """

    features: int
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        x = x.astype(self.dtype)
        self.sow("inputs", "x", x)
        y = self.perturb("y", matmul(x, kernel.astype(self.dtype)))
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return y


class Hidden(nn.Module):
    """Dense, LayerNorm, Swish: [..., D] -> [..., units] (LAWM appendix C)."""

    units: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the layer; the normalisation's statistics are float32 whatever the dtype.

        The bias is needed although LayerNorm has one: without it LayerNorm(W x) is blind to the
        size of x.
        """
        x = Dense(self.units, dtype=self.dtype)(x)
        return nn.swish(nn.LayerNorm(dtype=self.dtype)(x))


class MLP(nn.Module):
    """`layers` hidden layers and, if `out` > 0, a linear float32 output: [..., D] -> [..., out]."""

    units: int
    layers: int
    out: int = 0
    dtype: jnp.dtype = jnp.float32
    zero_init: bool = False  # the output starts at zero

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the network."""
        for _ in range(self.layers):
            x = Hidden(self.units, self.dtype)(x)
        if not self.out:
            return x
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        x = Dense(self.out, dtype=self.dtype, kernel_init=init)(x)
        return x.astype(jnp.float32)


class GRUCell(nn.Module):
    """A GRU cell whose three gates are one matmul and one LayerNorm (DreamerV2's recurrence).

    The update gate starts closed (bias -1), so that memory persists early in training.
    """

    units: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, x: jax.Array) -> jax.Array:
        """(h [B, units] float32, x [B, D]) -> the next h [B, units] float32."""
        joint = jnp.concatenate([h.astype(self.dtype), x.astype(self.dtype)], -1)
        gates = Dense(3 * self.units, dtype=self.dtype)(joint)
        gates = nn.LayerNorm(dtype=jnp.float32)(gates)
        reset, candidate, update = jnp.split(gates, 3, axis=-1)
        candidate = jnp.tanh(nn.sigmoid(reset) * candidate)
        update = nn.sigmoid(update - 1.0)
        return update * candidate + (1.0 - update) * h


def normal_from(x: jax.Array, min_std: float) -> Normal:
    """Splits a float32 network output [..., 2 D] into Normal(mean, softplus(raw) + min_std)."""
    mean, raw = jnp.split(x, 2, axis=-1)
    return Normal(mean, jax.nn.softplus(raw) + min_std)
