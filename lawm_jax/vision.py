"""Networks that read frames: a convolutional trunk, IMPALA's or one on patches, and what it feeds.

Networks see frames as x / 255 - 0.5. Parameters are float32; layers compute in a config's `dtype`,
those of `Glimpses` in float32.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.nets import Dense

PLACE_PATCH, PLACE_UNITS = 4, 32  # of the layers that choose places
# The logits of places are multiplied by this. On bigfish (results/tuning_lapo.md) a window came to
# be around the player within 500 to 1,750 steps so; with 1 the softmax was still uniform, and all
# windows the same blur, after 500.
PLACE_SHARPNESS = 30.0


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
      glimpses: 0, or how many windows around places that it chooses a trunk sees in place of the
        frame, one upon the other (`Glimpses`); where they are joins what it makes of them.
      glimpse: side of these windows, in pixels of the resized frame.
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
    glimpses: int = 0
    glimpse: int = 48
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


class Glimpses(nn.Module):
    """Chooses places by a softmax over a frame's pixels and cuts a window around each.

    What is to be done about a thing depends on where it is from the player, not from the corner of
    the frame; a window around the player shows that, wherever the player is.

    A window is the mean of the windows around all pixels, weighted by a pixel's row's share of the
    softmax times its column's: at a sharp softmax the window around a pixel, at any differentiable
    (as in DRAW, Gregor et al., 2015, whose filters are Gaussian; a place by a softmax over a map is
    in Levine et al., 2016).
    """

    count: int
    side: int

    @nn.compact
    def __call__(self, frames: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scaled frames [B, H, W, C] -> windows [B, D, D, G C], places [B, G (H + W)].

        Places are the rows' and the columns' shares; what a window shows of beyond the frame is 0.
        """
        batch, height, width, _ = frames.shape
        x = nn.relu(Dense(PLACE_UNITS)(to_patches(pad(frames, PLACE_PATCH), PLACE_PATCH)))
        logits = PLACE_SHARPNESS * Dense(PLACE_PATCH**2 * self.count)(x)
        logits = jnp.moveaxis(from_patches(logits, PLACE_PATCH)[:, :height, :width], -1, 1)
        share = nn.softmax(logits.reshape(batch, self.count, -1)).reshape(logits.shape)
        rows, columns = share.sum(3), share.sum(2)
        places = jnp.concatenate([rows, columns], -1).reshape(batch, -1)
        return cut_windows(frames, rows, columns, self.side), places


def cut_windows(frames: jax.Array, rows: jax.Array, columns: jax.Array, side: int) -> jax.Array:
    """[B, H, W, C], weights of rows [B, G, H] and columns [B, G, W] -> windows [B, D, D, G C].

    Where one row and one column have all weight, that pixel is in the window at D // 2, D // 2.
    """
    batch, height, width, channels = frames.shape
    count = rows.shape[1]
    lines = frames.reshape(batch, height, width * channels)
    x = jnp.einsum("bgdh,bhk->bgdk", _moved(rows, side), lines)
    x = x.reshape(batch, count, side, width, channels).transpose(0, 1, 3, 2, 4)
    x = x.reshape(batch, count, width, side * channels)
    x = jnp.einsum("bgdw,bgwk->bgdk", _moved(columns, side), x)
    x = x.reshape(batch, count, side, side, channels)  # a window's columns, then its rows
    return x.transpose(0, 3, 2, 1, 4).reshape(batch, side, side, count * channels)


def _moved(weights: jax.Array, side: int) -> jax.Array:
    """[B, G, N] -> [B, G, D, N], whose row d has the weights moved by d - D // 2, and zeros."""
    half = side // 2
    padded = jnp.pad(weights, ((0, 0), (0, 0), (side - 1 - half, half)))
    return padded[..., jnp.arange(side)[::-1, None] + jnp.arange(weights.shape[-1])]


class Trunk(nn.Module):
    """The convolutional part: scaled frames [B, H, W, C] -> [B, F]."""

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the stages and flattens or pools the last map."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        if config.resize:
            x = resize(x, config.resize)
        places = []
        if config.glimpses:
            x, chosen = Glimpses(config.glimpses, config.glimpse)(x)
            places = [chosen.astype(dtype)]
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
        x = x.max((1, 2)) if config.pool else x.reshape(x.shape[0], -1)
        return jnp.concatenate([x, *places], -1)


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
