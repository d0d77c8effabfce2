"""Table 1 of the LAWM paper from raw results: CSV files and Markdown.

A value is a mean return / 10 with a 95% interval. Of a cell: the bootstrap over its seeds from five
on, Student's t over two to four (a bootstrap of so few is far too narrow), over the episodes of a
single seed, which says nothing of other seeds. Of the average, and of its differences: the
stratified bootstrap over data sets, in which a cell of one seed varies by its episodes and the mean
of one of two to four seeds by Student's t. Agents that learned on one world model count as one
seed, by their mean.

The average is over the rows in which every column that has any result has one.
"""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from experiments.raw_results import (
    PAPER,
    Cells,
    Estimate,
    Result,
    aggregate,
    average,
    average_difference,
    difference,
    estimate,
)
from lawm_jax import statistics

NAMES = {
    "td3_bc_oracle": "TD3+BC (oracle)",
    "c_lap_oracle": "C-LAP (oracle)",
    "td3_bc": "TD3+BC",
    "c_lap": "C-LAP",
    "idm_td3_bc": "IDM-TD3+BC",
    "bc": "cloning",
    "lawm": "LAWM",
}
COLUMNS = tuple(name for name in NAMES if name != "bc")  # the paper's
OTHERS = tuple(name for name in NAMES if name != "lawm")
SCARCE = ("td3_bc", "c_lap", "idm_td3_bc", "lawm")  # see few labels
LABELS = ("5%", "1%")
DIAGNOSTICS = (
    "lawm_decoded_action_error", "idm_decoded_action_error", "idm_unlabelled_action_error",
    "action_variance", "lawm_prior_action_variance", "c_lap_prior_action_variance",
    "lawm_open_loop_error_5", "c_lap_open_loop_error_5",
    *(f"{method}_overestimation" for method in COLUMNS),  # cloning has no critic
)
Rows = dict[str, dict[str, list[Result]]]  # "task/dataset" -> column -> its seeds


def rows_of(cells: Cells, labels: str) -> Rows:
    """The table's rows at a label fraction, the oracles beside the others."""
    rows: Rows = {}
    for (task, dataset, fraction), by_method in sorted(cells.items()):
        if fraction in (labels, "100%"):
            rows.setdefault(f"{task}/{dataset}", {}).update(by_method)
    ordered = {
        name: {method: row[method] for method in NAMES if method in row}
        for name, row in rows.items()
    }
    return {name: row for name, row in ordered.items() if row}


def shared_rows(rows: Rows) -> Rows:
    """The rows that every filled column shares: the ones that averages are over."""
    filled = set().union(*rows.values())
    return {name: row for name, row in rows.items() if row.keys() == filled}


def aggregates(
    rows: Rows, statistic: Callable[[statistics.Strata], np.ndarray]
) -> dict[str, Estimate]:
    """Column -> a statistic of its returns over the shared rows; empty where none is."""
    shared = shared_rows(rows)
    columns = [column for column in NAMES if any(column in row for row in shared.values())]
    return {
        column: aggregate(statistic, [row[column] for row in shared.values()])
        for column in columns
    }


def table_estimates(rows: Rows) -> dict[str, dict[str, Estimate]]:
    """Row, the last one "average", -> column -> its value."""
    table = {
        name: {column: estimate(runs).scaled(0.1) for column, runs in row.items()}
        for name, row in rows.items()
    }
    means = aggregates(rows, statistics.mean)
    return table | {"average": {column: mean.scaled(0.1) for column, mean in means.items()}}


def write_csv(path: Path, estimates: Mapping[str, Mapping[str, Estimate]]) -> None:
    """Writes a table: dataset and, for each of COLUMNS, NAME, NAME_low and NAME_high."""
    ends = ("", "_low", "_high")
    lines = []
    for name, row in estimates.items():
        values = (row.get(column, (None,) * len(ends)) for column in COLUMNS)
        cells = ["" if x is None else f"{x:.2f}" for value in values for x in value]
        lines.append([name, *cells])
    _write_lines(path, ["dataset", *(column + end for column in COLUMNS for end in ends)], lines)


def diagnostics(cells: Cells) -> list[list[str]]:
    """A line a row and label fraction: data set, labels, then DIAGNOSTICS, empty where unknown."""
    lines = []
    for labels in sorted({key[2] for key in cells} - {"100%"}, key=_share):
        for name, row in rows_of(cells, labels).items():
            lawm, c_lap, idm = (row.get(method, []) for method in ("lawm", "c_lap", "idm_td3_bc"))
            if not any(method in row for method in SCARCE):
                continue
            variance = average(lawm or idm, "metrics", "action_variance")
            values = [
                average(lawm, "metrics", "decoded_action_error"),
                average(idm, "metrics", "decoded_action_error"),
                average(idm, "metrics", "unlabelled_action_error"),
                variance,
                *(
                    average(runs, "metrics", name)
                    for name in ("prior_action_variance", "open_loop_error_5")
                    for runs in (lawm, c_lap)
                ),
                *(average(row.get(m, []), "evaluation", "value_overestimation") for m in COLUMNS),
            ]
            lines.append([name, labels, *("" if np.isnan(x) else f"{x:.4g}" for x in values)])
    return lines


def write_diagnostics(path: Path, cells: Cells) -> None:
    """Writes the diagnostics as CSV."""
    _write_lines(path, ["dataset", "labels", *DIAGNOSTICS], diagnostics(cells))


def markdown(cells: Cells) -> str:
    """The tables, differences and diagnostics with what they mean."""
    parts = ["# Returns / 10 by method\n\n" + __doc__.partition("\n\n")[2].strip()]
    for labels in LABELS:
        parts += _table(rows_of(cells, labels), labels)
    parts.append(
        "## LAWM minus the others, return / 10\n\nPaired by seed, as methods share their labelled "
        "trajectories; Student's t over seeds, or over episodes where one seed is shared. Averages "
        "are over the same rows as above."
    )
    parts.append(_differences(cells))
    parts.append(
        "## Diagnostics\n\nErrors are mean squares on held-out trajectories: of the actions that "
        "LAWM's posterior and the inverse dynamics model (IDM) see without labels, the latter "
        "also on the unlabelled trajectories that it labels; of observations predicted 5 steps "
        "ahead. The prior's variance is that of the actions that the latent-action prior decodes "
        "to within a state: the wider it is, the further may a policy stray from the data. "
        "Overestimation: the value that the critic expects of an episode minus the discounted "
        "return that it brings."
    )
    heads = [name.replace("_", " ") for name in DIAGNOSTICS]
    lines = [[cell or "-" for cell in line] for line in diagnostics(cells)]
    parts.append(markdown_table(["data set", "labels", *heads], lines))
    return "\n\n".join(parts) + "\n"


def _table(rows: Rows, labels: str) -> list[str]:
    if not rows:
        return []
    estimates = table_estimates(rows)
    lines = []
    for name, row in estimates.items():
        runs = [run for column in rows.get(name, {}).values() for run in column]
        minutes = np.mean([run["wall_clock_seconds"] for run in runs]) / 60 if runs else None
        counts = {column: len(found) for column, found in rows.get(name, {}).items()}
        lines.append([
            name,
            *(_form(row[column], counts.get(column)) if column in row else "-" for column in NAMES),
            "" if minutes is None else f"{minutes:.0f}",
            "" if name == "average" else PAPER.get((*name.split("/"), labels), "-"),
        ])
    heads = ["data set", *NAMES.values(), "minutes a run", "LAWM in the paper"]
    shared = ", ".join(shared_rows(rows)) or "no row: none has every column"
    return [
        f"## {labels} of the trajectories with actions (oracles: all)",
        markdown_table(heads, lines),
        f"In brackets the seeds of a cell. Average over: {shared}.",
    ]


def _form(value: Estimate, seeds: int | None) -> str:
    counted = "" if seeds is None else f" ({seeds})"
    return f"{value.mean:.1f} [{value.low:.1f}, {value.high:.1f}]{counted}"


def _differences(cells: Cells) -> str:
    lines = []
    for labels in LABELS:
        rows = {name: row for name, row in rows_of(cells, labels).items() if "lawm" in row}
        for name, row in rows.items():
            gains = [difference(row["lawm"], row.get(column, [])) for column in OTHERS]
            lines.append([
                name, labels, *(f"{g[0] / 10:.1f} ± {g[1] / 10:.1f}" if g else "-" for g in gains)
            ])
        shared = shared_rows(rows).values()
        means = [
            average_difference([(row["lawm"], row.get(column, [])) for row in shared])
            for column in OTHERS
        ]
        if any(means):
            lines.append([
                "average", labels, *(_form(x.scaled(0.1), None) if x else "-" for x in means)
            ])
    return markdown_table(["data set", "labels", *(NAMES[column] for column in OTHERS)], lines)


def markdown_table(heads: list[str], lines: list[list[str]]) -> str:
    """Heads and lines as a Markdown table."""
    table = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def _share(labels: str) -> float:
    return float(labels.removesuffix("%"))


def _write_lines(path: Path, heads: list[str], lines: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([heads, *lines])
