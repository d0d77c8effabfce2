"""Trajectories on the device, and windows drawn from them inside the train step.

A window of L observations holds the L - 1 actions and rewards between them. It never leaves its
trajectory. Unlabelled trajectories are stored without actions, so nothing can read them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.data.trajectory import Trajectory
from lawm_jax.errors import InputError


class Windows(NamedTuple):
    """Windows, time leading: observation [L, B, O], action [L-1, B, A] or None, reward [L-1, B]."""

    observation: jax.Array
    action: jax.Array | None
    reward: jax.Array


class TrajectoryArrays(NamedTuple):
    """N trajectories padded to T steps: observation [N, T+1, O], action [N, T, A] or None, reward.

    length [N] int32 is the number of steps of each.
    """

    observation: jax.Array
    action: jax.Array | None
    reward: jax.Array
    length: jax.Array


class Split(NamedTuple):
    """Indices into a data set: which trajectories train with, without actions, or not at all."""

    labelled: np.ndarray
    unlabelled: np.ndarray
    heldout: np.ndarray


def split(has_action: Sequence[bool], label_fraction: float, heldout_fraction: float,
          seed: int) -> Split:
    """Draws held-out and labelled trajectories by seed: the same for every method.

    One permutation orders the trajectories that have actions; the first are held out, the next
    labelled, so a larger fraction contains a smaller one. Trajectories that come without actions
    are unlabelled. A fraction of 1 labels all that is not held out.

    Args:
      has_action: which trajectories come with actions.
      label_fraction: share of all trajectories that keep their actions; where fewer than that come
        with actions, all of these do.
      heldout_fraction: share of those with actions that is kept out of training.
      seed: of the permutation.

    Raises:
      InputError: a fraction out of range, or so small that no trajectory is labelled or held out.
    """
    total = len(has_action)
    for name, fraction in (("label", label_fraction), ("heldout", heldout_fraction)):
        if not 0.0 < fraction <= 1.0:
            raise InputError(f"data.{name}_fraction is {fraction}, which is not in (0, 1]")
    if round(label_fraction * total) < 1:
        raise InputError(
            f"data.label_fraction {label_fraction} of {total} trajectories selects none; "
            f"{1 / total:.3g} selects one"
        )
    with_action = np.flatnonzero(has_action)
    if len(with_action) < 2:
        raise InputError(
            f"{len(with_action)} of {total} trajectories have actions: at least 2 are needed, one "
            "to hold out and one to learn from"
        )
    order = np.random.default_rng(seed).permutation(with_action)
    held = min(max(1, round(heldout_fraction * len(with_action))), len(with_action) - 1)
    heldout, rest = np.split(order, [held])
    labelled, unlabelled = np.split(rest, [round(label_fraction * total)])
    without = np.setdiff1d(np.arange(total), with_action)
    return Split(np.sort(labelled), np.sort(np.concatenate([unlabelled, without])),
                 np.sort(heldout))


def stack(trajectories: Sequence[Trajectory], *, actions: bool, multiple_of: int = 1,
          steps: int = 0) -> TrajectoryArrays:
    """Pads trajectories to one length and puts them into arrays, without actions if told so.

    The length is the longest one's, or `steps` if that is more. The count is filled up to a
    multiple of `multiple_of` (devices) by repeating trajectories.
    """
    count = -len(trajectories) % multiple_of
    filled = [*trajectories, *(trajectories[i % len(trajectories)] for i in range(count))]
    longest = max(steps, *(t.length for t in filled))

    def pad(x: np.ndarray, length: int) -> np.ndarray:
        return np.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1))

    return TrajectoryArrays(
        observation=np.stack([pad(t.observation, longest + 1) for t in filled]),
        action=np.stack([pad(t.action, longest) for t in filled]) if actions else None,
        reward=np.stack([pad(t.reward, longest) for t in filled]),
        length=np.array([t.length for t in filled], np.int32),
    )


def check_window(data: TrajectoryArrays, window: int) -> None:
    """Raises InputError if a trajectory is shorter than a window of `window` observations."""
    shortest = int(np.min(data.length)) + 1
    if shortest < window:
        raise InputError(
            f"a trajectory holds {shortest} observations, fewer than a window of {window}: "
            "shorten world_model.window or drop short trajectories"
        )


def sample_windows(data: TrajectoryArrays, keys: jax.Array, window: int) -> Windows:
    """Draws one window a key, [B] keys, uniformly over the steps of all trajectories.

    A window's start is drawn from -(window - 1) up to the trajectory's end and moved inside the
    trajectory, so that its first and last steps are seen as often as the others: evaluation starts
    at the first, with nothing remembered. Of a trajectory too short for a window, such as a row of
    a replay buffer that is yet to be filled, none is drawn; one at least must be long enough.
    """

    def one(key: jax.Array) -> Windows:
        fits = data.length + 1 >= window
        weight = jnp.cumsum(jnp.where(fits, data.length + window, 0))
        draw = jax.random.randint(key, (), 0, weight[-1])
        row = jnp.sum(weight <= draw)  # searchsorted without its loop
        offset = draw - (weight[row] - data.length[row] - window)
        start = jnp.clip(offset - (window - 1), 0, data.length[row] + 1 - window)

        def cut(x: jax.Array, size: int) -> jax.Array:
            origin = (row, start, *(0,) * (x.ndim - 2))
            return jax.lax.dynamic_slice(x, origin, (1, size, *x.shape[2:]))[0]

        return Windows(
            observation=cut(data.observation, window),
            action=None if data.action is None else cut(data.action, window - 1),
            reward=cut(data.reward, window - 1),
        )

    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), jax.vmap(one)(keys))
