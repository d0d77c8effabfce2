"""Latent actions in the plane, for a picture."""

import numpy as np

FEWEST = 10  # rows that UMAP is given
SPREAD = 0.01  # of equal rows' points, in shares of the picture


def plane(x: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Points [M, 2] for rows [M, Z], and the method's name.

    UMAP where umap-learn is installed, which is an extra, and there are rows enough; otherwise the
    first two principal components, which show less of the clusters. Equal rows, as quantised
    latents are, come to one place, where they are spread a little at random, as UMAP would make a
    cluster of them whose inner distances mean nothing. The same seed gives the same points.
    """
    # Straight-through estimates of one code differ in their last bits.
    different, which = np.unique(np.round(x, 4), axis=0, return_inverse=True)
    points, method = _plane(different, seed)
    points = points[which.reshape(-1)]
    if len(different) < len(x):
        size = SPREAD * max(np.ptp(points, axis=0).max(), 1e-3)
        points = points + size * np.random.default_rng(seed).normal(size=points.shape)
    return points, method


def _plane(x: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """The same for different rows."""
    if len(x) >= FEWEST:
        try:
            from umap import UMAP
        except ImportError:
            pass
        else:  # a fixed seed allows one thread only
            umap = UMAP(n_neighbors=min(15, len(x) - 1), random_state=seed, n_jobs=1)
            return umap.fit_transform(x), "UMAP"
    centred = np.pad(x - x.mean(0), ((0, 0), (0, max(2 - x.shape[1], 0))))
    _, axes = np.linalg.eigh(centred.T @ centred)  # of rising variance
    return centred @ axes[:, :-3:-1], "PCA"
