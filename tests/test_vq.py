"""Vector quantisation by hand: nearest codes, moving averages, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawm_jax.lapo import vq
from lawm_jax.lapo.vq import Codebook, VQConfig

# One codebook of three embeddings on a line, two codes of one number each.
LINE = VQConfig(books=1, codes=2, size=1, embeddings=3, decay=0.9, epsilon=0.5)


@pytest.fixture
def line():
    return Codebook(
        embedding=jnp.array([[[-1.0], [0.0], [2.0]]]),
        ema_count=jnp.array([[1.0, 2.0, 3.0]]),
        ema_weight=jnp.array([[[-1.0], [0.0], [6.0]]]),
    )


def update(config, codebook, z, key=0, axis=None):
    indices = vq.quantize(codebook, z).indices
    codebook = vq.ema_update(config, codebook, z, indices, axis)
    if config.restart_below:
        codebook, _ = vq.restart(config, codebook, z, jax.random.key(key), axis)
    return codebook


def test_nearest_embedding_and_commitment(line):
    quantised = vq.quantize(line, jnp.array([[-0.6, 0.4], [1.1, 9.0]]))
    np.testing.assert_array_equal(quantised.indices, [[[0, 1]], [[2, 2]]])
    np.testing.assert_allclose(quantised.z, [[-1.0, 0.0], [2.0, 2.0]], atol=1e-6)
    np.testing.assert_allclose(
        quantised.commitment, np.mean(np.square([0.4, 0.4, -0.9, 7.0])), rtol=1e-6
    )


def test_each_book_quantises_its_own_codes():
    config = VQConfig(books=2, codes=3, size=4, embeddings=5, initial_scale=1.0)
    codebook = vq.init(config, jax.random.key(0))
    z = np.random.default_rng(0).standard_normal((7, config.latent_size)).astype(np.float32)
    quantised = vq.quantize(codebook, z)
    for book in range(2):
        for code in range(3):
            first = (book * 3 + code) * 4
            part = z[:, first : first + 4]
            distance = np.square(part[:, None] - codebook.embedding[book]).sum(-1)
            np.testing.assert_array_equal(quantised.indices[:, book, code], distance.argmin(-1))
            np.testing.assert_allclose(
                quantised.z[:, first : first + 4],
                codebook.embedding[book][distance.argmin(-1)], atol=1e-6,
            )


def test_moving_averages_by_hand(line):
    """assigned 1, 1, 2 of sums -0.6, 0.4, 10.1; smoothing with eps 0.5 keeps the total."""
    after = update(LINE, line, jnp.array([[-0.6, 0.4], [1.1, 9.0]]))
    count = 0.9 * np.array([1.0, 2.0, 3.0]) + 0.1 * np.array([1, 1, 2])
    smoothed = (count + 0.5) / (count.sum() + 1.5) * count.sum()
    weight = 0.9 * np.array([-1.0, 0.0, 6.0]) + 0.1 * np.array([-0.6, 0.4, 10.1])
    np.testing.assert_allclose(after.ema_count[0], smoothed, rtol=1e-6)
    np.testing.assert_allclose(after.ema_count.sum(), count.sum(), rtol=1e-6)
    np.testing.assert_allclose(after.ema_weight[0, :, 0], weight, rtol=1e-6)
    np.testing.assert_allclose(after.embedding[0, :, 0], weight / smoothed, rtol=1e-6)


def test_straight_through_gradient(line):
    z = jnp.array([[-0.6, 0.4], [1.1, 9.0]])
    given = jnp.array([[1.0, -2.0], [3.0, 0.5]])
    through = jax.grad(lambda z: jnp.sum(given * vq.quantize(line, z).z))(z)
    np.testing.assert_allclose(through, given)
    committed = jax.grad(lambda z: vq.quantize(line, z).commitment)(z)
    np.testing.assert_allclose(committed, 2 / 4 * np.array([[0.4, 0.4], [-0.9, 7.0]]), rtol=1e-6)

    def of_embedding(embedding):
        quantised = vq.quantize(line.replace(embedding=embedding), z)
        return jnp.sum(given * quantised.z) + quantised.commitment

    np.testing.assert_array_equal(jax.grad(of_embedding)(line.embedding), 0)


def test_published_and_safe_starts():
    """Counts from zero throw the codes that got nothing far away; counts from one do not."""
    z = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    published, safe = VQConfig(), VQConfig(initial_count=1.0)
    for config, far in ((published, True), (safe, False)):
        codebook = vq.init(config, jax.random.key(0))
        assert np.abs(codebook.embedding).max() <= 5 / 64
        assert codebook.embedding.shape == (2, 64, 16)
        indices = vq.quantize(codebook, z).indices
        unused = np.asarray(vq.usage(indices, 64)) == 0
        after = vq.ema_update(config, codebook, z, indices, None)
        assert unused.any()
        assert (np.abs(after.embedding)[unused].max() > 10) == far


def test_codes_without_use_restart_on_vectors_of_the_batch(line):
    config = VQConfig(**(vars(LINE) | {"epsilon": 1e-5, "restart_below": 0.95}))
    z = jnp.array([[1.9, 2.2], [2.0, 1.8]])  # all go to the third code; the first falls to 0.9
    after = update(config, line, z)
    assert float(after.embedding[0, 0, 0]) in np.float32([1.9, 2.2, 2.0, 1.8])
    assert after.ema_count[0, 0] == 1.0
    np.testing.assert_allclose(after.embedding[0, 1, 0], 0.0, atol=1e-6)
    assert vq.restart(config, after, z, jax.random.key(0), None)[1] == 0
    low = line.replace(ema_count=line.ema_count.at[0, :2].set(0.9))
    assert vq.restart(config, low, z, jax.random.key(0), None)[1] == 2
    still = update(VQConfig(**(vars(config) | {"restart_below": 0.0})), line, z)
    np.testing.assert_allclose(still.embedding[0, 0, 0], -1.0, atol=1e-3)


def test_devices_do_not_change_the_update():
    """vmap with an axis name stands for devices: four shares of a batch, or the whole."""
    config = VQConfig(
        books=2, codes=3, size=4, embeddings=5, initial_count=0.5, restart_below=0.503
    )
    codebook = vq.init(config, jax.random.key(1))
    z = np.random.default_rng(0).standard_normal((8, config.latent_size)).astype(np.float32)
    whole = update(config, codebook, z)
    shares = jax.vmap(lambda z: update(config, codebook, z, axis="d"), axis_name="d")(
        z.reshape(4, 2, -1)
    )
    for part in range(4):
        jax.tree.map(
            lambda x, y, part=part: np.testing.assert_allclose(x[part], y, rtol=1e-5, atol=1e-6),
            shares, whole,
        )
    assert (np.asarray(whole.ema_count) == 1.0).any()  # some code did restart


def test_perplexity_and_dead_codes():
    count = np.array([[4.0, 4.0, 0.0, 0.0], [8.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(vq.perplexity(count), (2 + 1) / 2, rtol=1e-6)
    assert vq.dead_codes(count) == 5
    np.testing.assert_array_equal(
        vq.usage(jnp.array([[[0, 1]], [[1, 1]]]), 3), [[1, 3, 0]]
    )
