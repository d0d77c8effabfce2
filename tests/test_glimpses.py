"""Windows around places that a network chooses: the arithmetic, and that places are learned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lawm_jax.vision import EncoderConfig, FrameNetwork, Glimpses, Trunk, cut_windows

HEIGHT, WIDTH = 10, 9


def shares(key, length):
    return jax.nn.softmax(jax.random.normal(jax.random.key(key), (3, 2, length)))


@pytest.mark.parametrize("side", [7, 8, 30])
def test_a_window_is_the_mean_of_those_around_all_pixels(side):
    frames = jax.random.normal(jax.random.key(0), (3, HEIGHT, WIDTH, 3))
    rows, columns = shares(1, HEIGHT), shares(2, WIDTH)
    half = side // 2
    wide = np.pad(frames, ((0, 0), (half, side), (half, side), (0, 0)))
    expected = np.zeros((3, side, side, 2, 3))
    for row, column in np.ndindex(HEIGHT, WIDTH):
        weight = np.asarray(rows[:, :, row] * columns[:, :, column])[:, None, None, :, None]
        expected += weight * wide[:, row : row + side, column : column + side, None]
    seen = cut_windows(frames, rows, columns, side)
    np.testing.assert_allclose(seen, expected.reshape(3, side, side, 6), atol=1e-6)


def test_a_window_around_one_pixel_has_it_in_the_middle():
    frames = jax.random.normal(jax.random.key(0), (1, HEIGHT, WIDTH, 3))
    one = lambda length, i: jax.nn.one_hot(jnp.array([[i]]), length)
    seen = cut_windows(frames, one(HEIGHT, 6), one(WIDTH, 0), 4)
    np.testing.assert_array_equal(seen[0, :, 2:], frames[0, 4:8, :2])
    np.testing.assert_array_equal(seen[0, :, :2], 0.0)  # left of the frame


def test_places_are_shares_of_rows_and_columns():
    frames = jax.random.normal(jax.random.key(0), (5, HEIGHT, WIDTH, 3))  # 4 divides neither side
    (seen, places), _ = Glimpses(count=2, side=6).init_with_output(jax.random.key(1), frames)
    assert seen.shape == (5, 6, 6, 2 * 3) and places.shape == (5, 2 * (HEIGHT + WIDTH))
    sums = np.add.reduceat(np.asarray(places).reshape(5, 2, -1), [0, HEIGHT], axis=-1)
    np.testing.assert_allclose(sums, 1.0, rtol=1e-5)


@pytest.mark.parametrize(("patch", "resize"), [(0, 0), (4, 0), (4, 60)])
def test_a_trunk_of_glimpses_has_maps_of_their_side(patch, resize):
    config = EncoderConfig(
        (4, 6), multiplier=1, blocks=(0, 1), patch=patch, resize=resize, glimpses=3, glimpse=22
    )
    frames = jnp.zeros((2, 64, 64, 3))
    features = jax.eval_shape(Trunk(config).init_with_output, jax.random.key(0), frames)[0]
    cells = 3 if patch else 6  # 22, 6, 3 with patches; 22, 11, 6 without
    assert features.shape == (2, 6 * cells**2 + 3 * 2 * (resize or 64))


def marks(rng, number):
    """A red pixel, a blue one two pixels from it, and on which of its four sides."""
    frames = np.zeros((number, 32, 32, 3), np.float32)
    place, side = rng.integers(2, 30, (number, 2)), rng.integers(0, 4, number)
    other = place + 2 * np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])[side]
    frames[np.arange(number), place[:, 0], place[:, 1], 0] = 1.0
    frames[np.arange(number), other[:, 0], other[:, 1], 2] = 1.0
    return frames, side


def held_out_accuracy(glimpses):
    """After 300 steps of 64 frames, of 1,000 others."""
    config = EncoderConfig(
        (16,), multiplier=1, blocks=(0,), patch=4, glimpses=glimpses, glimpse=8, features=32
    )
    network, rng = FrameNetwork(config, 4), np.random.default_rng(0)
    params = network.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    optimiser = optax.adam(3e-3)
    state = optimiser.init(params)

    @jax.jit
    def step(params, state, frames, label):
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(
            network.apply({"params": p}, frames), label).mean()
        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    for _ in range(300):
        params, state = step(params, state, *marks(rng, 64))
    frames, label = marks(rng, 1000)
    return np.mean(np.argmax(network.apply({"params": params}, frames), -1) == label)


def test_places_are_found_from_the_loss_alone():
    """Which side of a mark another is on: learned with windows, in as many steps less without."""
    assert held_out_accuracy(glimpses=1) > 0.97
    assert held_out_accuracy(glimpses=0) < 0.9
