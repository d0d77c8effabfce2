"""The forward dynamics model: the next frame from two frames and a latent action.

LAPO section 4.1. What it knows of the next frame comes through z alone.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from lawm_jax.nets import Dense
from lawm_jax.runner import AXIS
from lawm_jax.vision import from_patches, scale, to_patches


@dataclasses.dataclass(frozen=True)
class FDMConfig:
    """Sizes of a forward model; the defaults are the published ones (7.8M parameters).

    Attributes:
      width: channels of the first map; each further one has twice as many and half the side.
      levels: sizes of maps, with that of the input; 2^(levels - 1) must divide the input's side.
      patch: 0 for a U-Net on pixels. Else the map is of patches of this side, and z enters every
        block by FiLM (scale and shift of the normalised channels).
      residual: predict the change from the last frame instead of the frame.
      dtype: of the computation, "float32" or "bfloat16".
    """

    width: int = 24
    levels: int = 7
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


class NarrowBlock(nn.Module):
    """relu(x + conv(relu(conv(relu(x))))), with half of the channels in between."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> the same."""
        channels = x.shape[-1]
        y = nn.Conv(channels // 2, (3, 3), dtype=self.dtype)(nn.relu(x))
        return nn.relu(x + nn.Conv(channels, (3, 3), dtype=self.dtype)(nn.relu(y)))


class UNet(nn.Module):
    """A U-Net of residual blocks; z joins the channels of the input and of the lowest map.

    The lowest map of the published sizes is a single cell, so that z reaches every pixel twice.
    Convolutions of a stride as large as their kernel are matmuls on 2 x 2 cells here.
    """

    config: FDMConfig

    @nn.compact
    def __call__(self, frames: jax.Array, z: jax.Array, train: bool) -> jax.Array:
        """(frames [B, H, W, 6], z [B, Z]) -> [B, H, W, 3]."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), dtype=dtype)
        dense = functools.partial(Dense, dtype=dtype)
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=dtype,
            axis_name=AXIS if train else None,
        )
        *widths, lowest = (config.width * 2**level for level in range(config.levels - 1))
        x, skips = _with_plane(frames, z), [frames]
        for width in widths:
            x = NarrowBlock(dtype)(norm()(conv(width)(x)))
            x = nn.max_pool(x, (2, 2), (2, 2))
            skips.append(x)
        x = _with_plane(dense(lowest)(to_patches(x, 2)), z)
        for width in (*reversed(widths), config.width):
            x = from_patches(dense(4 * width)(x), 2)
            x = NarrowBlock(dtype)(norm()(x))
            x = jnp.concatenate([x, skips.pop()], -1)
        return dense(3)(NarrowBlock(dtype)(conv(config.width)(x)))


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
        dense = functools.partial(Dense, dtype=dtype)
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
        out = Dense(config.patch**2 * 3, kernel_init=nn.initializers.zeros)
        return from_patches(out(x.astype(jnp.float32)), config.patch)


def _with_plane(x: jax.Array, z: jax.Array) -> jax.Array:
    """x [B, H, W, C] with z [B, Z] as constant channels after its own."""
    plane = jnp.broadcast_to(z[:, None, None], (*x.shape[:3], z.shape[-1]))
    return jnp.concatenate([x, plane.astype(x.dtype)], -1)
