"""How much of the state space sets of observations cover, measured side by side.

Both measures compare sets of equally many observations, each dimension in units of its deviation
over all sets together: what one set counts depends on the others, so compare within one call only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CHUNK = 1000  # rows of a distance matrix at a time: bounds memory


class Coverage(NamedTuple):
    """cells: occupied cells of a grid; log_distance: mean log distance to the k-th neighbour."""

    cells: int
    log_distance: float


def coverage(
    sets: Sequence[np.ndarray], components: int = 3, bins: int = 20, neighbour: int = 5
) -> list[Coverage]:
    """Measures every set.

    Args:
        sets: [S, O] each, the same S > neighbour.
        components: the grid's dimensions, the first principal components of all observations.
        bins: its bins a dimension, from the 0.1st to the 99.9th percentile of all observations;
            what lies outside counts to the outermost bins.
        neighbour: k. Times O, and up to a constant, the mean log distance to the k-th nearest
            neighbour of the same set is an estimate of its entropy (Singh et al., 2003).

    Raises:
        ValueError: the sets' shapes differ.
    """
    if len({x.shape for x in sets}) != 1:
        raise ValueError(f"sets of one shape are compared, not {[x.shape for x in sets]}")
    pooled = np.concatenate(sets).astype(np.float64)
    std = pooled.std(0)
    mean, scale = pooled.mean(0), np.where(std < 1e-6, 1.0, std)
    pooled = (pooled - mean) / scale
    _, axes = np.linalg.eigh(pooled.T @ pooled)  # in the order of growing variance
    axes = axes[:, ::-1][:, :components]
    low, high = np.percentile(pooled @ axes, [0.1, 99.9], axis=0)
    measured = []
    for x in sets:
        x = (x - mean) / scale
        place = np.floor((x @ axes - low) / (high - low) * bins)
        cells = np.unique(np.clip(place, 0, bins - 1), axis=0)
        measured.append(Coverage(len(cells), float(np.log(_distance(x, neighbour)).mean())))
    return measured


def _distance(x: np.ndarray, neighbour: int) -> np.ndarray:
    """[S] distance of each row to its k-th nearest other row."""
    squares, kept = np.sum(x**2, 1), []
    for first in range(0, len(x), CHUNK):
        part = x[first : first + CHUNK]
        squared = squares[first : first + CHUNK, None] + squares - 2.0 * part @ x.T
        kept.append(np.partition(squared, neighbour, axis=1)[:, neighbour])  # the 0th is itself
    return np.sqrt(np.maximum(np.concatenate(kept), 1e-12))
