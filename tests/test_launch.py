"""The command line, the work directory, signals and exit codes of an experiment."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_experiment import main as toy_main

from experiments import command_line, identity, launch
from experiments.progress import Progress
from experiments.summary import summary
from lawm_jax.errors import InputError

ROOT = Path(__file__).parent.parent
CONFIG = """
import ml_collections

def get_config(arg=""):
    if arg == "bad":
        raise ValueError("toy.py: 'bad' is no task; choose one of: run, stand")
    config = ml_collections.ConfigDict()
    config.task = arg
    config.seed = 0
    config.fail = ""
    config.loop = ml_collections.ConfigDict({"steps": 3, "seconds": 0.0, "fast": True})
    config.loop.sizes = (1, 2)
    return config.lock()
"""


@pytest.fixture(autouse=True)
def in_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "toy.py").write_text(CONFIG)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def parse(*args):
    return command_line.parse(["toy_experiment.py", *args])


def run(*args):
    """Runs the toy in this process; returns the exit code."""
    with pytest.raises(SystemExit) as exit_:
        launch.run(toy_main, ["toy_experiment.py", *args])
    return exit_.value.code


def start(*args):
    """Starts the toy as a process of its own."""
    return subprocess.Popen(
        [sys.executable, ROOT / "tests" / "toy_experiment.py", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_line(process, beginning):
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"no line '{beginning}': {process.stderr.read()}")


# ---- command line


def test_overrides_keep_their_types():
    config = parse(
        "--config=toy.py:run",
        "--config.seed=3",
        "--config.loop.seconds=1e-2",
        "--config.loop.fast=false",
        "--config.loop.sizes=(4,5,6)",
        "--config.fail=7",
    ).config
    assert config.task == "run"
    assert (config.seed, config.fail) == (3, "7")
    assert config.loop.to_dict() == {
        "steps": 3,
        "seconds": 0.01,
        "fast": False,
        "sizes": (4, 5, 6),
    }
    assert config.is_locked


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--config is missing; write for example --config=configs/dmc.py:walker_walk"),
        (["--config"], "config file '' not found; nearest: 'toy.py'"),
        (["--config=tyo.py"], "config file 'tyo.py' not found; nearest: 'toy.py'"),
        (["--config=toy.py:bad"], "toy.py: 'bad' is no task; choose one of: run, stand"),
        (
            ["--config=toy.py", "--config.loop.step=1"],
            "unknown config key 'loop.step'; nearest: 'loop.steps'",
        ),
        (["--config=toy.py", "--config.steps=1"], "unknown config key 'steps'; nearest: 'loop.st"),
        (["--config=toy.py", "--config.sede=1"], "unknown config key 'sede'; nearest: 'seed'"),
        (["--config=toy.py", "--config.loop=1"], "config key 'loop' is a group; set one of its"),
        (
            ["--config=toy.py", "--config.loop.steps=1e6"],
            "config key 'loop.steps' is an int, got '1e6'; write 1000000",
        ),
        (["--config=toy.py", "--config.seed=2.5"], "config key 'seed' is an int, got '2.5'"),
        (["--config=toy.py", "--config.seed=two"], "config key 'seed' is an int, got 'two'"),
        (
            ["--config=toy.py", "--config.loop.seconds=a: b"],
            "config key 'loop.seconds' is a float, got 'a: b'",
        ),
        (
            ["--config=toy.py", "--config.loop.fast=maybe"],
            "config key 'loop.fast' is a bool, got 'maybe'; write true or false",
        ),
        (["--config=toy.py", "--config.seed"], "Missing value for flag --config.seed"),
        (["--config=toy.py", "--wokrdir=x"], "unknown flag '--wokrdir'; nearest: '--workdir'"),
        (["--config=toy.py", "--render=7"], "flag --render=7: "),
        (["--config=toy.py", "run"], "unexpected argument 'run'; flags are written --NAME=VALUE"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(args, message):
    with pytest.raises(InputError) as error:
        parse(*args)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "text", "message"), [
    ("notes.md", "# notes", "'notes.md' is no config file: a Python file that defines get_config"),
    ("empty.py", "", "'empty.py' is no config file: a Python file that defines get_config"),
    ("other.py", "get_config = dict", "'other.py' is not a config of this experiment: it has no "),
])
def test_a_file_that_is_no_config_of_the_experiment(name, text, message):
    Path(name).write_text(text)
    with pytest.raises(InputError, match=message):
        parse(f"--config={name}")


def test_the_order_of_flags_does_not_matter():
    first = parse("--config", "toy.py:run", "--config.seed", "1", "--render", "--data_dir=d")
    second = parse("--data_dir=d", "--render", "--config.seed=1", "--config=toy.py:run")
    assert first.config.to_dict() == second.config.to_dict()
    assert (first.config.seed, first.render, first.data_dir) == (1, True, "d")
    assert first.run_name() == second.run_name()


def test_the_default_work_directory_names_config_and_overrides():
    def name(*args):
        return parse(*args).run_name()

    assert name("--config=toy.py") == "toy"
    assert name("--config=toy.py:run,tiny") == "toy_run_tiny"
    first = name("--config=toy.py:run", "--config.seed=1", "--config.loop.seconds=1e-3")
    second = name("--config=toy.py:run", "--config.loop.seconds=0.001", "--config.seed=1")
    assert first == second == "toy_run_loop.seconds=0.001_seed=1"
    assert name("--config=toy.py:run", "--config.fail=../a b") == "toy_run_fail=..-a-b"
    long = [name("--config=toy.py:run", f"--config.fail={'x' * 300}{end}") for end in "ab"]
    assert long[0] != long[1]
    assert max(map(len, long)) < 160


def test_help_answers_at_once():
    begin = time.monotonic()
    output = subprocess.check_output(
        [sys.executable, ROOT / "tests" / "toy_experiment.py", "--help"], text=True
    )
    assert time.monotonic() - begin < 5
    assert "A toy experiment" in output
    assert "--workdir" in output


# ---- exit codes


def test_done_and_finished(capsys):
    assert run("--config=toy.py:run") == 0
    assert "from 0" in capsys.readouterr().out
    assert run("--config=toy.py:run") == 0
    output = capsys.readouterr().out
    assert "from" not in output
    assert "is finished" in output
    assert "run" in output
    workdir = Path("runs/toy_experiment/toy_run")
    assert json.loads((workdir / "config.json").read_text())["config"]["loop"]["sizes"] == [1, 2]


@pytest.mark.parametrize("name", ["results.json", "config.json"])
@pytest.mark.parametrize("text", ['{"config"', "[]", "{}"])
def test_a_finished_run_with_a_damaged_file_says_which(capsys, name, text):
    assert run("--config=toy.py:run") == 0
    (Path("runs/toy_experiment/toy_run") / name).write_text(text)
    assert run("--config=toy.py:run") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: runs/toy_experiment/toy_run/{name} is ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("fail", "code", "message"),
    [
        ("input", 2, "error: task 'walk' is unknown; choose one of: run, stand\n"),
        ("training", 1, "error: step 3: loss = nan\n"),
        ("disk", 1, "error: no space left on the disk ([Errno 28] No space left on device: 'met"),
    ],
)
def test_what_a_user_can_mend_is_one_line(capsys, fail, code, message):
    assert run("--config=toy.py", f"--config.fail={fail}") == code
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        launch.run(toy_main, ["toy_experiment.py", "--config=toy.py", "--config.fail=bug"])


def test_a_platform_that_is_not_there_stops_the_run():
    environment = os.environ | {"JAX_PLATFORMS": "cuda"}
    command = [sys.executable, ROOT / "tests" / "toy_experiment.py", "--config=toy.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX found no device for JAX_PLATFORMS=cuda")


# ---- work directory


def test_a_work_directory_of_another_config(capsys):
    assert run("--config=toy.py:run", "--workdir=w") == 0
    before = {path: path.read_bytes() for path in Path("w").iterdir()}
    assert run("--config=toy.py:run", "--workdir=w", "--config.seed=1", "--config.fail=x") == 2
    assert capsys.readouterr().err == (
        "error: work directory w belongs to another run (fail  -> x, seed 0 -> 1); "
        "choose another --workdir\n"
    )
    after = {path: path.read_bytes() for path in Path("w").iterdir()}
    assert {path.name for path in before} == {".lock", "config.json", "results.json"}
    assert all(after[path] == before[path] for path in before if path.name != ".lock")


def test_a_work_directory_that_cannot_be_made(capsys):
    Path("file").write_text("mine")
    assert run("--config=toy.py", "--workdir=file/w") == 2
    assert capsys.readouterr().err.startswith("error: work directory file/w cannot be used: ")
    assert Path("file").read_text() == "mine"
    assert run("--config=toy.py", "--workdir=s3://bucket/w") == 2
    assert "of addresses only gs:// is known" in capsys.readouterr().err
    assert not Path("s3:").exists()


def test_bad_input_does_not_claim_the_work_directory():
    assert run("--config=toy.py", "--workdir=w", "--config.fail=input") == 2
    assert run("--config=toy.py", "--workdir=w") == 0


def test_a_run_that_was_begun_before_a_key_came_goes_on(capsys, monkeypatch):
    assert run("--config=toy.py", "--workdir=w") == 0
    known = json.loads(Path("w/config.json").read_text())
    seed = known["config"].pop("seed")
    Path("w/config.json").write_text(json.dumps(known))
    monkeypatch.setitem(identity.LATER, "seed", seed)
    assert run("--config=toy.py", "--workdir=w") == 0
    assert run("--config=toy.py", "--workdir=w", f"--config.seed={seed + 1}") == 2
    assert f"belongs to another run (seed {seed} -> {seed + 1})" in capsys.readouterr().err


def test_a_second_process_on_a_work_directory_is_refused(capsys):
    first = start("--config=toy.py", "--workdir=w", "--config.loop.seconds=60.0")
    try:
        wait_for_line(first, "from 0")
        assert run("--config=toy.py", "--workdir=w", "--config.loop.seconds=60.0") == 2
        assert f"work directory w is in use by process {first.pid};" in capsys.readouterr().err
    finally:
        first.kill()
        first.communicate()
    assert run("--config=toy.py", "--workdir=w", "--config.seed=1") == 2  # config, not lock
    assert "belongs to another run" in capsys.readouterr().err


# ---- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_continues(number):
    command = ["--config=toy.py", "--workdir=w", "--config.loop.seconds=0.1"]
    process = start(*command, "--config.loop.steps=60")
    wait_for_line(process, "from 0")
    time.sleep(0.3)
    process.send_signal(number)
    output, error = process.communicate()
    assert process.returncode == 75
    assert "start the same command again to continue" in output
    assert "stopping after the next save" in error
    assert "Traceback" not in error
    step = int(Path("w/step").read_text())
    assert 1 <= step < 60

    process = start(*command, "--config.loop.steps=60")
    wait_for_line(process, f"from {step}")
    process.send_signal(number)
    process.communicate()
    assert process.returncode == 75
    assert int(Path("w/step").read_text()) > step


def test_a_second_interrupt_exits_at_once():
    process = start("--config=toy.py", "--config.loop.seconds=60.0")
    wait_for_line(process, "from 0")
    process.send_signal(signal.SIGINT)
    assert "stopping" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 1


# ---- summary and progress


def test_the_summary_is_an_aligned_table():
    results = {
        "config": {"task": "walker_walk", "method": "lawm"},
        "dataset": {"trajectories": 400, "return_statistics": {"median": 512.345}},
        "evaluation": {"return_mean": 801.26, "return_ci95": 20.0, "episodes": 16},
        "metrics": None,
        "wall_clock_seconds": 321.9,
    }
    lines = summary(results).splitlines()
    assert [line.split() for line in lines if "walker" in line] == [["task", "walker_walk"]]
    assert sum(line.endswith("  801.3 ± 20.0") for line in lines) == 1
    assert sum(line.endswith("  322 s") for line in lines) == 1
    unknown = ("quartiles", "decoded", "model")
    assert not any(name in line for name in unknown for line in lines)
    assert len({line.rindex("  ") for line in lines if line[-1].isdigit()}) == 1  # one column
    assert summary({}) == ""


def test_progress_in_plain_lines(capsys):
    progress = Progress("agent", total=200, first=100)
    progress.update(125, {"loss": 0.5})
    progress.update(150)
    progress.update(200, {"loss": 0.123456})
    progress.close()
    first, last = capsys.readouterr().out.splitlines()  # lines are seconds apart, but for the end
    assert first == "agent 125/200, loss 0.5"  # no pace yet: compilation came before
    assert re.fullmatch(r"agent 200/200, \S+ steps/s, 0 s left, loss 0.1235", last)
