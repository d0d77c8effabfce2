"""Vector quantisation of latent actions with a codebook that is state, not parameters.

Letters of shapes: B batch, K codebooks, C codes a codebook quantises, V embeddings, D their size.
A latent action z has K * C * D numbers; codebook k is shared by its C codes (LAPO section 4.1).
"""

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

EXACT = jax.lax.Precision.HIGHEST  # assignments and statistics are float32 on every device
DEAD_SHARE = 0.01  # a code used less than this share of the average is called dead


@dataclasses.dataclass(frozen=True)
class VQConfig:
    """Sizes and settings of the quantiser; the defaults are the published ones.

    Attributes:
      enabled: False feeds the forward model the continuous z ("no VQ").
      books: codebooks K.
      codes: codes C that each codebook quantises.
      size: numbers D of a code.
      embeddings: embeddings V of each codebook.
      commitment: weight of the commitment loss.
      decay: of the moving averages.
      epsilon: of the Laplace smoothing.
      initial_scale: embeddings start uniform in +- this.
      initial_count: of the moving averages. The published 0 throws every code without assignments
        far away at the first update; any other keeps it where it is.
      restart_below: codes whose moving count falls below this are put on a random z of the batch;
        0 never restarts; less than 1, the count that they restart with.
    """

    enabled: bool = True
    books: int = 2
    codes: int = 4
    size: int = 16
    embeddings: int = 64
    commitment: float = 0.05
    decay: float = 0.999
    epsilon: float = 1e-5
    initial_scale: float = 5 / 64
    initial_count: float = 0.0
    restart_below: float = 0.0

    @property
    def latent_size(self) -> int:
        """Numbers of a latent action z."""
        return self.books * self.codes * self.size


@flax.struct.dataclass
class Codebook:
    """Embeddings and the moving averages that they are the quotient of.

    embedding: [K, V, D] float32.
    ema_count: [K, V] assignments a batch.
    ema_weight: [K, V, D] sum of the vectors assigned in a batch.
    """

    embedding: jax.Array
    ema_count: jax.Array
    ema_weight: jax.Array


class Quantised(NamedTuple):
    """What `quantize` makes of z [B, K C D].

    z: [B, K C D] the nearest embeddings; its gradient is passed to z unchanged (straight-through).
    indices: [B, K, C] int32, which embeddings.
    commitment: [] mean squared distance of z to them, differentiable in z alone.
    """

    z: jax.Array
    indices: jax.Array
    commitment: jax.Array


def init(config: VQConfig, key: jax.Array) -> Codebook:
    """A fresh codebook: embeddings uniform in +- initial_scale."""
    shape = (config.books, config.embeddings, config.size)
    scale = config.initial_scale
    embedding = jax.random.uniform(key, shape, minval=-scale, maxval=scale)
    count = jnp.full(shape[:2], config.initial_count, jnp.float32)
    return Codebook(embedding, count, embedding * (config.initial_count or 1.0))


def quantize(codebook: Codebook, z: jax.Array) -> Quantised:
    """Replaces each code of z [B, K C D] by its nearest embedding; changes no state."""
    codes_BKCD = _split(codebook, z)
    embedding = jax.lax.stop_gradient(codebook.embedding)
    cross_BKCV = jnp.einsum("bkcd,kvd->bkcv", codes_BKCD, embedding, precision=EXACT)
    distance_BKCV = jnp.sum(embedding**2, -1)[:, None] - 2.0 * cross_BKCV  # less |z|^2
    indices = jnp.argmin(distance_BKCV, -1)
    nearest = jax.vmap(lambda e, i: e[i], (0, 1), 1)(embedding, indices)
    commitment = jnp.mean((codes_BKCD - nearest) ** 2)
    straight_through = codes_BKCD + jax.lax.stop_gradient(nearest - codes_BKCD)
    return Quantised(straight_through.reshape(z.shape), indices, commitment)


def ema_update(
    config: VQConfig,
    codebook: Codebook,
    z: jax.Array,
    indices: jax.Array,
    axis: str | None,
) -> Codebook:
    """The codebook after a batch, before `restart`.

    Sums are over all devices, so their number does not matter.

    count <- d count + (1 - d) assigned, Laplace-smoothed to keep its total;
    weight <- d weight + (1 - d) sum of assigned vectors; embedding = weight / count.

    Args:
      z: [B, K C D] continuous latents, this device's share.
      indices: [B, K, C] their embeddings, from `quantize`.
      axis: name of the mapped axis of devices; None where nothing is mapped.
    """
    z = jax.lax.stop_gradient(z)
    codes_BKCD = _split(codebook, z)
    total = lambda x: x if axis is None else jax.lax.psum(x, axis)
    assigned_BKCV = jax.nn.one_hot(indices, config.embeddings)
    assigned = total(assigned_BKCV.sum((0, 2)))
    sums = total(jnp.einsum("bkcv,bkcd->kvd", assigned_BKCV, codes_BKCD, precision=EXACT))

    count = config.decay * codebook.ema_count + (1.0 - config.decay) * assigned
    everything = count.sum(-1, keepdims=True)
    smoothed = (count + config.epsilon) / (everything + config.embeddings * config.epsilon)
    count = smoothed * everything
    weight = config.decay * codebook.ema_weight + (1.0 - config.decay) * sums
    return Codebook(weight / count[..., None], count, weight)


def restart(
    config: VQConfig, codebook: Codebook, z: jax.Array, key: jax.Array, axis: str | None
) -> tuple[Codebook, jax.Array]:
    """Embeddings whose count is below `restart_below` put on codes of the batch; how many, int32.

    Args:
      z: [B, K C D] continuous latents, this device's share.
      key: equal on all devices.
      axis: name of the mapped axis of devices; None where nothing is mapped.
    """
    codes_BKCD = _split(codebook, jax.lax.stop_gradient(z))
    chosen = _random_codes(codes_BKCD, config.embeddings, key, axis)
    chosen = chosen if axis is None else jax.lax.psum(chosen, axis)
    unused = codebook.ema_count < config.restart_below
    count = jnp.where(unused, 1.0, codebook.ema_count)
    weight = jnp.where(unused[..., None], chosen, codebook.ema_weight)
    return Codebook(weight / count[..., None], count, weight), unused.sum()


def usage(indices: jax.Array, embeddings: int) -> jax.Array:
    """How often each embedding is used: indices [B, K, C] -> [K, V] float32."""
    return jax.nn.one_hot(indices, embeddings).sum((0, 2))


def perplexity(count: jax.Array) -> jax.Array:
    """exp(entropy) of the use [K, V], averaged over codebooks: 1 (one code) to V (all alike)."""
    share = count / jnp.maximum(count.sum(-1, keepdims=True), 1e-12)
    entropy = -jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12)), -1)
    return jnp.mean(jnp.exp(entropy))


def dead_codes(count: jax.Array) -> jax.Array:
    """How many of all K V embeddings are used less than DEAD_SHARE of their book's average."""
    return jnp.sum(count <= DEAD_SHARE * count.mean(-1, keepdims=True))


def _split(codebook: Codebook, z: jax.Array) -> jax.Array:
    """z [B, K C D] -> its codes [B, K, C, D]."""
    books, _, size = codebook.embedding.shape
    return z.reshape(z.shape[0], books, -1, size)


def _random_codes(
    codes_BKCD: jax.Array, embeddings: int, key: jax.Array, axis: str | None
) -> jax.Array:
    """A random code of the global batch for each embedding [K, V, D], where this device holds it.

    Elsewhere zero: the sum over devices is the choice.
    """
    rows, books, codes, size = codes_BKCD.shape
    devices, device = 1, 0
    if axis is not None:
        devices, device = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    flat = codes_BKCD.swapaxes(0, 1).reshape(books, rows * codes, size)
    chosen = jax.random.randint(key, (books, embeddings), 0, devices * rows * codes)
    here = chosen - device * rows * codes
    inside = (here >= 0) & (here < rows * codes)
    picked = jax.vmap(lambda x, i: x[i])(flat, jnp.clip(here, 0, rows * codes - 1))
    return jnp.where(inside[..., None], picked, 0.0)
