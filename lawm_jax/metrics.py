"""Metrics of a run: WORKDIR/metrics.jsonl, one JSON object a logged step, and TensorBoard."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from lawm_jax.errors import TrainingError


def check_finite(phase: str, metrics: Mapping[str, Any], first_step: int) -> None:
    """Raises TrainingError naming the metric and the step where a value is NaN or infinite.

    phase: the training phase, for the message.
    metrics: name -> [K] (or scalar) values of the steps first_step ... first_step + K - 1.
      Named are the earliest such step and every metric that is not finite there.
    """
    bad = {}
    for name, values in metrics.items():
        wrong = np.flatnonzero(~np.isfinite(np.asarray(values, np.float64)))
        if wrong.size:
            bad[name] = int(wrong[0])
    if not bad:
        return
    first = min(bad.values())
    names = [
        f"{name} = {np.atleast_1d(metrics[name])[first]}" for name in bad if bad[name] == first
    ]
    raise TrainingError(
        f"{phase} step {first_step + first}: {', '.join(names)}; the last checkpoint is kept"
    )


class MetricLogger:
    """Appends metrics to WORKDIR/metrics.jsonl and to TensorBoard files in WORKDIR/tensorboard.

    workdir: the run's work directory.
    position: what `position()` returned when the checkpoint that the run continues from was saved:
      everything logged after it is dropped, so that no step appears twice. None starts afresh.
    """

    def __init__(self, workdir: epath.PathLike, position: Mapping[str, int] | None = None) -> None:
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        kept = path.read_bytes()[: position["bytes"]] if position and path.exists() else b""
        kept = kept[: kept.rfind(b"\n") + 1]
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - a kill loses nothing
        self._file.truncate(len(kept))
        self._file.seek(0, os.SEEK_END)
        # Event files cannot be cut back, so TensorBoard's are written anew from what was kept.
        board = workdir / "tensorboard"
        if board.exists():
            board.rmtree()
        board.mkdir()
        # not SummaryWriter, whose thread dies on a full disk and whose queue then blocks for ever
        self._board = EventsWriter(str(board / "events"))
        for line in kept.splitlines():
            self._write_board(json.loads(line))

    def log(self, step: int, phase: str, metrics: Mapping[str, Any]) -> None:
        """Logs scalars of one step of a phase ("world_model", "agent", "evaluation", ...)."""
        record = {"step": int(step), "phase": phase}
        record.update((name, float(value)) for name, value in metrics.items())
        self._file.write(json.dumps(record).encode() + b"\n")
        self._write_board(record)

    def position(self) -> dict[str, int]:
        """A JSON-able mark of what has been logged so far; save it with the checkpoint."""
        self._board.flush()
        return {"bytes": self._file.tell()}

    def close(self) -> None:
        """Flushes and closes the files."""
        self._file.close()
        self._board.close()

    def _write_board(self, record: Mapping[str, Any]) -> None:
        values = [
            Summary.Value(tag=f"{record['phase']}/{name}", simple_value=value)
            for name, value in record.items()
            if name not in ("step", "phase")
        ]
        summary = Summary(value=values)
        self._board.write_event(Event(wall_time=time.time(), step=record["step"], summary=summary))


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Reads metrics.jsonl: one dict a logged step, {"step", "phase", name: value}."""
    lines = (epath.Path(workdir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
