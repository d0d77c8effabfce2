"""step_time: its rows, what its overheads are, and the one line that it says of bad input."""

import functools
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import data as data_speed
from benchmarks import flops, parts, step_time
from benchmarks.train_step import TrainStep
from benchmarks.train_steps import train_steps
from configs.dmc import get_config
from lawm_jax import runner


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Runs step_time with arguments; returns what it wrote, rows by name."""

    def run(*arguments):
        target = tmp_path / "rows.json"
        monkeypatch.setattr(step_time, "REPETITIONS", 1)
        monkeypatch.setattr(flops, "matmul_rate", functools.partial(flops.matmul_rate, size=64))
        monkeypatch.setattr(sys, "argv", ["step_time", f"--json={target}", *arguments])
        step_time.main()
        written = json.loads(target.read_text())
        assert written["command"] == " ".join(["python -m benchmarks.step_time", *arguments])
        return {row["step"]: row for row in written["rows"]}

    return run


def test_step_time_writes_its_rows(measured, capsys):
    rows = measured(
        "--config=configs/dmc.py:walker_walk,tiny", "--config.run.steps_per_call=1",
        "--config.td3_bc.steps_per_call=2", "--config.inverse_dynamics.steps_per_call=3",
        "--config.world_model.dtype=bfloat16", "--plain",
    )  # fmt: skip
    steps = {
        "world_model": 1, "actor_critic": 1, "td3_bc": 2, "inverse_dynamics": 3,
        "td3_bc, one step a dispatch": 1, "world_model, plain": 1,
    }  # fmt: skip
    assert {name: row["steps_per_call"] for name, row in rows.items()} == steps
    dtypes = {name: row["dtype"] for name, row in rows.items() if "dtype" in row}
    assert dtypes == {
        name: "float32" if name.startswith(("td3_bc", "inverse")) else "bfloat16" for name in dtypes
    }
    assert all(row["steps_per_second"] > 0 for row in rows.values())
    assert rows["world_model"]["host_overhead"] < 1
    assert "| world_model |" in capsys.readouterr().out


def test_several_seeds_side_by_side_have_the_operations_of_each():
    mesh = runner.make_mesh(jax.devices()[:1])
    steps = {step.name: step for step in train_steps(get_config("walker_walk,tiny"), mesh, 2)}
    for name in ("world_model", "actor_critic"):
        both = steps[f"{name}, 2 seeds"]
        assert both.seeds == 2 and both.operations() == 2 * steps[name].operations() > 0


def test_step_time_of_lapo(measured):
    rows = measured(
        "--config=configs/procgen.py:miner,tiny", "--config.run.steps_per_call=2",
        "--config.data.on_device=false",
    )  # fmt: skip
    steps = {
        "lapo_stage1": 2, "lapo_stage2": 2, "lapo_cloning": 2, "lapo_supervised_idm": 2,
        "lapo_distillation": 2, "lapo_decoder": 2, "ppo_update": 6, "ppo_update, frozen trunk": 6,
        "lapo_decoder, one step a dispatch": 1,
    }  # fmt: skip
    assert {name: row["steps_per_call"] for name, row in rows.items()} == steps
    assert all(row["memory_mb"] > 0 for row in rows.values())
    # Convolutions are dispatched step by step on a CPU, where no scan tells the device's own time.
    by_step = {name for name, row in rows.items() if "logging_overhead" in row}
    assert by_step == {name for name, row in rows.items() if "host_overhead" not in row}
    assert by_step == {
        "lapo_stage1", "lapo_stage2", "lapo_cloning", "lapo_supervised_idm",
        "lapo_distillation", "ppo_update",
    }
    assert all(row["useful_gflops_per_step"] > 0 for row in rows.values())
    # 8 environments of 16 steps; 3 epochs of 2 minibatches each
    assert rows["ppo_update"]["windows_per_second"] == pytest.approx(
        8 * 16 / 6 * rows["ppo_update"]["steps_per_second"]
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what its `seconds` are raised by."""
    clock = types.SimpleNamespace(seconds=0.0)
    perf_counter = lambda: clock.seconds
    monkeypatch.setattr(step_time, "time", types.SimpleNamespace(perf_counter=perf_counter))
    return clock


def test_host_overhead_is_what_one_long_dispatch_saves(clock):
    """A dispatch costs a second of Python, and its steps three of the device."""

    def run(calls):
        def call(state):
            clock.seconds += 1.0 + 3.0 * calls
            return state, {"loss": np.zeros(1)}

        return call

    once, all_calls = run(1), run(step_time.CALLS)
    measured = step_time.overhead(once, all_calls, jnp.zeros(()), {"loss": np.zeros(1)})
    loop = step_time.CALLS * 4.0
    assert measured == pytest.approx(1 - (loop - step_time.CALLS + 1) / loop)


def test_where_steps_are_dispatched_one_by_one_only_fetching_counts(clock):
    class Metric:
        """It takes a second to fetch, with the device idle."""

        def __array__(self, *args, **kwargs):
            clock.seconds += 1.0
            return np.zeros(1)

    def call(state):
        clock.seconds += 3.0
        return state, {"loss": Metric()}

    queue, metrics = step_time.queued(call), {"loss": Metric()}
    assert step_time.overhead(call, queue, jnp.zeros(()), metrics) == 0.25
    free = lambda state: (call(state)[0], {"loss": np.zeros(1)})
    metrics = {"loss": np.zeros(1)}
    assert step_time.overhead(free, step_time.queued(free), jnp.zeros(()), metrics) == 0.0


def test_streamed_data_of_a_dispatch_are_cut_or_come_again():
    data = np.arange(6).reshape(3, 2)
    step = TrainStep("", None, None, None, data, windows=2, steps_per_call=3, streamed=True)
    assert step.with_steps(1).sharded.tolist() == [[0, 1]]
    assert step.with_steps(4).sharded.tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    resident = step._replace(streamed=False).with_steps(4)
    assert resident.sharded is data and resident.steps_per_call == 4


@pytest.mark.parametrize(("arguments", "message"), [
    (["--config.data.trajectories=0"], "data.trajectories is 0; it must be >= 1"),
    (["--config.data.label_fraction=3.0"], "data.label_fraction is 3.0, which is not in (0, 1]"),
    (["--config.data.label_fraction=1.0"], "20 of 20 trajectories are labelled, which leaves none"),
    (["--seeds=0"], "--seeds is 0; it must be >= 1"),
    (["--seeds=2", "--config.data.on_device=false"], "--seeds above 1 needs data.on_device"),
    (["--json=/nonexistent/x.json"], "--json=/nonexistent/x.json: there is no folder /nonexistent"),
    (["--json=/"], "--json=/ is a folder"),
])  # fmt: skip
def test_what_cannot_be_measured_is_one_line_at_once(refused, arguments, message):
    assert refused(step_time, "configs/dmc.py:walker_walk,tiny", *arguments).startswith(message)


@pytest.mark.parametrize(("module", "arguments", "message"), [
    (step_time, ["--plain"], "--plain is a form of LAWM's world model"),
    (step_time, ["--seeds=4"], "--seeds is 4; LAPO trains one seed a run"),
    (step_time, ["--config.data.train_frames=0"], "data.train_frames is 0; it must be >= 1"),
    (parts, [], "the parts are those of LAWM's world model"),
    (data_speed, ["--json=/nonexistent/x.json"], "--json=/nonexistent/x.json: there is no folder"),
])  # fmt: skip
def test_of_a_game_as_well(refused, module, arguments, message):
    assert refused(module, "configs/procgen.py:miner,tiny", *arguments).startswith(message)


def test_parts_refuse_data_that_cannot_be(refused):
    message = refused(
        parts, "configs/dmc.py:walker_walk,tiny", "--config.data.label_fraction=3.0"
    )
    assert message.startswith("data.label_fraction is 3.0")


@pytest.fixture
def refused(monkeypatch, capsys):
    """Runs a benchmark that is to fail on what it was given; returns its one line."""

    def run(module, config, *arguments):
        monkeypatch.setattr(flops, "matmul_rate", lambda dtype: pytest.fail("it measured"))
        monkeypatch.setattr(sys, "argv", ["benchmark", f"--config={config}", *arguments])
        with pytest.raises(SystemExit) as exit_:
            module.main()
        assert exit_.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return run


def test_a_platform_that_is_not_there_is_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.step_time", "--config=configs/dmc.py:walker_walk,tiny"],
        cwd=Path(__file__).parent.parent, env=os.environ | {"JAX_PLATFORMS": "nowhere"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: JAX found no device for JAX_PLATFORMS=nowhere: ")
