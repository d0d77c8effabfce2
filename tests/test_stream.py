"""Windows that are drawn on the host: the same whatever step a stream begins at, and true."""

import itertools

import jax
import numpy as np
import pytest
from small import make_elbo, make_model, make_trajectory

from lawm_jax import runner
from lawm_jax.data import stream
from lawm_jax.data.windows import Windows, sample_windows, stack
from lawm_jax.lawm import learner
from lawm_jax.lawm.learner import LearnerConfig, TrainingData

WINDOW = 4
CONFIG = LearnerConfig(
    steps=7, labelled_rows=2, unlabelled_rows=3, window=WINDOW, learning_rate=1e-2,
    learning_rate_end=0.0, warmup_steps=0, weight_decay=1e-3, gradient_clip=100.0,
)


@pytest.fixture(scope="module")
def arrays():
    return stack([make_trajectory(5, seed=0), make_trajectory(9, seed=1)], actions=True)


def starts(windows, arrays):
    """(trajectory, first step) of every window [rows, L, ...], found by its content."""
    found = []
    for row in range(len(windows.reward)):
        (place,) = (
            (n, t)
            for n in range(2) for t in range(arrays.length[n] + 2 - WINDOW)
            if np.array_equal(arrays.observation[n, t : t + WINDOW], windows.observation[row])
        )
        n, t = place
        np.testing.assert_array_equal(arrays.action[n, t : t + WINDOW - 1], windows.action[row])
        np.testing.assert_array_equal(arrays.reward[n, t : t + WINDOW - 1], windows.reward[row])
        found.append(place)
    return found


def test_host_and_device_draw_from_the_same_distribution(arrays):
    host = stream.draw_windows(arrays, 0, 0, 0, range(4000), WINDOW)
    keys = jax.random.split(jax.random.key(0), 4000)
    device = jax.jit(sample_windows, static_argnums=2)(arrays, keys, WINDOW)
    device = jax.tree.map(lambda x: np.moveaxis(np.asarray(x), 1, 0), device)
    places = sorted(set(starts(host, arrays)))
    shares = [
        np.array([found.count(place) for place in places]) / 4000
        for found in (starts(host, arrays), starts(device, arrays))
    ]
    assert len(places) == 3 + 7  # every window of the two
    np.testing.assert_allclose(*shares, atol=0.04)


def test_a_row_follows_from_seed_step_and_row(arrays):
    whole = stream.draw_windows(arrays, 3, 1, 5, range(6), WINDOW)
    part = stream.draw_windows(arrays, 3, 1, 5, range(2, 4), WINDOW)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:4], b), whole, part)
    other = stream.draw_windows(arrays, 4, 1, 5, range(6), WINDOW)
    assert not np.array_equal(whole.observation, other.observation)
    without = arrays._replace(action=None)
    assert stream.draw_windows(without, 3, 1, 5, range(2), WINDOW).action is None


def test_a_stream_goes_on_where_another_stopped(arrays):
    mesh = runner.make_mesh(jax.devices()[:1])
    data = TrainingData(arrays, arrays._replace(action=None))
    draw = learner.stream_step(data, CONFIG, 0, mesh)
    whole = list(stream.batches(draw, 0, CONFIG.steps, 2, mesh))
    assert [len(batch.labelled.reward) for batch in whole] == [2, 2, 2, 1]
    assert whole[0].unlabelled.observation.shape == (2, 3, WINDOW, 3)
    later = list(stream.batches(draw, 4, CONFIG.steps, 2, mesh))
    jax.tree.map(np.testing.assert_array_equal, whole[2:], later)


def test_a_streamed_step_learns_from_what_it_gets(arrays):
    """Fed windows that are all one, it does what a step does that can draw no other."""
    mesh = runner.make_mesh(jax.devices()[:1])
    model, optimiser = make_model(), learner.make_optimiser(CONFIG)
    only = stack([make_trajectory(WINDOW - 1)], actions=True)
    resident = TrainingData(only, only._replace(action=None))
    step = learner.make_step(model, make_elbo(), CONFIG, optimiser, 1)
    fresh = lambda: learner.init(model, optimiser, learner.fit_normaliser(resident), seed=0)
    expected = runner.data_parallel(step, mesh)(fresh(), None, resident, steps=2)
    draw = learner.stream_step(resident, CONFIG, 0, mesh)
    batch = next(itertools.islice(stream.batches(draw, 0, 2, 2, mesh), 1))
    assert isinstance(batch.labelled, Windows)
    streamed = runner.data_parallel(step, mesh, streamed=True)(fresh(), None, batch, steps=2)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, streamed, expected)
