"""The forward dynamics model: the next frame from two frames and a latent action.

LAPO section 4.1. What it knows of the next frame comes through z alone.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lawm_jax.runner import AXIS
from lawm_jax.vision import from_patches, scale, to_patches


@dataclasses.dataclass(frozen=True)
class FDMConfig:
    """Sizes of a forward model; the defaults are the published ones (8.4M parameters).

    Attributes:
      width: channels of the first level; every level halves the map and doubles the channels.
      levels: of the U-Net; the map's side must be divisible by 2^(levels - 1).
      patch: 0 for a U-Net on pixels. Else the map is of patches of this side, and z enters every
        block by FiLM (scale and shift of the normalised channels).
      residual: predict the change from the last frame instead of the frame.
      dtype: of the computation, "float32" or "bfloat16".
    """

    width: int = 24
    levels: int = 5
    patch: int = 0
    residual: bool = False
    dtype: str = "float32"


class ForwardDynamics(nn.Module):
    """o_{t+1} from (o_{t-1}, o_t) and z, by a U-Net on pixels or on patches.

    The U-Net on pixels has batch normalisation, whose statistics are of the global batch in
    training (collection "batch_stats", inside a mapped step) and the running ones otherwise.
    """

    config: FDMConfig

    @nn.compact
    def __call__(
        self, previous: jax.Array, current: jax.Array, z: jax.Array, train: bool
    ) -> jax.Array:
        """uint8 frames [B, H, W, 3], z [B, Z] -> the next frame, scaled, [B, H, W, 3] float32."""
        previous, current = scale(previous), scale(current)
        frames = jnp.concatenate([previous, current], -1)
        network = PatchUNet(self.config) if self.config.patch else UNet(self.config)
        out = network(frames, z, train).astype(jnp.float32)
        return current + out if self.config.residual else jnp.tanh(out) / 2.0


class NormBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), with batch normalisation."""

    train: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> the same."""
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not self.train, momentum=0.9, dtype=self.dtype,
            axis_name=AXIS if self.train else None,
        )
        y = x
        for _ in range(2):
            y = nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype)(nn.relu(norm()(y)))
        return x + y


class UNet(nn.Module):
    """A U-Net of residual blocks; z joins the channels of the input and of the lowest map."""

    config: FDMConfig

    @nn.compact
    def __call__(self, frames: jax.Array, z: jax.Array, train: bool) -> jax.Array:
        """(frames [B, H, W, 6], z [B, Z]) -> [B, H, W, 3]."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), dtype=dtype)
        x, skips = _with_plane(frames, z), []
        for level in range(config.levels):
            x = conv(config.width * 2**level, strides=2 if level else 1)(x)
            x = NormBlock(train, dtype)(x)
            skips.append(x)
        x = conv(x.shape[-1])(_with_plane(skips.pop(), z))
        for skip in reversed(skips):
            x = conv(skip.shape[-1])(jnp.concatenate([_twice_as_large(x), skip], -1))
            x = NormBlock(train, dtype)(x)
        return conv(3)(nn.relu(x))


class FiLMBlock(nn.Module):
    """x + conv(relu(conv(relu(film(norm(x)))))), with layer normalisation over channels."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, z: jax.Array) -> jax.Array:
        """(x [B, H, W, C], z [B, Z]) -> [B, H, W, C]."""
        channels = x.shape[-1]
        gain, shift = jnp.split(nn.Dense(2 * channels, dtype=self.dtype)(z), 2, -1)
        y = nn.LayerNorm(dtype=self.dtype)(x)
        y = nn.relu(y * (1.0 + gain[:, None, None]) + shift[:, None, None])
        y = nn.relu(nn.Conv(channels, (3, 3), dtype=self.dtype)(y))
        return x + nn.Conv(channels, (3, 3), dtype=self.dtype)(y)


class PatchUNet(nn.Module):
    """A U-Net on patches: between levels 2 x 2 cells are merged, and parted again, by matmuls."""

    config: FDMConfig

    @nn.compact
    def __call__(self, frames: jax.Array, z: jax.Array, train: bool) -> jax.Array:
        """(frames [B, H, W, 6], z [B, Z]) -> [B, H, W, 3]; starts at zero."""
        del train
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        dense = functools.partial(nn.Dense, dtype=dtype)
        x, skips = frames, []
        for level in range(config.levels):
            patches = to_patches(x, 2 if level else config.patch)
            x = FiLMBlock(dtype)(dense(config.width * 2**level)(patches), z)
            skips.append(x)
        skips.pop()
        for skip in reversed(skips):
            up = from_patches(dense(4 * skip.shape[-1])(nn.relu(x)), 2)
            x = FiLMBlock(dtype)(skip + up, z)
        x = nn.relu(nn.LayerNorm(dtype=dtype)(x))
        out = nn.Dense(config.patch**2 * 3, kernel_init=nn.initializers.zeros)
        return from_patches(out(x.astype(jnp.float32)), config.patch)


def _with_plane(x: jax.Array, z: jax.Array) -> jax.Array:
    """x [B, H, W, C] with z [B, Z] as constant channels after its own."""
    plane = jnp.broadcast_to(z[:, None, None], (*x.shape[:3], z.shape[-1]))
    return jnp.concatenate([x, plane.astype(x.dtype)], -1)


def _twice_as_large(x: jax.Array) -> jax.Array:
    """Every cell of [B, H, W, C] repeated 2 x 2."""
    rows, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (rows, height, 2, width, 2, channels))
    return x.reshape(rows, 2 * height, 2 * width, channels)
