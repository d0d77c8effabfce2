"""Aggregate statistics against slow references of a few lines."""

import numpy as np
from scipy import stats

from lawm_jax import statistics

RNG = np.random.default_rng(7)
EQUAL = [RNG.normal(n, 1.0, 8) for n in range(3)]
UNEQUAL = [RNG.normal(n, 1.0, size) for n, size in enumerate((1, 2, 3))]


def replicated(strata):
    """Every task with as many runs: 12 is a multiple of all their numbers, and the pool of 4."""
    return np.concatenate([np.repeat(runs, 12 // len(runs)) for runs in strata])


def test_interquartile_mean_is_the_trimmed_mean_with_tasks_weighing_the_same():
    pooled = np.concatenate(EQUAL)
    np.testing.assert_allclose(statistics.interquartile_mean(EQUAL), stats.trim_mean(pooled, 0.25))
    expected = stats.trim_mean(replicated(UNEQUAL), 0.25)
    np.testing.assert_allclose(statistics.interquartile_mean(UNEQUAL), expected)
    np.testing.assert_allclose(statistics.interquartile_mean([np.array([0.0, 1.0, 5.0])]), 1.5)


def test_performance_profile_is_the_share_of_runs_above():
    thresholds = np.linspace(-2, 4, 13)
    profile = statistics.performance_profile(thresholds)(UNEQUAL)
    expected = [np.mean(replicated(UNEQUAL) > threshold) for threshold in thresholds]
    np.testing.assert_allclose(profile, expected)


def test_a_mean_between_two_others_has_their_errors_too():
    place, half = statistics.between((7.4, 0.4), (4.9, 0.5), (10.0, 0.1))
    normal = lambda mean, half: RNG.normal(mean, half / 1.96, 200_000)
    value, zero, one = normal(7.4, 0.4), normal(4.9, 0.5), normal(10.0, 0.1)
    drawn = (value - zero) / (one - zero)
    np.testing.assert_allclose([place, half], [2.5 / 5.1, 1.96 * drawn.std()], rtol=0.02)


def test_mean_weighs_tasks_not_runs():
    np.testing.assert_allclose(statistics.mean([np.array([1.0, 3.0]), np.array([8.0])]), 5.0)


def test_bootstrap_equals_a_loop_over_samples_and_repeats_itself():
    reference = np.random.default_rng(3)
    draws = [[], []]
    for runs, drawn in zip(EQUAL[:2], draws, strict=True):
        for index in reference.integers(len(runs), size=(200, len(runs))):
            drawn.append([runs[i] for i in index])
    values = [
        stats.trim_mean(np.concatenate([a, b]), 0.25) for a, b in zip(*draws, strict=True)
    ]
    expected = np.percentile(values, [2.5, 97.5])
    for _ in range(2):
        interval = statistics.bootstrap_interval(
            statistics.interquartile_mean, EQUAL[:2], samples=200, seed=3
        )
        np.testing.assert_allclose(interval, expected)


def test_bootstrap_of_many_runs_agrees_with_the_normal_interval():
    strata = [RNG.normal(0.0, 1.0, 400), RNG.normal(5.0, 2.0, 400)]
    low, high = statistics.bootstrap_interval(statistics.mean, strata)
    half = 1.96 * np.sqrt(sum(runs.var() / 400 for runs in strata)) / 2
    centre = statistics.mean(strata)
    np.testing.assert_allclose([low, high], [centre - half, centre + half], atol=0.15 * half)


def test_a_task_of_one_run_varies_by_its_error_only_where_that_is_known():
    strata = [np.array([3.0]), np.array([1.0, 1.0])]
    assert statistics.bootstrap_interval(statistics.mean, strata) == (2.0, 2.0)
    low, high = statistics.bootstrap_interval(statistics.mean, strata, errors=[2.0, 9.0])
    np.testing.assert_allclose([low, high], [2 - 1.96, 2 + 1.96], atol=0.15)


def test_the_mean_of_few_runs_is_drawn_by_students_t():
    runs = np.array([400.0, 430.0, 490.0])
    for strata, share in (([runs], 1.0), ([runs, np.array([7.0])], 0.5)):
        low, high = statistics.bootstrap_interval(statistics.mean, strata)
        half = share * statistics.student_half_width(runs)
        centre = statistics.mean(strata)
        np.testing.assert_allclose([low, high], [centre - half, centre + half], rtol=0.01)


def test_every_statistic_takes_resampled_strata():
    drawn = [np.stack([runs, runs + 1]) for runs in UNEQUAL]
    thresholds = np.array([0.0, 1.0])
    for statistic in (
        statistics.mean, statistics.interquartile_mean, statistics.performance_profile(thresholds)
    ):
        shifted = [runs + 1 for runs in UNEQUAL]
        expected = [statistic(UNEQUAL), statistic(shifted)]
        np.testing.assert_allclose(statistic(drawn), expected)


def test_students_interval():
    values = [400.0, 430.0, 490.0]
    low, high = stats.t.interval(0.95, 2, loc=0.0, scale=stats.sem(values))
    half = statistics.student_half_width(values)
    np.testing.assert_allclose([-half, half], [low, high], rtol=1e-3)
