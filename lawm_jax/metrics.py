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

from lawm_jax.errors import InputError, TrainingError, first_line


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

    Raises InputError where the file lacks what was logged before it: results are made of it.
    """

    def __init__(self, workdir: epath.PathLike, position: Mapping[str, int] | None = None) -> None:
        workdir = epath.Path(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        path = workdir / "metrics.jsonl"
        kept, logged = b"", position["bytes"] if position else 0
        if logged:
            kept = path.read_bytes()[:logged] if path.exists() else b""
            if len(kept) < logged:
                raise InputError(
                    f"{path} has {len(kept)} of the {logged} bytes that were logged when the "
                    "checkpoint was saved: put it back, or start anew in another work directory"
                )
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
        for record in _records(kept.decode(), path):
            self._write_board(record)

    def log(self, step: int, phase: str, metrics: Mapping[str, Any]) -> None:
        """Logs scalars of one step of a phase ("world_model", "agent", "evaluation", ...)."""
        record = {"step": int(step), "phase": phase}
        record.update((name, float(value)) for name, value in metrics.items())
        self._file.write(json.dumps(record).encode() + b"\n")
        self._write_board(record)

    def position(self) -> dict[str, int]:
        """A JSON-able mark of what has been logged so far; save it with the checkpoint.

        What it counts is on the disk: a power cut takes nothing that a checkpoint relies on.
        """
        self._board.flush()
        os.fsync(self._file.fileno())
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
    """Reads metrics.jsonl: one dict a logged step, {"step", "phase", name: value}.

    Raises InputError where it is missing or damaged.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        raise InputError(f"{path} is missing: results are made of it; put it back")
    return _records(path.read_text(), path)


def _records(text: str, path: epath.PathLike) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise InputError(
                f"{path}: line {number} is damaged ({first_line(error)}); put the file back"
            ) from error
    return records
