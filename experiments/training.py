"""The loop that every training phase shares: dispatch, log, evaluate, save, stop."""

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.launch import Run, Stopped
from experiments.progress import Progress
from lawm_jax import runner
from lawm_jax.checkpoint import Checkpoints
from lawm_jax.errors import InputError
from lawm_jax.metrics import MetricLogger, check_finite

PyTree = Any


class Session:
    """A run's train state on disk: restored when the run starts, saved as it goes.

    Attributes:
      state: dict of train states, one a phase, each with a `step`.
      restored: whether it comes from a checkpoint of the run.
      seconds: wall-clock of the run so far, over all its starts; `compile_seconds` likewise, and
        `aside_seconds`, what evaluations and checkpoints took of it.
    """

    def __init__(self, run: Run, state: dict[str, PyTree], fingerprint: str) -> None:
        """Restores the run's newest checkpoint into a fresh `state`, if there is one.

        Raises:
          InputError: a damaged checkpoint, one of another architecture, or one that was trained on
            data of another fingerprint.
        """
        self._run, self._fingerprint, self._main = run, fingerprint, runner.is_main()
        self._checkpoints = Checkpoints(run.address / "checkpoints")
        restored = self._checkpoints.restore(state)
        extra = restored.extra if restored else {}
        results = self._main and (run.workdir / "results.json").exists()
        if runner.on_any_process(restored is None and results):
            raise InputError(
                f"{run.address} is finished, but its checkpoints are gone: nothing can be rendered "
                "from it; choose another --workdir to train again"
            )
        if restored and extra["fingerprint"] != fingerprint:
            raise InputError(
                f"{run.address} was trained on other data than {run.data_dir} now holds "
                f"(fingerprint {extra['fingerprint'][:12]}, now {fingerprint[:12]}); "
                "choose another --workdir"
            )
        self.state, self.restored = restored.state if restored else state, restored is not None
        log = lambda: MetricLogger(run.workdir, extra.get("position")) if self._main else None
        self.logger = runner.all_or_none(log)  # which refuses a log that lost records
        self.compile_seconds = extra.get("compile_seconds", 0.0)
        self.aside_seconds = extra.get("aside_seconds", 0.0)
        self._seconds_before, self._started = extra.get("seconds", 0.0), time.monotonic()
        if restored:
            steps = (f"{phase} {runner.step_of(self.state[phase])}" for phase in state)
            if self._main:
                print(f"continuing from {', '.join(steps)}", flush=True)

    @property
    def seconds(self) -> float:
        """Wall-clock of the run so far."""
        return self._seconds_before + time.monotonic() - self._started

    def save(self) -> None:
        """Writes a checkpoint of everything, named by the sum of the phases' steps."""
        step = sum(map(runner.step_of, self.state.values()))
        position = self.logger.position() if self.logger else None
        self._run.publish()  # first, or a fresh machine would find shorter logs than the checkpoint
        self._checkpoints.save(step, self.state, {
            "fingerprint": self._fingerprint,
            "position": position,
            "seconds": self.seconds,
            "compile_seconds": self.compile_seconds,
            "aside_seconds": self.aside_seconds,
        })

    def close(self) -> None:
        """Closes logs and checkpoints."""
        if self.logger:
            self.logger.close()
        self._checkpoints.close()

    def train(
        self,
        phase: str,
        step_fn: Callable[..., tuple[PyTree, PyTree]],
        shared: PyTree,
        sharded: PyTree | Callable[[int], Iterator[PyTree]],
        total: int,
        evaluate: Callable[[PyTree], Mapping[str, Any]] | None,
        shown: tuple[str, ...],
        schedule: str = "run",
        anywhere: bool = True,
    ) -> None:
        """Trains self.state[phase] up to step `total`, from wherever it stands.

        Args:
          step_fn: from `runner.data_parallel`.
          sharded: what every dispatch draws from; or, for a streamed step, called with the step
            that training stands at, the batches of one dispatch after another.
          evaluate: called on this host's copy of the state every evaluate_every steps and at the
            end, by the main process alone; its metrics are logged. None: there is nothing to.
          shown: names of the metrics that the progress line shows.
          schedule: the config's section with steps_per_call, checkpoint_every, evaluate_every.
          anywhere: training can be continued from any step. Otherwise only from multiples of
            checkpoint_every, and what a signal stops in between is done again.

        Raises:
          Stopped: a signal asked for it; the state has been saved, unless `anywhere` forbade it.
          TrainingError: a metric is NaN or infinite.
        """
        settings: ConfigDict = self._run.config[schedule]
        step = runner.step_of(self.state[phase])
        progress = Progress(phase, total, step)
        pending: tuple[int, PyTree] | None = None
        batches = sharded(step) if callable(sharded) else itertools.repeat(sharded)

        def flush() -> None:
            nonlocal pending
            if pending is not None:
                self._log(phase, *pending, progress, shown)
                pending = None

        while step < total:
            if self._stopping(saving=False):
                raise Stopped  # before anything was dispatched: the last checkpoint stands
            count = min(settings.steps_per_call, total - step)
            drawn = next(batches)
            before = time.monotonic()
            dispatch = functools.partial(step_fn, self.state[phase], shared, drawn, steps=count)
            second = step == progress.first + settings.steps_per_call  # the first one compiles
            traced = self._run.profile and second
            state, metrics = self._traced(phase, dispatch) if traced else dispatch()
            if step == progress.first or count != settings.steps_per_call:
                self.compile_seconds += time.monotonic() - before  # the call blocks to compile
            flush()  # the previous call's metrics, while the device works on this one's
            self.state[phase], pending, step = state, (step, metrics), step + count
            done = step == total
            due = lambda every, step=step, done=done: done or step % every == 0
            evaluating = evaluate is not None and due(settings.evaluate_every)
            saving = due(settings.checkpoint_every)
            stopping = self._stopping(saving)
            keeping = saving or (stopping and anywhere)
            if evaluating or keeping:
                flush()  # which waits for the device
            before = time.monotonic()
            if evaluating:
                runner.all_or_none(functools.partial(self._evaluate, phase, evaluate, step))
            if keeping:
                self.save()
            self.aside_seconds += time.monotonic() - before
            if stopping:
                raise Stopped
        if self._run.profile and 0 < step - progress.first <= settings.steps_per_call:
            print(f"no trace of {phase}: it is taken of the second dispatch", flush=True)
        progress.close()

    def _evaluate(
        self, phase: str, evaluate: Callable[[PyTree], Mapping[str, Any]], step: int
    ) -> None:
        if self._main:
            values = evaluate(runner.local(self.state[phase]))
            check_finite(phase, values, step)
            self.logger.log(step, phase, values)

    def _stopping(self, saving: bool) -> bool:
        """Whether a signal asks to stop; several hosts agree on it where they save anyway."""
        if jax.process_count() == 1:
            return self._run.stop.requested
        return saving and runner.on_any_process(self._run.stop.requested)

    def _traced(self, phase: str, dispatch: Callable[[], PyTree]) -> PyTree:
        """Calls `dispatch` with the device otherwise idle and writes a profiler's trace of it."""
        directory = self._run.workdir / "profile" / phase
        jax.block_until_ready(self.state[phase])
        with jax.profiler.trace(str(directory)):
            result = jax.block_until_ready(dispatch())
        print(f"trace of {phase}: {directory}", flush=True)
        return result

    def _log(
        self, phase: str, first: int, metrics: PyTree, progress: Progress, shown: tuple[str, ...]
    ) -> None:
        metrics = jax.device_get(metrics)
        check_finite(phase, metrics, first + 1)
        if self.logger is None:
            return
        means = {name: float(np.mean(values)) for name, values in metrics.items()}
        step = first + len(next(iter(metrics.values())))
        self.logger.log(step, phase, means)
        progress.update(step, {name: means[name] for name in shown if name in means})


def check_schedule(config: ConfigDict, section: str) -> None:
    """Raises InputError unless saves and evaluations fall on the end of a dispatch."""
    settings = config[section]
    for key in ("checkpoint_every", "evaluate_every"):
        if settings[key] % settings.steps_per_call:
            raise InputError(
                f"{section}.{key} is {settings[key]}, not a multiple of {section}.steps_per_call "
                f"({settings.steps_per_call})"
            )
