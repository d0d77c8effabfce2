"""The baselines' job: its tiny form for every method, interruptions, labels, bad input."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import QUICK_COMPILATION

from configs.dmc import DATASETS, PRESETS, get_config
from experiments import baselines, lawm
from experiments.data import split_dataset
from lawm_jax import runner
from lawm_jax.data.normaliser import fit
from lawm_jax.data.shards import read_dataset, write_dataset
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.transitions import transitions
from lawm_jax.errors import InputError
from lawm_jax.offline import inverse_dynamics, td3_bc
from lawm_jax.offline.methods import BASELINES, resolve

ROOT = Path(__file__).parent.parent
CONFIG = "--config=configs/dmc.py:walker_walk,tiny"
OBSERVATION, ACTION = 24, 6  # of walker_walk


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_compilation):
    """Where all runs of this module live."""
    return tmp_path_factory.mktemp("job")


def start(place, workdir, *args):
    """Starts the job as a process of its own."""
    environment = os.environ | QUICK_COMPILATION | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.baselines", CONFIG, f"--workdir={place / workdir}",
         f"--data_dir={place / 'data'}", *args],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def finish(process):
    """Waits; returns (exit code, stdout, stderr)."""
    output, error = process.communicate()
    return process.returncode, output, error


@pytest.fixture(scope="module")
def finished(place):
    """finished(method): (work directory of an uninterrupted run, what it printed)."""

    @functools.cache
    def run(method):
        code, output, error = finish(start(place, method, f"--config.method={method}"))
        assert code == 0, error
        return place / method, output

    return run


def read_results(workdir):
    return json.loads((workdir / "results.json").read_text())


# ---- end to end


@pytest.mark.parametrize("method", BASELINES)
def test_a_run_leaves_its_results(finished, method):
    workdir, output = finished(method)
    results = read_results(workdir)
    assert set(results) == {
        "config", "command", "commit", "seed", "device", "wall_clock_seconds", "compile_seconds",
        "aside_seconds",
        "dataset", "evaluation", "metrics", "state_digest",
    }
    assert results["command"].startswith("python -m experiments.baselines")
    assert results["config"] == get_config("walker_walk,tiny").to_dict() | {"method": method}
    assert results["dataset"]["labelled_trajectories"] == 4
    evaluation = results["evaluation"]
    assert 0.0 <= evaluation["return_mean"] <= 1000.0
    assert evaluation["episodes"] == results["config"]["run"]["final_episodes"]
    assert ("value_overestimation" in evaluation) == (method != "bc")
    assert re.fullmatch("[0-9a-f]{64}", results["state_digest"])
    seen = {"decoded_action_error", "action_variance", "unlabelled_action_error"}
    assert seen & set(results["metrics"]) == (seen if method == "idm_td3_bc" else set())
    plots = {path.name for path in (workdir / "plots").iterdir()}
    assert plots >= {"learning_curve.png", "returns.png", "agent_losses.png"}
    assert ("inverse_dynamics_losses.png" in plots) == (method == "idm_td3_bc")
    assert f"results and plots in {workdir}" in output


def test_a_run_logs_every_step_once(finished):
    records = [
        json.loads(x)
        for x in (finished("idm_td3_bc")[0] / "metrics.jsonl").read_text().splitlines()
    ]
    for phase, metric, last in (
        ("inverse_dynamics", "training_error", 200), ("agent", "critic_loss", 300)
    ):
        steps = [r["step"] for r in records if r["phase"] == phase and metric in r]
        assert steps == list(range(50, last + 1, 50))
    evaluations = [r for r in records if "return_mean" in r]
    assert [(r["phase"], r["step"]) for r in evaluations] == [("agent", 300)]
    heldout = [r["step"] for r in records if "decoded_action_error" in r]
    assert heldout == [100, 200]


def test_a_killed_and_stopped_run_ends_as_an_uninterrupted_one(place, finished):
    """SIGKILL in the first phase, SIGTERM in the second: every bit is the same."""
    method = "--config.method=idm_td3_bc"
    killed = start(place, "broken", method)
    while not (place / "broken" / "checkpoints" / "100").exists():
        assert killed.poll() is None, finish(killed)
        time.sleep(0.01)
    killed.kill()
    assert finish(killed)[0] == -signal.SIGKILL

    stopped = start(place, "broken", method)
    lines = iter(stopped.stdout.readline, "")
    assert any(line.startswith("continuing from inverse_dynamics ") for line in lines)
    assert any(line.startswith("agent ") for line in lines)
    stopped.send_signal(signal.SIGTERM)
    code, output, error = finish(stopped)
    assert code == 75, error
    assert "Traceback" not in error
    assert not (place / "broken" / "results.json").exists()

    code, output, error = finish(start(place, "broken", method))
    assert code == 0, error
    assert int(re.search(r"continuing from inverse_dynamics 200, agent (\d+)", output)[1]) > 0
    whole, broken = read_results(finished("idm_td3_bc")[0]), read_results(place / "broken")
    assert broken["state_digest"] == whole["state_digest"]
    assert broken["evaluation"] == whole["evaluation"]
    logs = [(place / name / "metrics.jsonl").read_text() for name in ("idm_td3_bc", "broken")]
    assert logs[0] == logs[1]


# ---- labels


def make_trajectories(count, length=60):
    rng = np.random.default_rng(0)
    return [
        Trajectory(
            rng.standard_normal((length + 1, OBSERVATION)).astype(np.float32),
            rng.uniform(-1, 1, (length, ACTION)).astype(np.float32),
            rng.uniform(0, 1, length).astype(np.float32),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", [0, 5])
def test_methods_share_the_split(monkeypatch, seed):
    """Both experiments ask the same function, and the answer knows nothing of the method."""
    assert lawm.split_dataset is baselines.split_dataset is split_dataset
    trajectories = make_trajectories(20, length=3)
    found = []
    for method, oracle in (("lawm", "c_lap"), ("idm_td3_bc", "td3_bc"), ("td3_bc", None)):
        config = get_config("walker_walk,tiny")
        config.method = method
        found.append(split_dataset(config, trajectories, seed, oracle))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    config.data.label_fraction = 1.0
    assert not len(split_dataset(config, trajectories, seed, None).unlabelled)
    with pytest.raises(InputError, match="leaves no trajectory without labels .* td3_bc, the orac"):
        split_dataset(config, trajectories, seed, "td3_bc")


# ---- every config


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", BASELINES)
def test_a_step_of_every_config(method, preset):
    """Traced: shapes of states survive a step, whatever the configuration."""
    mesh = runner.make_mesh(jax.devices()[:1])
    trajectories = make_trajectories(4)
    normaliser = fit([t.observation for t in trajectories])
    for dataset in DATASETS:
        config = get_config(f"walker_walk,{dataset},{preset}")
        config.method = method
        program = resolve(config, ACTION)
        state = jax.eval_shape(lambda p=program: td3_bc.init(p.policy, normaliser, 0))
        run = functools.partial(
            runner.data_parallel(td3_bc.make_step(program.policy, 1), mesh), steps=1
        )
        after, metrics = jax.eval_shape(run, state, None, transitions(trajectories, normaliser))
        assert after == state
        assert ("critic_loss" in metrics) == (method != "bc")
        if method != "idm_td3_bc":
            assert program.labeller is None
            continue
        labeller = program.labeller
        state = jax.eval_shape(lambda p=labeller: inverse_dynamics.init(p, normaliser, 0))
        data = inverse_dynamics.labelled_data(labeller, normaliser, trajectories, 0)
        step = inverse_dynamics.make_step(labeller, 1)
        run = functools.partial(runner.data_parallel(step, mesh), steps=1)
        assert jax.eval_shape(run, state, None, data)[0] == state


# ---- bad input


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    write_dataset(directory, "toy/good", make_trajectories(20), {})
    return directory


@pytest.fixture
def run(run_main, data_dir):
    """Runs an experiment's main in this process; returns (exit code, stderr)."""
    return lambda main, *args: run_main(
        main, CONFIG, f"--data_dir={data_dir}", "--config.data.name=toy/good", *args
    )


@pytest.mark.parametrize(
    ("main", "args", "message"),
    [
        (lawm.main, ["--config.method=td3_bc"],
         "method 'td3_bc' is run by python -m experiments.baselines, with the same flags"),
        (baselines.main, [],
         "method 'lawm' is run by python -m experiments.lawm, with the same flags"),
        (baselines.main, ["--config.method=td3"],
         "method is 'td3'; choose from td3_bc, idm_td3_bc, bc (experiments.baselines) or lawm,"),
        (baselines.main, ["--config.method=idm_td3_bc", "--config.data.label_fraction=1.0"],
         "data.label_fraction 1.0 leaves no trajectory without labels for method 'idm_td3_bc'; "
         "lower it, or choose method td3_bc, the oracle"),
        (baselines.main, ["--config.method=bc", "--config.td3_bc.checkpoint_every=60"],
         "td3_bc.checkpoint_every is 60, not a multiple of td3_bc.steps_per_call (50)"),
        (baselines.main, ["--config.method=bc", "--config.td3_bc.units=0"],
         "td3_bc.units is 0; it must be >= 1"),
        (baselines.main, ["--config.method=idm_td3_bc", "--config.inverse_dynamics.dropout=1.0"],
         "inverse_dynamics.dropout is 1.0; it must be in [0, 1)"),
        (baselines.main, ["--config.method=bc", "--config.inverse_dynamics.context=-1"],
         "inverse_dynamics.context is -1; it must be >= 0"),
    ],
)
def test_bad_input_is_one_clear_line(run, tmp_path, main, args, message):
    code, error = run(main, *args)
    assert code == 2
    assert error.startswith(f"error: {message}"), error
    assert error.count("\n") == 1
    assert {x.name for x in (tmp_path / "run").glob("*")} <= {".lock"}  # nothing is claimed


def test_labels_of_the_unlabelled_are_never_read(place, finished):
    """Other actions in their place change the diagnostic of their error and nothing else."""
    clean = read_results(finished("idm_td3_bc")[0])
    dataset = read_dataset(place / "data", "walker_walk/medium_replay_20")
    config = get_config("walker_walk,tiny")
    parts = split_dataset(config, dataset.trajectories, 0, None)
    trajectories = list(dataset.trajectories)
    for n in parts.unlabelled:
        t = trajectories[n]
        trajectories[n] = Trajectory(t.observation, -t.action, t.reward, t.source)
    write_dataset(place / "data", "walker_walk/negated", trajectories, {})
    code, _, error = finish(start(
        place, "negated", "--config.method=idm_td3_bc", "--config.data.name=walker_walk/negated"
    ))
    assert code == 0, error
    other = read_results(place / "negated")
    assert other["state_digest"] == clean["state_digest"]
    assert other["evaluation"] == clean["evaluation"]
    changed = {k for k, x in clean["metrics"].items() if x != other["metrics"][k]}
    assert changed == {"unlabelled_action_error"}
