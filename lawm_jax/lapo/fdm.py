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

OWN_LOGIT = 4.0  # added to that of a pixel's own weight in `move`


@dataclasses.dataclass(frozen=True)
class FDMConfig:
    """Sizes of a forward model; the defaults are the published ones (7.8M parameters).

    Attributes:
      width: channels of the first map; each further one has twice as many and half the side.
      levels: sizes of maps, with that of the input; 2^(levels - 1) must divide the input's side.
      patch: 0 for a U-Net on pixels. Else the map is of patches of this side, and z enters every
        block by FiLM (scale and shift of the normalised channels).
      residual: predict the change from the last frame instead of the frame.
      reach: pixels, up to which a residual model predicts how far to move each pixel of the last
        frame, in rows and in columns (`move`), before it adds the change; 0 moves nothing. Sliding
        things are then predicted without z, which is left with what the frames do not tell. The
        model sees the last frame's difference from the one before in place of the latter: speeds.
      dtype: of the computation, "float32" or "bfloat16".
    """

    width: int = 24
    levels: int = 7
    patch: int = 0
    residual: bool = False
    reach: int = 0
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
        config, previous, current = self.config, scale(previous), scale(current)
        frames = jnp.concatenate([current - previous if config.reach else previous, current], -1)
        taps = 2 * config.reach + 1 if config.reach else 0
        network = (PatchUNet if config.patch else UNet)(config, 3 + 2 * taps)
        out = network(frames, z, train).astype(jnp.float32)
        if taps:
            out, across, down = jnp.split(out, [3, 3 + taps], -1)
            current = move(current, across, down)
        return current + out if config.residual else jnp.tanh(out) / 2.0


def move(frames: jax.Array, across: jax.Array, down: jax.Array) -> jax.Array:
    """Frames whose pixels are weighted means of those beside them, then of those above and below.

    Neural advection (Finn et al., 2016), a row and a column of weights for each pixel.

    Args:
      frames: [B, H, W, C].
      across: [B, H, W, 2 R + 1] logits of the weights of the pixels R to the left to R to the
        right, to which a constant is added that makes zeros leave frames nearly as they are, for
        an R of a few pixels.
      down: the same of the pixels R above to R below.
    """
    for axis, logits in ((2, across), (1, down)):
        taps = logits.shape[-1]
        reach, size = taps // 2, frames.shape[axis]
        weights = nn.softmax(logits + OWN_LOGIT * (jnp.arange(taps) == reach))
        width = [(reach, reach) if i == axis else (0, 0) for i in range(frames.ndim)]
        padded = jnp.pad(frames, width, mode="edge")
        frames = sum(
            weights[..., k, None] * jax.lax.slice_in_dim(padded, k, k + size, axis=axis)
            for k in range(taps)
        )
    return frames


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
    out: int

    @nn.compact
    def __call__(self, frames: jax.Array, z: jax.Array, train: bool) -> jax.Array:
        """(frames [B, H, W, 6], z [B, Z]) -> [B, H, W, out]."""
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
        return dense(self.out)(NarrowBlock(dtype)(conv(config.width)(x)))


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
    out: int

    @nn.compact
    def __call__(self, frames: jax.Array, z: jax.Array, train: bool) -> jax.Array:
        """(frames [B, H, W, 6], z [B, Z]) -> [B, H, W, out]; starts at zero."""
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
        out = Dense(config.patch**2 * self.out, kernel_init=nn.initializers.zeros)
        return from_patches(out(x.astype(jnp.float32)), config.patch)


def _with_plane(x: jax.Array, z: jax.Array) -> jax.Array:
    """x [B, H, W, C] with z [B, Z] as constant channels after its own."""
    plane = jnp.broadcast_to(z[:, None, None], (*x.shape[:3], z.shape[-1]))
    return jnp.concatenate([x, plane.astype(x.dtype)], -1)
