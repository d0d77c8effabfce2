"""The README's table of results, rebuilt from the raw results of runs.

    python -m experiments.report results/dmc              prints the table
    python -m experiments.report results/dmc --add=DIR    copies DIR/results.json into it
    python -m experiments.report results/dmc --plot=FILE  draws it

A row is a task, data set and label fraction; a cell the mean final return over seeds with a 95%
interval: over seeds (Student's t) where there are several, else over the one run's episodes.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from experiments.launch import BAD_INPUT
from lawm_jax.errors import InputError

# What is known of the paper's Table 1 at 5% labels: LAWM's return / 10.
PAPER = {
    ("walker_walk", "expert", "5%"): "94.3 ± 0.6",
    ("cheetah_run", "expert", "5%"): "52.4 ± 23.5",
}
# Two-sided 95% quantiles of Student's t for 2, 3, ... values.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def mean_and_interval(results: list[dict[str, Any]]) -> tuple[float, float]:
    """Mean final return and the half-width of its 95% interval, as the module says."""
    means = [result["evaluation"]["return_mean"] for result in results]
    if len(means) == 1:
        return means[0], results[0]["evaluation"]["return_ci95"]
    return float(np.mean(means)), student_interval(means)


def difference(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> tuple[float, float] | None:
    """Mean of a's return minus b's over the seeds that both have, with its 95% interval.

    Seeds share their labelled trajectories, so the difference is taken seed by seed (paired). None
    where no seed is shared.
    """
    other = {result["seed"]: result["evaluation"] for result in b}
    pairs = [(r["evaluation"], other[r["seed"]]) for r in a if r["seed"] in other]
    gains = [x["return_mean"] - y["return_mean"] for x, y in pairs]
    if len(gains) < 2:
        return next(
            ((g, float(np.hypot(x["return_ci95"], y["return_ci95"])))
             for g, (x, y) in zip(gains, pairs, strict=True)),
            None,
        )
    return float(np.mean(gains)), student_interval(gains)


def student_interval(values: list[float]) -> float:
    """Half-width of the 95% interval of a mean over seeds (Student's t)."""
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return STUDENT[min(len(values), 10) - 2] * error


def file_name(result: dict[str, Any]) -> str:
    """The name under which a result is kept: data set, method, labels, seed."""
    config = result["config"]
    dataset = result["dataset"]["name"].replace("/", "_")
    labels = f"{100 * config['data']['label_fraction']:g}pct"
    return f"{dataset}_{config['method']}_{labels}_seed{result['seed']}.json"


def add(directory: Path, workdir: Path) -> list[Path]:
    """Copies a finished run's results.json into the directory of raw results, a file a seed.

    Raises:
      InputError: the run is not finished or no run of the main job, or the directory holds the
        result of another configuration under this name.
    """
    source = workdir / "results.json"
    if not source.exists():
        raise InputError(f"{source} not found: the run is not finished")
    result = json.loads(source.read_text())
    if "evaluation" not in result:
        raise InputError(f"{source} is not the result of a policy that was evaluated")
    ones = of_seeds(result)
    targets = [directory / file_name(one) for one in ones]
    for target, one in zip(targets, ones, strict=True):
        if target.exists() and json.loads(target.read_text())["config"] != one["config"]:
            raise InputError(
                f"{target} holds the result of another configuration; use another directory"
            )
    directory.mkdir(parents=True, exist_ok=True)
    for target, one in zip(targets, ones, strict=True):
        target.write_text(json.dumps(one, indent=1) + "\n")
    return targets


def of_seeds(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A result for each seed of a run whose seeds learned side by side (num_seeds)."""
    shared = {name: value for name, value in result.items() if name != "seeds"}
    return [
        shared | {
            "seed": one["seed"],
            "evaluation": one["evaluation"],
            "metrics": result["metrics"] | one["metrics"],
        }
        for one in result.get("seeds", [result])
    ]


Cells = dict[tuple[str, str, str], dict[str, list[dict[str, Any]]]]


def _cells(directory: Path) -> Cells:
    """The raw results of a directory by (task, data set, labels) and method."""
    cells: dict[tuple, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(directory.glob("*.json")):
        result = json.loads(path.read_text())
        config, oracle = result["config"], result["config"]["data"]["label_fraction"] == 1.0
        method = config["method"] + ("_oracle" if oracle else "")
        labels = "100%" if oracle else f"{100 * config['data']['label_fraction']:g}%"
        name = result["dataset"]["name"].removesuffix(f"_{config['data']['trajectories']}")
        dataset = name.removeprefix(f"{config['task']}/")
        cells[config["task"], dataset, labels][method].append(result)
    if not cells:
        raise InputError(f"{directory} holds no results")
    _check_comparable(directory, cells)
    return cells


def table(directory: Path) -> str:
    """The Markdown table of all raw results in a directory."""
    cells = _cells(directory)
    lines = [
        "| task | data set | labels | LAWM | C-LAP | LAWM minus C-LAP | C-LAP (oracle) | data p75 "
        "| decoded-action error "
        "(share of variance) | open-loop error, 5 steps: LAWM / C-LAP | predicted / real value: "
        "LAWM | seeds | wall-clock, min | LAWM in the paper, return / 10 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, dataset, labels), by_method in sorted(cells.items()):
        if labels == "100%" and "lawm" not in by_method:
            continue
        oracle = cells.get((task, dataset, "100%"), {}).get("c_lap_oracle", [])
        by_method = {**by_method, "c_lap_oracle": oracle}
        columns = [*_columns(by_method), PAPER.get((task, dataset, labels), "-")]
        lines.append(f"| {task} | {dataset} | {labels} | {' | '.join(columns)} |")
    return "\n".join(lines)


def plot(directory: Path, path: Path) -> None:
    """Draws the returns of every method as bars, a panel a task and data set."""
    from lawm_jax import plots

    panels: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    share = lambda cell: (cell[0][:2], float(cell[0][2].removesuffix("%")))
    for (task, dataset, labels), by_method in sorted(_cells(directory).items(), key=share):
        for method, results in sorted(by_method.items(), reverse=True):
            panel = panels.setdefault(f"{task}, {dataset}", {})
            panel.setdefault(labels, {})[method] = mean_and_interval(results)
    plots.return_bars(path, panels)


def _check_comparable(directory: Path, cells: Cells) -> None:
    """Refuses a row whose results come from different data: their numbers say nothing together."""
    fingerprints = defaultdict(set)
    for (task, dataset, _), by_method in cells.items():
        for results in by_method.values():
            fingerprints[task, dataset] |= {result["dataset"]["fingerprint"] for result in results}
    for (task, dataset), found in fingerprints.items():
        if len(found) > 1:
            raise InputError(
                f"{directory}: the results on {task}/{dataset} come from {len(found)} different "
                "data sets (their fingerprints differ); remove those of the old one"
            )


def _columns(by_method: dict[str, list]) -> list[str]:
    def form(value: tuple[float, float] | None) -> str:
        return "{:.0f} ± {:.0f}".format(*value) if value else "-"

    def average(results: list, section: str, key: str) -> float:
        values = [result[section].get(key, np.nan) for result in results]
        return float(np.mean(values)) if values else float("nan")

    lawm, c_lap, oracle = (by_method.get(m, []) for m in ("lawm", "c_lap", "c_lap_oracle"))
    error = average(lawm, "metrics", "decoded_action_error")
    share = error / average(lawm, "metrics", "action_variance")
    open_loop = [average(r, "metrics", "open_loop_error_5") for r in (lawm, c_lap)]
    values = [average(lawm, "evaluation", key) for key in ("predicted_value", "real_value")]
    everything = [result for results in by_method.values() for result in results]
    minutes = np.mean([result["wall_clock_seconds"] for result in everything]) / 60
    return [
        *(form(mean_and_interval(r) if r else None) for r in (lawm, c_lap)),
        form(difference(lawm, c_lap)),
        form(mean_and_interval(oracle) if oracle else None),
        f"{everything[0]['dataset']['return_statistics']['p75']:.0f}",
        f"{error:.3f} ({share:.0%})",
        " / ".join("-" if np.isnan(x) else f"{x:.2f}" for x in open_loop),
        f"{values[0]:.0f} / {values[1]:.0f}",
        str(max(len(results) for results in by_method.values())),
        f"{minutes:.0f}",
    ]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--add", type=Path, help="work directory of a finished run")
    parser.add_argument("--plot", type=Path, help="PNG to draw the returns into")
    arguments = parser.parse_args()
    try:
        if arguments.add:
            for path in add(arguments.directory, arguments.add):
                print(f"added {path}")
        elif arguments.plot:
            plot(arguments.directory, arguments.plot)
        else:
            print(table(arguments.directory))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
