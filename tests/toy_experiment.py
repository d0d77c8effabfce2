"""A toy experiment: counts to config.loop.steps, for the tests of experiments/launch.py."""

import errno
import json
import time

from experiments import launch
from lawm_jax.errors import InputError, TrainingError


def sleep(seconds: float) -> None:
    """Sleeps, and is in Python again and again, where alone signal handlers run.

    A signal that comes just before a long sleep would otherwise be seen after it.
    """
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))


def main(run: launch.Run) -> None:
    fail = run.config.fail
    if fail == "input":
        raise InputError("task 'walk' is unknown; choose one of: run, stand")
    if fail == "training":
        raise TrainingError("step 3: loss = nan")
    if fail == "disk":
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")
    if fail == "bug":
        raise KeyError("bug")
    saved = run.workdir / "step"
    step = int(saved.read_text()) if saved.exists() else 0
    print(f"from {step}", flush=True)
    while step < run.config.loop.steps:
        step += 1
        sleep(run.config.loop.seconds)
        if run.stop.requested:
            saved.write_text(str(step))
            raise launch.Stopped
    results = {"config": run.config.to_dict(), "evaluation": {"return_mean": float(step)}}
    (run.workdir / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    launch.run(main)
