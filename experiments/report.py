"""The README's table of results, rebuilt from the raw results of runs.

    python -m experiments.report results/dmc              prints the table
    python -m experiments.report results/dmc --add=DIR    copies DIR/results.json into it
    python -m experiments.report results/dmc --plot=FILE  draws it

A row is a task, data set and label fraction; a cell the mean final return over seeds with a 95%
interval: over seeds (Student's t) where there are several, else over the one run's episodes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.launch import BAD_INPUT
from experiments.raw_results import (
    PAPER,
    Estimate,
    Result,
    add,
    average,
    difference,
    estimate,
    mean_and_interval,
    read_cells,
)
from lawm_jax.errors import InputError, writing


def table(directory: Path) -> str:
    """The Markdown table of all raw results in a directory."""
    cells = read_cells(directory)
    lines = [
        "| task | data set | labels | LAWM | C-LAP | LAWM minus C-LAP | C-LAP (oracle) | data p75 "
        "| decoded-action error "
        "(share of variance) | open-loop error, 5 steps: LAWM / C-LAP | predicted / real value: "
        "LAWM | seeds: LAWM / C-LAP | wall-clock of LAWM, min | LAWM in the paper, return / 10 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, dataset, labels), by_method in sorted(cells.items(), key=_by_share):
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

    panels: dict[str, dict[str, dict[str, Estimate]]] = {}
    for (task, dataset, labels), by_method in sorted(read_cells(directory).items(), key=_by_share):
        for method, results in sorted(by_method.items(), reverse=True):
            panel = panels.setdefault(f"{task}, {dataset}", {})
            panel.setdefault(labels, {})[method] = estimate(results)
    plots.bars(path, panels, "episode return", x_label="trajectories with actions")


def _by_share(cell: tuple[tuple[str, str, str], Any]) -> tuple[str, str, float]:
    """Cells in order: by task, data set and share of labels."""
    (task, dataset, labels), _ = cell
    return task, dataset, float(labels.removesuffix("%"))


def _columns(by_method: dict[str, list[Result]]) -> list[str]:
    def form(value: tuple[float, float] | None) -> str:
        return "{:.0f} ± {:.0f}".format(*value) if value else "-"

    lawm, c_lap, oracle = (by_method.get(m, []) for m in ("lawm", "c_lap", "c_lap_oracle"))
    error = average(lawm, "metrics", "decoded_action_error")
    share = error / average(lawm, "metrics", "action_variance")
    open_loop = [average(r, "metrics", "open_loop_error_5") for r in (lawm, c_lap)]
    values = [average(lawm, "evaluation", key) for key in ("predicted_value", "real_value")]
    anyone = next(iter(by_method.values()))[0]
    minutes = np.mean([result["wall_clock_seconds"] for result in lawm]) / 60 if lawm else np.nan
    return [
        *(form(mean_and_interval(r) if r else None) for r in (lawm, c_lap)),
        form(difference(lawm, c_lap)),
        form(mean_and_interval(oracle) if oracle else None),
        f"{anyone['dataset']['return_statistics']['p75']:.0f}",
        f"{error:.3f} ({share:.0%})",
        " / ".join("-" if np.isnan(x) else f"{x:.2f}" for x in open_loop),
        f"{values[0]:.0f} / {values[1]:.0f}",
        f"{len(lawm)} / {len(c_lap)}",
        "-" if np.isnan(minutes) else f"{minutes:.0f}",
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
            with writing(f"--plot={arguments.plot}"):
                plot(arguments.directory, arguments.plot)
        else:
            print(table(arguments.directory))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)


if __name__ == "__main__":
    main()
