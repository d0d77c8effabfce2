"""The summary of a finished run as a small table."""

from collections.abc import Mapping
from typing import Any

# label, key in results.json ("a.b" is results["a"]["b"]), format
ROWS = (
    ("task", "config.task", "{}"),
    ("method", "config.method", "{}"),
    ("seed", "seed", "{}"),
    ("data set", "dataset.name", "{}"),
    ("trajectories", "dataset.trajectories", "{}"),
    ("  with actions", "dataset.labelled_trajectories", "{}"),
    ("  return p25", "dataset.return_statistics.p25", "{:.1f}"),
    ("  return median", "dataset.return_statistics.median", "{:.1f}"),
    ("  return p75", "dataset.return_statistics.p75", "{:.1f}"),
    ("  return max", "dataset.return_statistics.max", "{:.1f}"),
    ("return, 95% interval", "evaluation.return_mean", "{:.1f}"),
    ("  episodes", "evaluation.episodes", "{}"),
    ("value overestimation", "metrics.value_overestimation", "{:.2f}"),
    ("decoded-action error", "metrics.action_error", "{:.3f}"),
    ("open-loop error, 1 step", "metrics.open_loop_1", "{:.3f}"),
    ("  5 steps", "metrics.open_loop_5", "{:.3f}"),
    ("  10 steps", "metrics.open_loop_10", "{:.3f}"),
    ("  25 steps", "metrics.open_loop_25", "{:.3f}"),
    ("device", "device", "{}"),
    ("wall-clock", "wall_clock_seconds", "{:.0f} s"),
)


def summary(results: Mapping[str, Any]) -> str:
    """An aligned table of what results.json holds; rows that it lacks are left out."""
    rows = []
    for label, key, form in ROWS:
        value = _find(results, key)
        if value is None:
            continue
        text = form.format(value)
        half = _find(results, key.replace("return_mean", "return_ci95"))
        if key.endswith("return_mean") and half is not None:
            text += f" ± {half:.1f}"
        rows.append((label, text))
    width = max((len(label) for label, _ in rows), default=0)
    return "\n".join(f"{label:{width}}  {value}" for label, value in rows)


def _find(results: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        if not isinstance(results, Mapping) or part not in results:
            return None
        results = results[part]
    return results
