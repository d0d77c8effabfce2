"""What tests of several modules share."""

import os
import signal
import threading
from pathlib import Path

import jax
import pytest
from fake_gcs import Server
from jax._src import compiler

from experiments import launch

SLOWEST = (
    "lapo_job", "runner", "lawm_job", "lapo_stages", "baselines_job", "elbo", "lapo_devices",
    "step_time", "train_steps", "lapo_learner", "sweep",
)


def pytest_collection_modifyitems(items):
    """Files that take long go first, so that the workers end together."""
    rank = {f"test_{name}": i for i, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation(request):
    """Has all modules compile without most optimisations, which takes far less time.

    A module whose tests are about what optimisations may change, or run for long, says so by
    `OPTIMISED = True`; what of it is not asks for `quick_compilation_here`.
    """
    if getattr(request.module, "OPTIMISED", False):
        yield
    else:
        yield from _without_optimisations()


@pytest.fixture
def quick_compilation_here():
    """Quick compilation for one test of a module that has `OPTIMISED`."""
    yield from _without_optimisations()


def _without_optimisations():
    """As processes.QUICK_COMPILATION; XLA's flags are read once, so that option is given by jit."""
    given = compiler.get_compile_options

    def without_emitters(*args, **kwargs):
        options = given(*args, **kwargs)
        if jax.default_backend() == "cpu":
            emitters = ("xla_cpu_use_fusion_emitters", False)
            options.env_option_overrides = [*options.env_option_overrides, emitters]
        return options

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(compiler, "get_compile_options", without_emitters)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared_compilation(tmp_path_factory):
    """Has the processes that tests start share all that they compile, small programs as well.

    The cache is the session's and its workers' own.
    """
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(place / "compiled"))
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        yield


@pytest.fixture
def run_main(tmp_path, monkeypatch, capsys):
    """Runs an experiment in this process: run_main(main, *args) -> (exit code, stderr).

    Its work directory is tmp_path / "run".
    """
    monkeypatch.chdir(Path(__file__).parent.parent)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(main, *args):
        name = main.__module__.rpartition(".")[2]
        with pytest.raises(SystemExit) as exit_:
            launch.run(main, [f"{name}.py", f"--workdir={tmp_path / 'run'}", *args])
        return exit_.value.code, capsys.readouterr().err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def _server():
    server = Server("bucket")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as monkeypatch:
        for key, value in server.environment().items():
            monkeypatch.setenv(key, value)
        pytest.importorskip("gcsfs")  # which reads one of them when it is imported
        yield server
    server.shutdown()


@pytest.fixture
def gcs(_server):
    """A fake Cloud Storage with the empty bucket "bucket", which this process's libraries use."""
    _server.objects.clear()
    yield _server
    _server.refuse = None
