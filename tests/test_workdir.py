"""Work directories at gs:// addresses; local ones are in test_launch.py.

The run is a counter that is trained, saved and logged as any other phase.
"""

import functools
import json
import shutil
import signal
from pathlib import Path

import counting
import pytest

from experiments import launch
from lawm_jax.errors import TrainingError

STAGING = Path("runs/gs")


@pytest.fixture(autouse=True)
def in_temporary_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "toy.py").write_text(counting.CONFIG)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def start(workdir, *args, at=None, event=None):
    """Counts to 12 in this process; `event(run)` happens at the evaluation at that step."""
    main = functools.partial(counting.count, at=at, event=event)
    with pytest.raises(SystemExit) as exit_:
        launch.run(main, ["toy.py", "--config=toy.py", f"--workdir={workdir}", *args])
    return exit_.value.code


def stop(run):
    run.stop.requested = True


def crash(run):
    raise KeyError("killed")


def test_any_machine_continues_a_run_to_the_same_end(gcs, capsys):
    assert start("local") == 0
    assert start("gs://bucket/run", at=4, event=stop) == 75
    shutil.rmtree(STAGING)  # another machine
    with pytest.raises(KeyError):
        start("gs://bucket/run", at=10, event=crash)
    assert "continuing from count 4" in capsys.readouterr().out
    shutil.rmtree(STAGING)
    assert start("gs://bucket/run/") == 0
    output = capsys.readouterr().out
    assert "continuing from count 8" in output
    assert "results and plots in gs://bucket/run" in output

    kept = {name.removeprefix("run/") for name in gcs.names("run/")}
    steps = {name.split("/")[1] for name in kept if name.startswith("checkpoints/")}
    assert steps == {"8", "12"}
    (events,) = {name for name in kept if name.startswith("tensorboard/")}
    assert {name for name in kept if "/" not in name} == {
        ".owner", "config.json", "metrics.jsonl", "results.json"
    }
    local, remote = json.loads(Path("local/results.json").read_text()), read(gcs, "results.json")
    assert json.loads(remote)["state_digest"] == local["state_digest"]
    assert read(gcs, "metrics.jsonl") == Path("local/metrics.jsonl").read_bytes()
    assert read(gcs, events) == (STAGING / "bucket/run" / events).read_bytes()

    shutil.rmtree(STAGING)
    assert start("gs://bucket/run") == 0
    assert "gs://bucket/run is finished" in capsys.readouterr().out


def test_a_run_that_fails_leaves_its_logs(gcs, capsys):
    def fail(run):
        (run.workdir / "last.txt").write_text("loss nan")
        raise TrainingError("loss is nan")

    assert start("gs://bucket/run", at=6, event=fail) == 1
    assert "error: loss is nan" in capsys.readouterr().err
    assert read(gcs, "last.txt") == b"loss nan"


def test_a_finished_run_without_checkpoints_is_not_trained_again(gcs, capsys):
    assert start("local") == 0
    shutil.rmtree("local/checkpoints")
    assert start("local", "--render") == 2
    assert "is finished, but its checkpoints are gone" in capsys.readouterr().err


def read(gcs, name):
    return gcs.objects[f"run/{name}"][0]


def test_logs_reach_as_far_as_the_checkpoint_when_a_save_fails(gcs, capsys, monkeypatch):
    """And what they hold beyond the checkpoint is not there twice."""
    with monkeypatch.context() as patched, pytest.raises(KeyError):
        patched.setattr("experiments.training.Checkpoints.save", crash_in_save)
        start("gs://bucket/run")
    steps = [json.loads(line)["step"] for line in read(gcs, "metrics.jsonl").splitlines()]
    assert steps == [2, 2, 4, 4]
    assert start("gs://bucket/run") == 0
    steps = [json.loads(line)["step"] for line in read(gcs, "metrics.jsonl").splitlines()]
    assert steps == sorted([*range(2, 13, 2)] * 2)


def crash_in_save(checkpoints, step, state, extra):
    raise KeyError("killed")


def test_the_last_starter_takes_over(gcs, capsys):
    def take(run):
        gcs.objects["run/.owner"] = b"other-vm process 7 (0123abcd)", 10**6

    assert start("gs://bucket/run", at=6, event=take) == 1
    assert capsys.readouterr().err == (
        "error: work directory gs://bucket/run was taken over by other-vm process 7 (0123abcd); "
        "this process stops and leaves it as it is\n"
    )
    steps = {name.split("/")[2] for name in gcs.names("run/checkpoints/")}
    assert steps == {"4"}
    assert start("gs://bucket/run") == 0
    assert b"other-vm" not in read(gcs, ".owner")


def test_a_bucket_that_fails_stops_the_run(gcs, capsys):
    def refuse(run):
        gcs.refuse = 403

    assert start("gs://bucket/run", at=6, event=refuse) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: gs://bucket/run/.owner cannot be read or written: Forbidden")
    assert error.count("\n") == 1


def test_another_config_is_refused_and_changes_nothing(gcs, capsys):
    assert start("gs://bucket/run", at=4, event=stop) == 75
    before = dict(gcs.objects)
    capsys.readouterr()
    assert start("gs://bucket/run", "--config.seed=1") == 2
    assert capsys.readouterr().err == (
        "error: work directory gs://bucket/run belongs to another run (seed 0 -> 1); "
        "choose another --workdir\n"
    )
    assert gcs.objects == before


def test_bad_input_leaves_nothing_behind(gcs):
    assert start("gs://bucket/run", "--config.task=unknown") == 2
    assert gcs.names() == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["gs://bucket"], "--workdir=gs://bucket: name a folder in the bucket"),
        (["gs://bucket/a/../b"], "--workdir=gs://bucket/a/../b: name a folder in the bucket"),
        (["gs://missing/run"], "gs://missing cannot be used: 404"),
        (["s3://bucket/run"], "s3://bucket/run: of addresses only gs:// is known"),
        (["w", "--data_dir=gs://missing/data"], "gs://missing cannot be used: 404"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_line(gcs, capsys, flags, message):
    assert start(*flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not Path("w").exists() and not STAGING.exists()
