"""Latent actions in the plane, for a picture."""

import numpy as np


def plane(x: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Points [M, 2] for rows [M, Z], and the method's name.

    UMAP where umap-learn is installed, which is an extra; otherwise the first two principal
    components, which show less of the clusters. The same seed gives the same points.
    """
    try:
        from umap import UMAP
    except ImportError:
        centred = x - x.mean(0)
        _, _, axes = np.linalg.svd(centred, full_matrices=False)
        return centred @ axes[:2].T, "PCA"
    # Few neighbours where there are few rows; a fixed seed allows one thread only.
    neighbours = min(15, len(x) - 1)
    return UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(x), "UMAP"
