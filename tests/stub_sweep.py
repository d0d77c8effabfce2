"""A sweep of stub jobs, and the stub itself: counts slowly, saves when told to, as real runs do.

python tests/stub_sweep.py PLACE JOBS            sweeps a, b, c, ...
python tests/stub_sweep.py run WORKDIR NAME      is one of them
"""

import json
import signal
import sys
import time
from pathlib import Path

from experiments import sweep

STEPS = 8
METHODS = {"a": "lawm", "b": "c_lap", "bad": "dreamer"}  # of the jobs that are run


def config_of(name):
    method = METHODS.get(name, "bc")
    return {"task": "walker_walk", "method": method, "seed": 0, "data": {"label_fraction": 0.05}}


def jobs(names):
    return [sweep.Job(name, "stub", (), config_of(name), "dmc") for name in names]


def place(directory):
    return sweep.Place(Path(directory, "runs"), "data", Path(directory, "results"))


def command(job, where):
    return [sys.executable, __file__, "run", str(where.of(job)), job.name]


def result_of(config):
    """The least that a raw result has."""
    return {
        "config": config,
        "seed": 0,
        "dataset": {"name": "walker_walk/some", "fingerprint": "f00"},
        "evaluation": {"return_mean": 1.0, "return_ci95": 0.1},
        "wall_clock_seconds": 1.0,
    }


def stub(workdir, name):
    """Counts to STEPS, printing every step; the job "bad" fails."""
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    if name == "bad":
        print("error: no such thing", file=sys.stderr)
        return 2
    workdir.mkdir(parents=True, exist_ok=True)
    saved = workdir / "step"
    step = int(saved.read_text()) if saved.exists() else 0
    while step < STEPS:
        step += 1
        print(f"step {step}", flush=True)
        time.sleep(0.1)
        if stopped:
            saved.write_text(str(step))
            return 75
    result = result_of(config_of(name))
    (workdir / "results.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "run":
        sys.exit(stub(Path(sys.argv[2]), sys.argv[3]))
    directory, at_once, *names = sys.argv[1:]
    sys.exit(sweep.run(jobs(names), place(directory), int(at_once), command))
