"""The summary of a finished run as a small table."""

from collections.abc import Mapping
from typing import Any

ROWS = (
    ("task", "{config[task]}"),
    ("method", "{config[method]}"),
    ("seed", "{seed}"),
    ("data set", "{dataset[name]}"),
    ("  trajectories", "{dataset[trajectories]}"),
    ("  with actions", "{dataset[labelled_trajectories]}"),
    (
        "  return, quartiles",
        "{dataset[return_statistics][p25]:.0f}  {dataset[return_statistics][median]:.0f}  "
        "{dataset[return_statistics][p75]:.0f}",
    ),
    ("policy", ""),
    ("  return", "{evaluation[return_mean]:.1f} ± {evaluation[return_ci95]:.1f}"),
    ("  episodes", "{evaluation[episodes]}"),
    ("  value overestimation", "{evaluation[value_overestimation]:.2f}"),
    ("model, held-out trajectories", ""),
    ("  decoded-action error", "{metrics[decoded_action_error]:.4f}"),
    ("  variance of actions", "{metrics[action_variance]:.4f}"),
    ("  open-loop error, 1 step", "{metrics[open_loop_error_1]:.4f}"),
    ("    5 steps", "{metrics[open_loop_error_5]:.4f}"),
    ("    10 steps", "{metrics[open_loop_error_10]:.4f}"),
    ("    25 steps", "{metrics[open_loop_error_25]:.4f}"),
    ("device", "{device}"),
    ("wall-clock", "{wall_clock_seconds:.0f} s"),
    ("  of it compilation", "{compile_seconds:.0f} s"),
)


def summary(results: Mapping[str, Any]) -> str:
    """An aligned table of what results.json holds; rows of which it lacks a value are left out."""
    if "statistics" in results:
        return _collected(results["statistics"])
    rows = []
    for label, template in ROWS:
        try:
            rows.append((label, template.format(**results)))
        except (KeyError, TypeError, ValueError):
            continue
    nested = [label.startswith(" ") for label, _ in rows[1:]] + [False]
    rows = [row for row, filled in zip(rows, nested, strict=True) if row[1] or filled]
    width = max((len(label) for label, _ in rows), default=0)
    return "\n".join(f"{label:{width}}  {value}".rstrip() for label, value in rows)


def _collected(statistics: Mapping[str, Mapping[str, float]]) -> str:
    """The returns of collected data sets, a line each."""
    lines = []
    for dataset, row in statistics.items():
        values = "  ".join(f"{name} {value:.0f}" for name, value in row.items())
        lines.append(f"{dataset:14}  {values}")
    return "\n".join(lines)
