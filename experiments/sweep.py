"""Runs many experiments, each as a process of its own, so that nothing is done twice."""

import ctypes
import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from experiments import raw_results
from experiments.identity import same_config
from experiments.launch import DONE, FAILED, STOPPED, StopSignal
from lawm_jax.errors import InputError

POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1  # of Linux's prctl


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    name: str  # of its work directory and log
    experiment: str  # module in experiments/
    flags: tuple[str, ...]  # its config, as a user would type it
    config: dict[str, Any]  # what they come to, as results.json has it
    group: str  # subfolder of the results that its raw result belongs to
    needs: str = ""  # name of the job whose finished work directory it reads


class Place(NamedTuple):
    """Where jobs work and where their results go."""

    workdir: Path
    data_dir: str
    results: Path

    def of(self, job: Job) -> Path:
        """A job's work directory."""
        return self.workdir / job.name

    def log(self, job: Job) -> Path:
        """The file that keeps what a job prints."""
        return self.workdir / "logs" / f"{job.name}.txt"


def command(job: Job, place: Place) -> list[str]:
    """The command that runs a job."""
    folders = [f"--workdir={place.of(job)}", f"--data_dir={place.data_dir}"]
    return [sys.executable, "-m", f"experiments.{job.experiment}", *job.flags, *folders]


def share_of(jobs: list[Job], share: str) -> list[Job]:
    """Every COUNT-th job from INDEX on, of a share "INDEX/COUNT"; each with those that need it.

    Raises:
      InputError: it is not written so, or INDEX is not in 0, ..., COUNT - 1.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", share)
    if match is None or int(match[1]) >= int(match[2]):
        raise InputError(f"--share is '{share}'; write INDEX/COUNT, INDEX from 0 to COUNT - 1")
    free = [job.name for job in jobs if not job.needs]
    mine = set(free[int(match[1]) :: int(match[2])])
    return [job for job in jobs if (job.needs or job.name) in mine]


def run(
    jobs: list[Job],
    place: Place,
    at_once: int = 1,
    command: Callable[[Job, Place], list[str]] = command,
) -> int:
    """Runs what is not done yet and keeps its raw results; returns the exit code.

    A failed job is reported and the others go on, but for those that need it. SIGTERM and SIGINT
    are handed to the running jobs, which save; what was stopped continues when the same is run
    again.

    Args:
      at_once: jobs that run side by side, each on its own share of this process's cores.

    Raises:
      InputError: fewer cores than that.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= at_once <= len(cores):
        raise InputError(f"--jobs is {at_once}; this process has {len(cores)} cores")
    failed: list[str] = []
    waiting = _todo(jobs, failed, place)
    before = len(jobs) - len(waiting) - len(failed)
    print(f"{len(jobs)} jobs, {before} of them done before", flush=True)
    running: dict[int, _Running] = {}
    told = False
    stop = StopSignal()
    stop.install()
    while running or (waiting and not stop.requested):
        for n in set(range(at_once)) - running.keys() if not stop.requested else ():
            if job := _next(waiting, running.values(), failed, place):
                running[n] = _start(job, place, set(cores[n::at_once]), command(job, place))
        if stop.requested and not told:
            told = True
            for child in running.values():
                child.process.terminate()
        for n, child in list(running.items()):
            if child.process.poll() is not None:
                del running[n]
                if not _conclude(child, place):
                    failed.append(child.job.name)
        time.sleep(POLL_SECONDS)
    if stop.requested:
        print("stopped; start the same command again to continue", flush=True)
        return STOPPED
    if failed:
        print(f"{len(failed)} of {len(jobs)} jobs failed: {', '.join(failed)}", flush=True)
    return FAILED if failed else DONE


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen
    began: float


def _todo(jobs: list[Job], failed: list[str], place: Place) -> list[Job]:
    """The jobs without results; those of a finished run join the raw results.

    Raw results that were kept count as well, so that a fresh clone repeats none of them. A job
    whose result could not be kept, as one of another configuration has its name, has failed.
    """
    kept = {
        group: raw_results.read(place.results / group, lapo=group == "lapo")
        for group in {job.group for job in jobs}
    }
    todo = []
    for job in jobs:
        if any(same_config(result["config"], job.config) for result in kept[job.group]):
            continue
        if other := _in_the_way(job, kept[job.group]):
            path = place.results / job.group / raw_results.file_name(other)
            apart = raw_results.differing(other["config"], job.config)
            print(
                f"{job.name}: FAILED: {path} holds the result of another configuration "
                f"({', '.join(apart)}); use another --results, or leave this job out"
            )
            failed.append(job.name)
            continue
        results = place.of(job) / "results.json"
        if results.exists() and raw_results.whole(results)["config"] == job.config:
            print(f"{job.name}: {raw_results.add(place.results / job.group, place.of(job))}")
        else:
            todo.append(job)  # where only the config differs, the run itself says in what
    return todo


def _in_the_way(job: Job, kept: list[raw_results.Result]) -> raw_results.Result | None:
    """The kept result that a job's would have to replace; None where there is none."""
    return next((x for x in kept if raw_results.takes_name_of(job.config, x)), None)


def _next(
    waiting: list[Job], running: Iterable[_Running], failed: list[str], place: Place
) -> Job | None:
    """Takes the first of the waiting jobs that needs none of the others.

    One that cannot run is reported, and is then among the failed.
    """
    unfinished = {job.name for job in waiting} | {child.job.name for child in running}
    for job in list(waiting):
        if job.needs in unfinished:
            continue
        waiting.remove(job)
        obstacle = _obstacle(job, failed, place)
        if not obstacle:
            return job
        print(f"{job.name}: FAILED: it needs {job.needs}, {obstacle}", flush=True)
        failed.append(job.name)
    return None


def _obstacle(job: Job, failed: list[str], place: Place) -> str:
    """Why the job that another one needs does not serve it; "" where it does."""
    needed = place.workdir / job.needs
    if not job.needs or (needed / "results.json").exists():
        return ""
    if job.needs in failed:
        return "which did not finish"
    return (
        f"whose raw result was kept but whose work directory {needed} is gone; remove that result "
        "to run it again"
    )


def _start(job: Job, place: Place, cores: set[int], command: list[str]) -> _Running:
    log = place.log(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{job.name}: {shlex.join(['python', *command[1:]])}", flush=True)
    with log.open("a") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes from here, once
            preexec_fn=lambda: _prepare(cores),
        )
    return _Running(job, process, time.monotonic())


def _prepare(cores: set[int]) -> None:
    """In the job's process, before it starts: its cores, and a SIGTERM should the sweep be killed.

    So that it saves and goes instead of running on where nobody sees it.
    """
    os.sched_setaffinity(0, cores)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _conclude(child: _Running, place: Place) -> bool:
    """Reports a job that has ended and keeps its raw result; whether it is done."""
    job, code = child.job, child.process.returncode
    minutes = (time.monotonic() - child.began) / 60
    if code == DONE:
        try:
            kept = raw_results.add(place.results / job.group, place.of(job))
        except InputError as error:
            print(f"{job.name}: FAILED: {error}", flush=True)
            return False
        files = ", ".join(str(path) for path in kept)
        print(f"{job.name}: done in {minutes:.1f} minutes, {files}", flush=True)
        return True
    if code == STOPPED:
        print(f"{job.name}: stopped after saving", flush=True)
        return False
    lines = place.log(job).read_text().splitlines()
    why = next((line for line in reversed(lines) if line.startswith("error: ")), "")
    print(f"{job.name}: FAILED with code {code}: {why or place.log(job)}", flush=True)
    return False
