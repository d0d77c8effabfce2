"""SIGKILL in a tiny run, started again each time: every bit must be the same as without.

    python tests/kill_restart.py --kills=10                                    # at random moments
    python tests/kill_restart.py --each_phase                                  # once in each phase
    python tests/kill_restart.py --each_phase --config=configs/procgen.py:miner,tiny     # of LAPO

Slow, so not part of the suite. Prints each kill and exits with 1 where a digest differs.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXPERIMENTS = {"dmc": "experiments.lawm", "procgen": "experiments.lapo"}  # by the config's file
PROGRESS = re.compile(r"(\w+) \d+/\d+")


class Runs:
    """Runs of one config whose work directories lie in `place` beside their data."""

    def __init__(self, config, place):
        self.config, self.place = config, place
        self.experiment = EXPERIMENTS[Path(config.partition(":")[0]).stem]

    def start(self, workdir):
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(self.place / "cache")}
        return subprocess.Popen(
            [sys.executable, "-m", self.experiment, f"--config={self.config}",
             f"--workdir={self.place / workdir}", f"--data_dir={self.place / 'data'}"],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
        )

    def whole(self, workdir):
        """Runs without interruption; returns (phases, seconds to the first step, in all)."""
        began = time.monotonic()
        process = self.start(workdir)
        phases, first = [], None
        for line in process.stdout:
            if shown := PROGRESS.match(line):
                first = first or time.monotonic() - began
                phases.append(shown[1])
        assert process.wait() == 0
        return list(dict.fromkeys(phases)), first, time.monotonic() - began

    def digest(self, workdir):
        return json.loads((self.place / workdir / "results.json").read_text())["state_digest"]

    def kill_in(self, workdir, phase):
        """Starts it and kills it when it reports progress in a phase."""
        process = self.start(workdir)
        for line in process.stdout:
            shown = PROGRESS.match(line)
            if shown and shown[1] == phase:
                kill(process)
                return
        sys.exit(f"exit code {process.wait()} before {phase} was reached")

    def kill_after(self, workdir, seconds):
        """Starts it and kills it then; returns False where it had ended before."""
        process = self.start(workdir)
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            kill(process)
            return True
        assert process.returncode == 0, f"exit code {process.returncode}"
        return False

    def saved(self, workdir):
        """What of it was saved, summed over its phases."""
        found = (self.place / workdir / "checkpoints").glob("[0-9]*")
        return max((int(path.name) for path in found if path.name.isdigit()), default=0)


def kill(process):
    process.kill()
    process.communicate()


def kill_at_random(runs, kills, longest, seed):
    """Yields a run's work directory whenever one has ended, until there were so many kills."""
    rng = random.Random(seed)
    killed = number = 0
    while killed < kills:
        number += 1
        workdir = f"broken{number}"
        while killed < kills and runs.kill_after(workdir, seconds := rng.uniform(0.0, longest)):
            killed += 1
            print(f"kill {killed} after {seconds:.1f} s, step {runs.saved(workdir)} saved",
                  flush=True)
        runs.whole(workdir)  # goes on, or finds it finished
        yield workdir


def kill_in_phases(runs, phases):
    """The same for one run that is killed once in each phase."""
    for phase in phases:
        runs.kill_in("broken", phase)
        print(f"killed in {phase}, step {runs.saved('broken')} saved", flush=True)
    runs.whole("broken")
    yield "broken"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/dmc.py:walker_walk,tiny")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--each_phase", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        runs = Runs(arguments.config, Path(directory))
        runs.whole("first")  # makes the data set and fills the cache of compiled programs
        phases, first, total = runs.whole("whole")
        expected = runs.digest("whole")
        assert expected == runs.digest("first")
        print(f"uninterrupted: {total:.1f} s, the first step after {first:.1f} s", flush=True)
        # Long enough that a start gets on by its share of the run, on average.
        longest = first + 2.0 * (total - first) / arguments.kills
        if arguments.each_phase:
            broken = kill_in_phases(runs, phases)
        else:
            broken = kill_at_random(runs, arguments.kills, longest, arguments.seed)
        for workdir in broken:
            if runs.digest(workdir) != expected:
                sys.exit(f"{workdir}: the digest differs from the uninterrupted run's")
            print(f"{workdir}: digest {expected}, as without kills", flush=True)


if __name__ == "__main__":
    main()
