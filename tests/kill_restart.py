"""SIGKILL at random moments of a tiny run, started again each time: every bit must be the same.

    python tests/kill_restart.py --kills=10

Slow, so not part of the suite. Prints each kill and exits with 1 where a digest differs.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start(place, workdir):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(place / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.lawm", "--config=configs/dmc.py:walker_walk,tiny",
         f"--workdir={place / workdir}", f"--data_dir={place / 'data'}"],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
    )


def whole_run(place, workdir):
    """Runs without interruption; returns (digest, seconds to the first step, seconds in all)."""
    began = time.monotonic()
    process = start(place, workdir)
    first = None
    for line in process.stdout:
        if first is None and line.startswith("world_model"):
            first = time.monotonic() - began
    assert process.wait() == 0
    return digest(place / workdir), first, time.monotonic() - began


def digest(workdir):
    return json.loads((workdir / "results.json").read_text())["state_digest"]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        whole_run(place, "first")  # makes the data set and fills the cache of compiled programs
        expected, first, total = whole_run(place, "whole")
        assert expected == digest(place / "first")
        print(f"uninterrupted: {total:.1f} s, the first step after {first:.1f} s", flush=True)
        # Long enough that a start gets on by its share of the run, on average.
        longest = first + 2.0 * (total - first) / arguments.kills
        killed, runs = 0, 0
        while killed < arguments.kills:
            runs += 1
            while True:
                process = start(place, f"broken{runs}")
                delay = rng.uniform(0.0, longest) if killed < arguments.kills else None
                try:
                    process.communicate(timeout=delay)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    killed += 1
                    saved = (place / f"broken{runs}" / "checkpoints").glob("[0-9]*")
                    steps = [int(path.name) for path in saved if path.name.isdigit()]
                    print(f"kill {killed} after {delay:.1f} s, step {max(steps, default=0)} saved",
                          flush=True)
                    continue
                assert process.returncode == 0, f"exit code {process.returncode}"
                break
            if digest(place / f"broken{runs}") != expected:
                sys.exit(f"run {runs}: the digest differs from the uninterrupted run's")
        print(f"{killed} kills over {runs} runs: every digest is {expected}")


if __name__ == "__main__":
    main()
