"""Networks that read frames: a convolutional trunk, IMPALA's or one on patches, and what it feeds.

Networks see frames as x / 255 - 0.5. Parameters are float32; layers compute in a config's `dtype`.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.nets import Dense


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a trunk and the fully connected layer on it.

    Attributes:
      channels: of each stage, before the multiplier; every stage halves the map.
      multiplier: of the channels.
      blocks: residual blocks of each stage; one without any ends in a ReLU.
      patch: 0 for IMPALA (Espeholt et al., 2018), whose stages start with convolution and pooling.
        Else the frame is cut into patches of this side, the first stage starts with one matmul on
        them and later ones with a matmul on 2 x 2 cells: 10 to 20 times cheaper.
      resize: 0, or the side in pixels that frames are resized to before they are cut into patches:
        with a game of N cells a side, N / 2 x patch, N x patch, ... make cells and patches meet.
        What patch or the halvings do not divide is padded with zeros, which are grey.
      pool: take each channel's largest value on the last map instead of the whole map, so that the
        network tells what there is but hardly where (near a border or within a patch, at most).
      features: width of the fully connected layer.
      dtype: of the computation, "float32" or "bfloat16".
    """

    channels: tuple[int, ...] = (16, 32, 32)
    multiplier: int = 4
    blocks: tuple[int, ...] = (2, 2, 2)
    patch: int = 0
    resize: int = 0
    pool: bool = False
    features: int = 256
    dtype: str = "float32"


def scale(frames: jax.Array) -> jax.Array:
    """uint8 frames as networks see them: float32 in [-0.5, 0.5]."""
    return frames.astype(jnp.float32) / 255.0 - 0.5


def to_patches(x: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C] -> [B, H / side, W / side, side * side * C]."""
    rows, height, width, channels = x.shape
    x = x.reshape(rows, height // side, side, width // side, side, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(rows, height // side, width // side, side * side * channels)


def from_patches(x: jax.Array, side: int) -> jax.Array:
    """The inverse of `to_patches`."""
    rows, height, width, size = x.shape
    channels = size // side**2
    x = x.reshape(rows, height, width, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(rows, height * side, width * side, channels)


def resize(x: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C] -> [B, side, side, C], bilinear and antialiased, by jax.image.resize.

    That multiplies with matrices that are almost empty: a third faster than `resize_by_taps` by the
    TPU compiler's estimate, but five to ten times as long on CPUs, which take that instead.
    """
    shape = (x.shape[0], side, side, x.shape[3])
    by_matrices = functools.partial(jax.image.resize, shape=shape, method="linear")
    by_taps = functools.partial(resize_by_taps, side=side)
    return jax.lax.platform_dependent(x, cpu=by_taps, default=by_matrices)


def resize_by_taps(x: jax.Array, side: int) -> jax.Array:
    """The same as a sum of a few weighted shifts of the rows, then of the columns."""
    for axis in (1, 2):
        taps = _taps(x.shape[axis], side)
        along = [side if i == axis else 1 for i in range(x.ndim)]
        parts = (jnp.take(x, i, axis) * w.reshape(along) for i, w in zip(*taps, strict=True))
        x = functools.reduce(jnp.add, parts)
    return x


@functools.cache
def _taps(length: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `length` pixels each of `side` is a weighted mean of, and the weights: [K, side]."""
    step = length / side
    reach = max(step, 1.0)  # from the middle of a new pixel, in old ones
    middle = (np.arange(side) + 0.5) * step - 0.5
    index = np.floor(middle - reach) + 1 + np.arange(math.ceil(2 * reach))[:, None]
    weights = np.maximum(1.0 - np.abs(index - middle) / reach, 0.0)
    weights[(index < 0) | (index >= length)] = 0.0
    weights /= weights.sum(0)
    return np.clip(index, 0, length - 1).astype(int), weights.astype(np.float32)


def pad(x: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C] with zeros below and on the right until `side` divides H and W."""
    rows, columns = (-length % side for length in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))): [B, H, W, C] -> the same."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block."""
        y = nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype)(nn.relu(x))
        return x + nn.Conv(x.shape[-1], (3, 3), dtype=self.dtype)(nn.relu(y))


class Trunk(nn.Module):
    """The convolutional part: scaled frames [B, H, W, C] -> [B, F]."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the stages and flattens or pools the last map."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        if config.resize:
            x = resize(x, config.resize)
        for i, (channels, blocks) in enumerate(zip(config.channels, config.blocks, strict=True)):
            channels *= config.multiplier
            if config.patch:
                side = 2 if i else config.patch
                x = Dense(channels, dtype=dtype)(to_patches(pad(x, side), side))
            else:
                x = nn.Conv(channels, (3, 3), dtype=dtype)(x)
                x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
            for _ in range(blocks):
                x = ResidualBlock(dtype)(x)
            if not blocks:
                x = nn.relu(x)
        x = nn.relu(x)
        return x.max((1, 2)) if config.pool else x.reshape(x.shape[0], -1)


class FrameNetwork(nn.Module):
    """Trunk, fully connected layer and linear head: scaled frames [B, H, W, C] -> [B, out] float32.

    Its parameters are in three groups: trunk, fc, head.
    """

    encoder: EncoderConfig
    out: int

    @nn.compact
    def __call__(self, frames: jax.Array) -> jax.Array:
        """Applies the network."""
        dtype = jnp.dtype(self.encoder.dtype)
        x = Trunk(self.encoder, name="trunk")(frames)
        x = nn.relu(nn.Dense(self.encoder.features, dtype=dtype, name="fc")(x))
        return nn.Dense(self.out, name="head")(x.astype(jnp.float32))
