"""Single transitions on the device: what methods without memory learn from."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from lawm_jax.data.normaliser import Normaliser
from lawm_jax.data.trajectory import Trajectory


class Transitions(NamedTuple):
    """M transitions: observation [M, O], action [M, A], reward [M], next_observation [M, O].

    None is terminal: episodes of the control suite end by their time limit only.
    """

    observation: jax.Array
    action: jax.Array
    reward: jax.Array
    next_observation: jax.Array


def window_rows(lengths: Sequence[int], context: int) -> np.ndarray:
    """Where the windows of all steps lie in the trajectories' concatenated observations.

    Returns:
      [sum(lengths), W] rows; a window that reaches past its trajectory's end repeats the
      observation there.
    """
    offsets = np.arange(-context, context + 2)
    rows, first = [], 0
    for length in lengths:
        rows.append(first + np.clip(np.arange(length)[:, None] + offsets, 0, length))
        first += length + 1
    return np.concatenate(rows)


def transitions(
    trajectories: Sequence[Trajectory], normaliser: Normaliser, multiple_of: int = 1
) -> Transitions:
    """Every step of the trajectories, all of which have actions, with normalised observations."""
    observation = np.asarray(normaliser(np.concatenate([t.observation for t in trajectories])))
    before, after = window_rows([t.length for t in trajectories], context=0).T
    everything = Transitions(
        observation=observation[before],
        action=np.concatenate([t.action for t in trajectories]),
        reward=np.concatenate([t.reward for t in trajectories]),
        next_observation=observation[after],
    )
    return fill(everything, multiple_of)


def fill(rows: NamedTuple, multiple_of: int) -> NamedTuple:
    """Fills arrays [M, ...] up to a multiple of `multiple_of` (devices) by repeating rows."""
    count = len(rows[0])
    if not count % multiple_of:
        return rows
    index = np.arange(-(-count // multiple_of) * multiple_of) % count
    return jax.tree.map(lambda x: x[index], rows)
