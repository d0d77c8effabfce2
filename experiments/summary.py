"""The summary of a finished run as a small table."""

import math
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
    ("  frames to train on", "{dataset[train][read]}"),
    ("  episodes", "{dataset[train][read_episodes]}"),
    ("policy", ""),
    ("  return", "{evaluation[return_mean]:.1f} ± {evaluation[return_ci95]:.1f}"),
    ("  episodes", "{evaluation[episodes]}"),
    ("  value overestimation", "{evaluation[value_overestimation]:.2f}"),
    ("model, held-out trajectories", ""),
    ("  of the run in", "{world_model[pretrained]}"),
    ("  decoded-action error", "{metrics[decoded_action_error]:.4f}"),
    ("  variance of actions", "{metrics[action_variance]:.4f}"),
    ("  variance in a state by the prior", "{metrics[prior_action_variance]:.4f}"),
    ("  open-loop error, 1 step", "{metrics[open_loop_error_1]:.4f}"),
    ("    5 steps", "{metrics[open_loop_error_5]:.4f}"),
    ("    10 steps", "{metrics[open_loop_error_10]:.4f}"),
    ("    25 steps", "{metrics[open_loop_error_25]:.4f}"),
    ("latent actions, held-out levels", ""),
    ("  next-frame error", "{fdm_error:.6f}"),
    ("    of copying the frame", "{copy_last_frame_error:.6f}"),
    ("  codebook perplexity", "{codebook_perplexity:.1f}"),
    ("  probe of the true action", "{probe_accuracy:.3f}"),
    ("    majority class", "{majority_accuracy:.3f}"),
    ("    untrained model", "{metrics[untrained_idm][probe_accuracy]:.3f}"),
    ("    supervised model", "{metrics[supervised_idm][supervised_idm_accuracy]:.3f}"),
    ("return (random 0, data 1)", ""),
    ("  random policy", "{random_policy[return_mean]:.2f} ± {random_policy[return_ci95]:.2f}"),
    ("  data policy", "{data_policy[return_mean]:.2f} ± {data_policy[return_ci95]:.2f}"),
    (
        "  cloning, all labels",
        "{behaviour_cloning[return_mean]:.2f} ± {behaviour_cloning[return_ci95]:.2f}"
        "  {behaviour_cloning[normalised]:.2f}",
    ),
)
LAST = (
    ("device", "{device}"),
    ("wall-clock", "{wall_clock_seconds:.0f} s"),
    ("  of it compilation", "{compile_seconds:.0f} s"),
)


def summary(results: Mapping[str, Any]) -> str:
    """An aligned table of what results.json holds; rows of which it lacks a value are left out."""
    if "statistics" in results:
        return _collected(results["statistics"])
    rows = []
    for label, template in (*ROWS, *_decoded(results), *LAST):
        try:
            rows.append((label, template.format(**results)))
        except (KeyError, TypeError, ValueError):
            continue
    nested = [label.startswith(" ") for label, _ in rows[1:]] + [False]
    rows = [row for row, filled in zip(rows, nested, strict=True) if row[1] or filled]
    width = max((len(label) for label, _ in rows), default=0)
    return "\n".join(f"{label:{width}}  {value}".rstrip() for label, value in rows)


def _decoded(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row for each decoder of a latent policy, and for the end of each online training."""
    played = lambda row: "{return_mean:.2f} ± {return_ci95:.2f}  {normalised:.2f}".format(
        **{"normalised": math.nan} | row
    )
    rows = [
        (f"  {name}, {row['labels']} labels", played(row))
        for key, name in (("offline_decoding", "decoder"), ("offline_distillation", "distilled"))
        for row in results.get(key, ())
    ]
    for key, name in (("online_decoding", "online decoding"), ("scratch", "PPO from scratch")):
        for row in results.get(key, ())[-1:]:
            rows.append((f"  {name}, {row['frames']} frames", played(row)))
    return rows


def _collected(statistics: Mapping[str, Mapping[str, float]]) -> str:
    """The returns of collected data sets, a line each."""
    lines = []
    for dataset, row in statistics.items():
        values = "  ".join(f"{name} {round(value, 1)}" for name, value in row.items())
        lines.append(f"{dataset:14}  {values}")
    return "\n".join(lines)
