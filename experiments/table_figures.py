"""Figures of the table: bars, aggregates, return against label fraction, LAPO's curves."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from experiments.raw_results import (
    Cells,
    Estimate,
    Result,
    check_one_data_set,
    estimate,
    lapo_method,
    placed,
    read,
)
from experiments.table_report import (
    LABELS,
    NAMES,
    SCARCE,
    Rows,
    aggregates,
    rows_of,
    table_estimates,
)
from lawm_jax import plots, statistics
from lawm_jax.errors import InputError

# What a method is called at 100% labels; LAWM needs trajectories without.
ORACLE_OF = {"c_lap": "c_lap_oracle", "idm_td3_bc": "td3_bc_oracle"}
LAPO_NAMES = {
    "lapo": "LAPO", "lapo_without_vq": "LAPO without VQ", "behaviour_cloning": "cloning, all labels"
}
THRESHOLDS = np.linspace(0.0, 1000.0, 101)  # returns


def write_figures(cells: Cells, out: Path) -> list[Path]:
    """Draws whatever the raw results suffice for; returns the files."""
    tables = {labels: rows for labels in LABELS if (rows := rows_of(cells, labels))}
    written = []
    for labels, rows in tables.items():
        written.append(out / f"returns_{labels.removesuffix('%')}pct.png")
        panels = {name: {"": row} for name, row in table_estimates(rows).items() if row}
        plots.bars(written[-1], panels, "return / 10", NAMES)
    means = {title(x): found for x, rows in tables.items() if (found := _means(rows))}
    if means:
        written += [out / "interquartile_means.png", out / "performance_profiles.png"]
        plots.intervals(written[-2], means, "interquartile mean of return / 10", NAMES)
        profiles = {title(x): _profiles(rows) for x, rows in tables.items() if title(x) in means}
        plots.interval_curves(
            written[-1], profiles, "return / 10", "share of runs above", NAMES, log=False, band=True
        )
    curves = label_curves(cells)
    if curves:
        written.append(out / "label_fractions.png")
        plots.interval_curves(
            written[-1], curves, "trajectories with actions, %", "return / 10", NAMES
        )
    return written


def write_lapo(results: Path, out: Path) -> list[Path]:
    """Draws LAPO's aggregate curves where there are results of it; returns the files.

    Raises:
      InputError: the results on a game come from different data, or from policies that were sampled
        at different temperatures.
    """
    found = read(results, lapo=True)
    fingerprints, temperatures = defaultdict(set), defaultdict(set)
    for result in found:
        game = result["config"]["task"]
        fingerprints[game].add(result["dataset"]["fingerprint"])
        temperatures[game].add(result["config"]["evaluation"]["temperature"])
    check_one_data_set(results, fingerprints)
    for game, values in temperatures.items():
        if len(values) > 1:
            raise InputError(
                f"{results}: {game} has results with evaluation.temperature "
                f"{' and '.join(map(str, sorted(values)))}; keep them in different directories"
            )
    panels = lapo_panels(found)
    if not panels:
        return []
    path = out / "lapo.png"
    plots.interval_curves(
        path, panels, "labelled transitions", "return (random 0, data policy 1)", LAPO_NAMES
    )
    return [path]


def title(labels: str) -> str:
    """What a panel is called."""
    return f"{labels} labels"


def _means(rows: Rows) -> dict[str, Estimate]:
    means = aggregates(rows, statistics.interquartile_mean)
    return {column: mean.scaled(0.1) for column, mean in means.items()}


def _profiles(rows: Rows) -> dict[str, dict[float, Estimate]]:
    """Column -> return / 10 -> share of the runs above it."""
    found = aggregates(rows, statistics.performance_profile(THRESHOLDS))
    return {
        column: {
            threshold / 10: Estimate(*values)
            for threshold, *values in zip(THRESHOLDS, *profile, strict=True)
        }
        for column, profile in found.items()
    }


def label_curves(cells: Cells) -> dict[str, dict[str, dict[float, Estimate]]]:
    """Data set -> method -> % of labels -> return / 10, where a method has at least two fractions.

    The oracle of C-LAP is its point at 100%; that of IDM-TD3+BC is TD3+BC's, as nothing is left to
    label.
    """
    panels: dict[str, dict[str, dict[float, Estimate]]] = {}
    for (task, dataset, labels), by_method in sorted(cells.items()):
        for method in SCARCE:
            if method == "td3_bc":
                continue
            runs = by_method.get(ORACLE_OF.get(method) if labels == "100%" else method)
            if runs:
                curves = panels.setdefault(f"{task}/{dataset}", {}).setdefault(method, {})
                curves[float(labels.removesuffix("%"))] = estimate(runs).scaled(0.1)
    several = {
        name: {method: points for method, points in curves.items() if len(points) > 1}
        for name, curves in panels.items()
    }
    return {name: curves for name, curves in several.items() if curves}


# ---- LAPO


def lapo_panels(results: list[Result]) -> dict[str, dict[str, dict[float, Estimate]]]:
    """Games -> method -> curve: LAPO over all its games, and all methods over those that all have.

    So nothing is compared with the mean over other games.
    """
    games: dict[str, set[str]] = defaultdict(set)
    for result in results:
        games[lapo_method(result["config"])].add(result["config"]["task"])
    panels = {}
    for methods in ({"lapo"} & games.keys(), games.keys()):
        shared = set.intersection(*(games[method] for method in methods)) if methods else set()
        curves = lapo_curves(
            r for r in results
            if r["config"]["task"] in shared and lapo_method(r["config"]) in methods
        )
        if curves:
            panels[f"mean over {', '.join(sorted(shared))}"] = curves
    return panels


def lapo_curves(results: Iterable[Result]) -> dict[str, dict[float, Estimate]]:
    """Method -> labels -> mean normalised return over games (random policy 0, data 1).

    At the label counts that every run of the method has; the interval is the stratified bootstrap
    over games. Behaviour cloning on all labels is a level line at the counts of LAPO.
    """
    by_method: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        method, game = lapo_method(result["config"]), result["config"]["task"]
        if result.get("offline_decoding") and _normaliser(result) > 0:
            by_method[method][game].append(result)
    curves: dict[str, dict[float, Estimate]] = {}
    for method, games in by_method.items():
        runs = [run for found in games.values() for run in found]
        counts = [{row["labels"] for row in run["offline_decoding"]} for run in runs]
        curves[method] = {
            count: _over_games(games, lambda run, count=count: _decoding(run, count))
            for count in sorted(set.intersection(*counts))
        }
    plain = by_method.get("lapo", {})
    cloned = {g: [r for r in runs if "behaviour_cloning" in r] for g, runs in plain.items()}
    if cloned and all(cloned.values()):
        level = _over_games(cloned, lambda run: run["behaviour_cloning"])
        curves["behaviour_cloning"] = dict.fromkeys(curves["lapo"], level)
    return {method: points for method, points in curves.items() if points}


def _normaliser(result: Result) -> float:
    return result["data_policy"]["return_mean"] - result["random_policy"]["return_mean"]


def _decoding(result: Result, count: int) -> dict[str, float]:
    return next(row for row in result["offline_decoding"] if row["labels"] == count)


def _over_games(
    games: dict[str, list[Result]], row_of: Callable[[Result], dict[str, float]]
) -> Estimate:
    """The mean over games of what `row_of` finds in a run, the random policy at 0, the data's at 1.

    row_of: run -> what has return_mean and return_ci95, as the two references do.
    """
    strata, errors = [], []
    for runs in games.values():
        places = [placed(row_of(run), run["random_policy"], run["data_policy"]) for run in runs]
        strata.append(np.array([place for place, _ in places]))
        errors.append(places[0][1] / 1.96)
    low, high = statistics.bootstrap_interval(statistics.mean, strata, errors)
    return Estimate(float(statistics.mean(strata)), float(low), float(high))
