"""Grids of cells read off a frame, and shortest ways through them.

A frame shows a square of `size` x `size` cells; cells are numbered row by row from the upper left
corner. Neighbours are the four adjacent cells.
"""

from collections.abc import Callable, Iterable
from functools import cache, lru_cache, wraps
from typing import TypeVar

import numpy as np

from lawm_jax.envs.procgen import DOWN, LEFT, RIGHT, UP

MOVES = ((LEFT, 0, -1), (RIGHT, 0, 1), (UP, -1, 0), (DOWN, 1, 0))  # action, row, column
FAR = 10**6  # the distance of what cannot be reached
REMEMBERED = 1024  # frames: more than environments that are played side by side

T = TypeVar("T")


def remembering(read: Callable[[np.ndarray], T]) -> Callable[[np.ndarray], T]:
    """A function of a frame [64, 64, 3] uint8 that answers at once for one that it has just seen.

    Some experts read every frame twice: as the frame, and a step later as the one before. Answers
    are shared and must not be changed.
    """

    @lru_cache(REMEMBERED)
    def read_bytes(frame: bytes) -> T:
        return read(np.frombuffer(frame, np.uint8).reshape(64, 64, 3))

    @wraps(read)
    def wrapped(frame: np.ndarray) -> T:
        return read_bytes(frame.tobytes())

    return wrapped


@cache
def neighbours(size: int) -> list[list[tuple[int, int]]]:
    """For each cell, the (action, cell) of its neighbours on the grid."""
    return [
        [
            (action, (row + down) * size + column + right)
            for action, down, right in MOVES
            if 0 <= row + down < size and 0 <= column + right < size
        ]
        for row in range(size)
        for column in range(size)
    ]


@cache
def _cell_of_pixel(size: int) -> np.ndarray:
    starts = np.round(np.arange(1, size) * 64 / size)
    line = np.searchsorted(starts, np.arange(64), "right")
    return (line[:, None] * size + line).ravel()


def colour_codes(frame: np.ndarray) -> np.ndarray:
    """Packs a frame [64, 64, 3] uint8 into one number a pixel, as in 0xRRGGBB; [64, 64] int32."""
    red, green, blue = (frame[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def count(labels: np.ndarray, size: int, num_labels: int) -> np.ndarray:
    """Counts the pixels of each label 0 .. num_labels - 1 in each cell.

    Args:
        labels: [64, 64], of whole numbers.
        size: cells a side.
        num_labels: how many labels there are.

    Returns:
        [num_labels, size * size] int.
    """
    area = size * size
    index = labels.ravel().astype(np.int64) * area + _cell_of_pixel(size)
    return np.bincount(index, minlength=num_labels * area).reshape(num_labels, area)


def distances(size: int, targets: Iterable[int], passable: Callable[[int], bool]) -> list[int]:
    """Steps from each cell to the nearest target over passable cells; FAR where there is no way.

    Targets and the cell that one starts from need not be passable.
    """
    steps = [FAR] * size**2
    front = list(targets)
    for cell in front:
        steps[cell] = 0
    around = neighbours(size)
    for cell in front:  # grows while it is read
        for _, other in around[cell]:
            if steps[other] == FAR:
                steps[other] = steps[cell] + 1
                if passable(other):
                    front.append(other)
    return steps
