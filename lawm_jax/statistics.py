"""Statistics of few runs over many tasks (Agarwal et al., 2021), in numpy.

Scores come in strata, one array of runs [n] a task (a data set, a game). Every task weighs the same
in an aggregate, however many runs it has. The functions of strata also take resampled ones,
[..., n] each, and return [...].
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

Strata = Sequence[np.ndarray]

# Two-sided 95% quantiles of Student's t for 2, 3, ... values.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
BOOTSTRAP_FROM = 5  # runs of a task; of fewer the bootstrap's interval is far too narrow


def student_half_width(values: Sequence[float]) -> float:
    """Half-width of the 95% interval of a mean of at least two values, by Student's t.

    From eleven values on it is a little too wide: the quantile stays that of ten.
    """
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return STUDENT[min(len(values), 10) - 2] * error


def between(
    value: tuple[float, float], zero: tuple[float, float], one: tuple[float, float]
) -> tuple[float, float]:
    """Where a mean lies from `zero` at 0 to `one` at 1, with the half-width of its interval.

    Each is a mean and its half-width, independent of the others; their errors are propagated to
    first order.

    Raises:
      ZeroDivisionError: `zero` and `one` are equal.
    """
    length = one[0] - zero[0]
    place = (value[0] - zero[0]) / length
    parts = (value[1], (1 - place) * zero[1], place * one[1])
    return place, float(np.linalg.norm(parts)) / abs(length)


def mean(strata: Strata) -> np.ndarray:
    """The mean over tasks of their runs' means."""
    return np.mean([runs.mean(-1) for runs in strata], axis=0)


def interquartile_mean(strata: Strata) -> np.ndarray:
    """The mean of the middle half of all runs (section 4.3).

    It is the mean of the quantile function between 1/4 and 3/4, so that a run at a quartile counts
    by its part within; runs weigh so that tasks weigh the same.
    """
    scores = np.concatenate(strata, axis=-1)
    weights = np.concatenate([np.full(runs.shape, 1 / runs.shape[-1]) for runs in strata], axis=-1)
    order = np.argsort(scores, axis=-1)
    scores, weights = (np.take_along_axis(x, order, axis=-1) for x in (scores, weights))
    end = np.cumsum(weights, axis=-1) / len(strata)
    start = end - weights / len(strata)
    inside = np.clip(np.minimum(end, 0.75) - np.maximum(start, 0.25), 0.0, None)
    return (inside * scores).sum(-1) / inside.sum(-1)


def performance_profile(thresholds: np.ndarray) -> Callable[[Strata], np.ndarray]:
    """The share of runs above each threshold [K], tasks weighing the same (section 4.2).

    Returns a function: strata -> [..., K].
    """

    def profile(strata: Strata) -> np.ndarray:
        shares = [(runs[..., None] > thresholds).mean(-2) for runs in strata]
        return np.mean(shares, axis=0)

    return profile


def bootstrap_interval(
    statistic: Callable[[Strata], np.ndarray],
    strata: Strata,
    errors: Sequence[float] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The 95% percentile interval of a statistic under the stratified bootstrap (section 4.1).

    Runs are drawn with replacement within each task. Those of a task with fewer than BOOTSTRAP_FROM
    of them are then moved together, so that their mean is distributed by Student's t.

    Args:
      statistic: as the functions above; of shape [...] -> low and high of that shape.
      errors: [tasks] standard error of a run's score. A task of a single run is drawn from the
        normal distribution with it, as there is nothing to resample; without errors it stays put.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for n, runs in enumerate(strata):
        if len(runs) == 1 and errors is not None:
            drawn.append(rng.normal(runs[0], errors[n], (samples, 1)))
            continue
        picked = runs[rng.integers(len(runs), size=(samples, len(runs)))]
        if 1 < len(runs) < BOOTSTRAP_FROM:
            error = runs.std(ddof=1) / len(runs) ** 0.5
            # Every quantile once, in random order: chance would blur tails as long as these.
            quantile = (rng.permutation(samples) + 0.5) / samples
            centre = runs.mean() + error * stats.t.ppf(quantile, len(runs) - 1)
            picked = picked - picked.mean(-1, keepdims=True) + centre[:, None]
        drawn.append(picked)
    low, high = np.quantile(statistic(drawn), (0.025, 0.975), axis=0)
    return low, high
