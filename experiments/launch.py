"""What every experiment starts with: command line, signals and exit codes.

    def main(run: launch.Run) -> None: ...

    if __name__ == "__main__":
        launch.run(main)

Exit codes: 0 done, 2 bad usage or input, 75 stopped by a signal after saving (the same command
again continues the run), 1 anything else. What a user can mend is one line on stderr.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from ml_collections import ConfigDict

from experiments import command_line
from experiments.summary import summary
from experiments.workdir import Workdir
from lawm_jax import bucket
from lawm_jax.errors import InputError, TrainingError

if TYPE_CHECKING:
    from etils import epath

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 75
LOOKS, BETWEEN_LOOKS = 10, 0.5  # seconds; a shared disk may show a file late


class Stopped(Exception):
    """Raised by a training loop that has saved because `run.stop.requested`."""


class StopSignal:
    """SIGTERM and SIGINT as a flag that training loops poll; a second SIGINT exits at once."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        """Takes over the two signals."""
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def check(self) -> None:
        """Raises Stopped if a signal has come; what needs saving is saved before."""
        if self.requested:
            raise Stopped

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            os._exit(FAILED)
        self.requested = True
        # not print, which may be under way at this very moment
        os.write(2, b"\nstopping after the next save (Ctrl-C again exits at once)\n")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of an experiment, as its `main` receives it."""

    config: ConfigDict  # locked, overrides applied
    workdir: "epath.Path"  # a local folder; no other live process uses it
    address: "epath.Path"  # where the run is kept: the same, or a gs:// address
    publish: Callable[[], None]  # does the copying; every host calls it before it saves
    data_dir: "epath.Path"
    render: bool
    profile: bool
    command: str  # what started the run
    commit: str  # of the checkout, with "-dirty" where it has changes; "unknown" without git
    stop: StopSignal


def run(main: Callable[[Run], None], argv: list[str] | None = None) -> NoReturn:
    """Parses the command line, prepares the work directory, calls main and exits."""
    try:
        code = _run(main, sys.argv if argv is None else argv)
    except InputError as error:
        code = _fail(BAD_INPUT, error)
    except TrainingError as error:
        code = _fail(FAILED, error)
    except KeyboardInterrupt:  # before the stop signal is installed
        code = _fail(STOPPED, "interrupted before the run began")
    except Exception as error:
        from lawm_jax.checkpoint import disk_full

        if not disk_full(error):
            raise
        code = _fail(FAILED, f"no space left on the disk ({error}); free some and start again")
    sys.exit(code)


def _run(main: Callable[[Run], None], argv: list[str]) -> int:
    if {"-h", "-help", "--help"} & set(argv[1:]):
        print(f"{main.__globals__.get('__doc__') or ''}\nFlags:\n{command_line.HELP}")
        return DONE
    parsed = command_line.parse(argv)
    experiment = Path(argv[0]).stem
    bucket.connect(parsed.data_dir)
    workdir = Workdir(parsed.workdir or f"runs/{experiment}/{parsed.run_name()}")
    config = json.loads(parsed.config.to_json_best_effort())
    several = _connect(parsed, experiment, json.dumps(config, sort_keys=True))
    with contextlib.ExitStack() as held:

        def claim() -> None:
            held.enter_context(workdir.claim({"experiment": experiment, "config": config}))

        if several:
            writes = _on_main(claim)
        else:
            claim()
            writes = True
        try:
            finished = _finished_for_all(workdir) if several else workdir.finished()
            if finished and writes:
                print(f"{workdir} is finished:\n\n{summary(workdir.results())}")
            if finished and not parsed.render:
                return DONE
            return _start(main, parsed, experiment, workdir, argv)
        except InputError:
            if writes:
                workdir.unclaim()
            raise


def _connect(parsed: command_line.CommandLine, experiment: str, config: str) -> bool:
    """Connects the hosts, where there are several, and checks that they run the same thing.

    Whatever decides what a host does next: where one leaves, the others would wait for it.
    """
    from lawm_jax import runner

    if not runner.connect(parsed.distributed):
        return False
    _start_jax()
    decisive = {
        "experiment": experiment,
        "config": config,
        "--workdir": parsed.workdir or parsed.run_name(),
        "--data_dir": parsed.data_dir,
        "--render": parsed.render,
        "--profile": parsed.profile,
    }
    for name, value in decisive.items():
        runner.require_equal(str(value), f"{name}: start the same command on all of them")
    return True


def _on_main(work: Callable[[], None]) -> bool:
    """Calls `work` on the process that writes, with the others waiting; whether this is it."""
    from lawm_jax import runner

    writes = runner.is_main()
    runner.all_or_none(work if writes else lambda: None)
    return writes


def _finished_for_all(workdir: Workdir) -> bool:
    """Whether the run that process 0 has just claimed is finished, as that process sees it.

    Raises:
      InputError: another host does not see the claim, so the directory is another one there.
    """
    from lawm_jax import runner

    for look in range(LOOKS):
        time.sleep(BETWEEN_LOOKS if look else 0)
        if runner.is_equal(runner.all_or_none(workdir.claimant)):
            break
    else:
        raise InputError(
            f"the hosts of this run see different directories at {workdir}: give a --workdir that "
            "all of them share, on a disk or as gs://BUCKET/FOLDER"
        )
    finished = runner.all_or_none(lambda: runner.is_main() and workdir.finished())
    return runner.on_any_process(finished)


def _start(
    main: Callable[[Run], None],
    parsed: command_line.CommandLine,
    experiment: str,
    workdir: Workdir,
    argv: list[str],
) -> int:
    stop = StopSignal()
    stop.install()
    commit = _commit()
    devices = _start_jax()
    print(f"{experiment}: {devices}, commit {commit}, work directory {workdir}", flush=True)

    from etils import epath

    started = Run(
        config=parsed.config,
        workdir=epath.Path(workdir.path),
        address=epath.Path(workdir.address),
        publish=workdir.publish,
        data_dir=epath.Path(parsed.data_dir),
        render=parsed.render,
        profile=parsed.profile,
        command=shlex.join(["python", "-m", f"experiments.{experiment}", *argv[1:]]),
        commit=commit,
        stop=stop,
    )
    try:
        main(started)
        workdir.publish()
    except TrainingError:
        workdir.publish_last()  # the logs that show what went wrong
        raise
    except Stopped:
        workdir.publish()
        print("stopped; start the same command again to continue from what was saved", flush=True)
        return STOPPED
    return DONE


def _fail(code: int, message: object) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


# ---- surroundings


def _commit() -> str:
    """The commit of the checkout that holds this file."""

    def git(*args: str) -> str:
        directory = Path(__file__).parent
        return subprocess.check_output(
            ["git", *args], cwd=directory, text=True, stderr=subprocess.DEVNULL
        ).strip()

    try:
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _start_jax() -> str:
    """Starts the JAX backend and its compilation cache; says in words what was found.

    Raises InputError where the platform that JAX_PLATFORMS asks for is not there.
    """
    import jax
    from absl import logging

    from lawm_jax import runner

    logging.set_verbosity(logging.FATAL)  # Orbax logs at length what it then raises anyway
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "lawm_jax"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    devices = runner.find_devices()
    kind = devices[0].device_kind
    name = jax.default_backend() + ("" if kind == jax.default_backend() else f" ({kind})")
    several = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"{len(devices)} device{'s' if len(devices) > 1 else ''}, {name}{several}"
