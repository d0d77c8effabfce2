"""Frames on the device, and the windows of three that LAPO learns from.

An episode of T actions is T + 1 rows, episodes one after another. The window of step t is
(o_{t-1}, o_t, o_{t+1}, a_t): it exists where all three frames are of one episode.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.errors import InputError


class FrameArrays(NamedTuple):
    """Frames of N steps, on the host: consecutive ones, or the rows of some windows.

    observation: [N, H, W, 3] uint8.
    action: [N] int32, taken at this frame; -1 at an episode's last frame, which has none.
    reward: [N] float32, earned by that action; 0 at the last frame.
    episode: [N] int32, the episode's index, non-decreasing.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    episode: np.ndarray


class FrameShards(NamedTuple):
    """What devices hold of the frames: D equal parts, one after another on every leading axis.

    observation: [D * rows, H * W * 3] uint8, H = W. Flat, as a TPU would pad a last axis of 3 to
      128 and, to gather from it, bring all frames into another order at every dispatch.
    action: [D * rows] int32.
    steps: [D * S] int32, the t of every window of a part, counted from the part's first row and
      filled up by repetition to the S of the part that has most.
    count: [D] int32, how many of a part's steps are not filling.
    """

    observation: jax.Array
    action: jax.Array
    steps: jax.Array
    count: jax.Array


class FrameWindows(NamedTuple):
    """B windows: previous, current and next frame [B, H, W, 3] uint8, action [B] int32."""

    previous: jax.Array
    current: jax.Array
    next: jax.Array
    action: jax.Array


def window_steps(episode: np.ndarray) -> np.ndarray:
    """Every t that has a window, int32: rows t - 1 and t + 1 are of one episode."""
    return (np.flatnonzero(episode[:-2] == episode[2:]) + 1).astype(np.int32)


def shard_frames(frames: FrameArrays, devices: int) -> FrameShards:
    """Cuts frames into equal parts, at any row, for `runner.shard` to divide among the devices.

    The frames are not copied; the few rows that would make the parts unequal are left out.

    Raises:
      InputError: a part holds no window.
    """
    rows = len(frames.episode) // devices
    parts = frames.episode[: devices * rows].reshape(devices, rows)
    steps = [window_steps(part) for part in parts]
    count = np.array([len(part) for part in steps], np.int32)
    if not count.all():
        raise InputError(
            f"{len(frames.episode)} frames, cut into {devices} parts, leave a device without three "
            "frames of one episode; collect more, or use fewer devices"
        )
    return FrameShards(
        observation=frames.observation[: devices * rows].reshape(devices * rows, -1),
        action=frames.action[: devices * rows],
        steps=np.concatenate([np.resize(part, count.max()) for part in steps]),
        count=count,
    )


def sample_windows(shard: FrameShards, keys: jax.Array) -> FrameWindows:
    """Draws one window a key, [B] keys, uniformly from the windows of this device's part."""
    draw = lambda key: jax.random.randint(key, (), 0, shard.count[0])
    return windows_at(shard, shard.steps[jax.vmap(draw)(keys)])


def windows_at(frames: FrameArrays | FrameShards, steps: jax.Array | np.ndarray) -> FrameWindows:
    """The windows of the given steps [B], on the device or on the host as the frames are."""
    def at(rows: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
        frame = frames.observation[rows]
        if frame.ndim == 4:
            return frame
        side = math.isqrt(frame.shape[1] // 3)
        return frame.reshape(-1, side, side, 3)

    return FrameWindows(at(steps - 1), at(steps), at(steps + 1), frames.action[steps])


def only_windows(
    frames: FrameArrays, *windows: np.ndarray
) -> tuple[FrameArrays, tuple[np.ndarray, ...]]:
    """A copy of the rows that some windows need, and the windows' steps in it.

    For where all frames went to the devices and the host looks at a few windows only. Rows that
    were no neighbours are of different episodes in it.

    Args:
      windows: steps [B] of each group of windows, as `windows_at` takes them.
    """
    around = [steps + offset for steps in windows for offset in (-1, 0, 1)]
    rows = np.unique(np.concatenate(around))
    kept = FrameArrays(*(x[rows] for x in frames))
    apart = (np.diff(rows) != 1) | (np.diff(kept.episode) != 0)
    kept = kept._replace(episode=np.append(0, np.cumsum(apart)).astype(np.int32))
    # A window's rows are neighbours among those as well: nothing lies between them.
    return kept, tuple(np.searchsorted(rows, steps).astype(np.int32) for steps in windows)


def stream_windows(
    frames: FrameArrays, seed: int, rows: range, total: int
) -> Callable[[int], FrameWindows]:
    """step -> the windows of these rows of that step's batch of `total`, drawn on the host.

    Each is uniform over all windows, as `sample_windows` draws them from a device's part.
    """
    steps = window_steps(frames.episode)

    def draw(step: int) -> FrameWindows:
        chosen = np.random.default_rng([seed, step]).integers(len(steps), size=total)
        return windows_at(frames, steps[chosen[rows.start : rows.stop]])

    return draw


def draw_steps(frames: FrameArrays, count: int, seed: int) -> np.ndarray:
    """Draws `count` different windows by seed: their t, int32 [count].

    Each seed has one order of all windows, so a larger draw contains a smaller one.

    Raises:
      InputError: there are not so many windows, or none is asked for.
    """
    steps = window_steps(frames.episode)
    if not 1 <= count <= len(steps):
        raise InputError(
            f"{count} transitions asked for; the data's {len(frames.episode)} frames hold "
            f"{len(steps)}: choose a number from 1 to that"
        )
    return np.random.default_rng(seed).permutation(steps)[:count]


def shift_windows(windows: FrameWindows, keys: jax.Array, pixels: int) -> FrameWindows:
    """Translates each window, one key a row, by up to `pixels`; edge pixels fill the gap."""
    if not pixels:
        return windows

    def one(key: jax.Array, *frames: jax.Array) -> tuple[jax.Array, ...]:
        corner = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        border = ((pixels, pixels), (pixels, pixels), (0, 0))
        return tuple(
            jax.lax.dynamic_slice(jnp.pad(frame, border, "edge"), (*corner, 0), frame.shape)
            for frame in frames
        )

    return FrameWindows(*jax.vmap(one)(keys, *windows[:3]), windows.action)
