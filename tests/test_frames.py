"""Windows of frames: none straddles an episode, all are drawn alike, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lapo_small import noise_frames

from lawm_jax.data.frames import (
    FrameArrays,
    FrameShards,
    FrameWindows,
    draw_steps,
    only_windows,
    sample_windows,
    shard_frames,
    shift_windows,
    stream_windows,
    window_steps,
    windows_at,
)
from lawm_jax.errors import InputError


def part_of(shards, devices, device):
    """What one device is given."""
    return FrameShards(*(np.split(x, devices)[device] for x in shards))


def test_steps_by_hand():
    episode = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(window_steps(episode), [1, 2, 7])
    assert window_steps(np.array([0, 0])).size == 0


@pytest.mark.parametrize("devices", [1, 3])
def test_windows_are_consecutive_frames_of_one_episode_and_equally_likely(devices):
    frames = noise_frames(lengths=(5, 2, 1, 7, 4, 9))
    row_of = {frame.tobytes(): row for row, frame in enumerate(frames.observation)}
    shards = shard_frames(frames, devices)
    seen = 0
    for device in range(devices):
        part = jax.tree.map(jnp.asarray, part_of(shards, devices, device))
        keys = jax.random.split(jax.random.key(device), 3000)
        windows = jax.device_get(jax.jit(sample_windows)(part, keys))
        rows = np.array([[row_of[f.tobytes()] for f in x] for x in windows[:3]]).T
        np.testing.assert_array_equal(np.diff(rows), 1)
        episode = frames.episode[rows]
        assert (episode == episode[:, :1]).all()
        np.testing.assert_array_equal(windows.action, frames.action[rows[:, 1]])
        assert (windows.action >= 0).all()
        drawn = np.unique(rows[:, 1], return_counts=True)[1]
        assert len(drawn) == part.count[0]
        expected = 3000 / part.count[0]
        assert np.abs(drawn - expected).max() < 5 * np.sqrt(expected)
        seen += len(drawn)
    # a cut costs at most the two windows over it
    assert len(window_steps(frames.episode)) - 2 * (devices - 1) - devices < seen


def test_one_device_holds_every_window_and_no_copy():
    frames = noise_frames()
    shards = shard_frames(frames, 1)
    assert np.shares_memory(shards.observation, frames.observation)
    np.testing.assert_array_equal(shards.steps, window_steps(frames.episode))


def test_a_device_without_a_window_is_reported():
    with pytest.raises(InputError, match="6 frames, cut into 2 parts, leave a device without"):
        shard_frames(noise_frames(lengths=(1, 3)), 2)


def test_draws_are_nested_and_reproducible():
    frames = noise_frames(lengths=(20, 30))
    few, many = draw_steps(frames, 4, seed=1), draw_steps(frames, 16, seed=1)
    np.testing.assert_array_equal(few, many[:4])
    assert len(set(many)) == 16
    assert set(many) <= set(window_steps(frames.episode))
    assert (draw_steps(frames, 16, seed=2) != many).any()
    assert windows_at(frames, many).action.min() >= 0
    with pytest.raises(InputError, match="0 transitions asked for"):
        draw_steps(frames, 0, seed=1)
    with pytest.raises(InputError, match="hold 48: choose"):
        draw_steps(frames, 49, seed=1)


def test_a_shift_moves_the_three_frames_of_a_window_alike():
    frame = np.zeros((6, 8, 8, 3), np.uint8)
    frame[:, 4, 3] = 200
    windows = FrameWindows(frame, frame, frame, np.arange(6))
    keys = jax.random.split(jax.random.key(0), 6)
    shifted = jax.device_get(shift_windows(windows, keys, 2))
    np.testing.assert_array_equal(shifted.previous, shifted.next)
    places = np.argwhere(shifted.current[..., 0] == 200)
    assert len(places) == 6
    assert (np.abs(places[:, 1:] - [4, 3]) <= 2).all()
    assert len(np.unique(places[:, 1:], axis=0)) > 2
    assert shift_windows(windows, keys, 0) is windows


def test_streamed_windows_are_of_one_episode_and_drawn_by_step_and_row():
    episode = np.repeat(np.arange(4, dtype=np.int32), (2, 3, 5, 4))
    rows = np.arange(len(episode))
    observation = np.broadcast_to(rows[:, None, None, None], (len(rows), 2, 2, 3)).astype(np.uint8)
    frames = FrameArrays(observation, rows.astype(np.int32), np.zeros(len(rows)), episode)
    whole = stream_windows(frames, 3, range(64), 64)
    for step in range(3):
        windows = whole(step)
        t = windows.action
        assert np.array_equal(windows.previous[:, 0, 0, 0], t - 1)
        assert np.array_equal(windows.next[:, 0, 0, 0], t + 1)
        assert np.array_equal(episode[t - 1], episode[t + 1])
        part = stream_windows(frames, 3, range(16, 32), 64)(step)  # another host's rows
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x[16:32], y), windows, part)
    assert set(np.concatenate([whole(step).action for step in range(20)])) == {3, 6, 7, 8, 11, 12}
    assert not np.array_equal(whole(0).action, whole(1).action)


def test_only_the_rows_of_some_windows_are_kept():
    frames = noise_frames(lengths=(9, 2, 8, 7))
    first, second = draw_steps(frames, 4, seed=0), draw_steps(frames, 3, seed=1)
    kept, steps = only_windows(frames, first, second)
    assert len(kept.observation) < len(frames.observation)
    for before, now in zip((first, second), steps, strict=True):
        jax.tree.map(
            np.testing.assert_array_equal, windows_at(kept, now), windows_at(frames, before)
        )
    assert len(kept.observation) == len({t + k for t in [*first, *second] for k in (-1, 0, 1)})
    real = {frame.tobytes() for frame in windows_at(frames, window_steps(frames.episode)).current}
    assert {x.tobytes() for x in windows_at(kept, window_steps(kept.episode)).current} <= real
