"""The main job: its tiny form from data to policy, interruptions, every config, bad input.

The runs are processes of their own; all share one data set and one cache of compiled programs.
"""

import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.dmc import DATASETS, PRESETS, get_config
from experiments import launch, report
from experiments.lawm import main
from lawm_jax import runner
from lawm_jax.data.shards import read_dataset, write_dataset
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.windows import TrajectoryArrays
from lawm_jax.errors import InputError
from lawm_jax.lawm import actor_critic, learner
from lawm_jax.lawm.learner import Normaliser, TrainingData
from lawm_jax.lawm.methods import METHODS, resolve
from lawm_jax.lawm.world_model import State

ROOT = Path(__file__).parent.parent
CONFIG = "--config=configs/dmc.py:walker_walk,tiny"
DATASET = "walker_walk/medium_replay_20"
EVERY = 20  # steps between two checkpoints of the tiny preset
OBSERVATION, ACTION = 24, 6  # of walker_walk


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_compilation):
    """Where all runs of this module live."""
    return tmp_path_factory.mktemp("job")


def start(place, workdir, *args, **variables):
    """Starts the main job as a process of its own."""
    environment = os.environ | variables | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.lawm", CONFIG, f"--workdir={place / workdir}",
         f"--data_dir={place / 'data'}", *args],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def finish(process):
    """Waits; returns (exit code, stdout, stderr)."""
    output, error = process.communicate()
    return process.returncode, output, error


@pytest.fixture(scope="module")
def finished(place):
    """(work directory of an uninterrupted run, what it printed)."""
    code, output, error = finish(start(place, "whole"))
    assert code == 0, error
    return place / "whole", output


def read_results(workdir):
    return json.loads((workdir / "results.json").read_text())


# ---- end to end


def test_a_run_leaves_its_results(finished):
    workdir, output = finished
    results = read_results(workdir)
    assert set(results) >= {
        "config", "command", "commit", "seed", "device", "wall_clock_seconds", "dataset",
        "evaluation", "metrics", "state_digest",
    }
    assert results["config"] == get_config("walker_walk,tiny").to_dict()
    assert results["dataset"]["name"] == DATASET
    assert results["dataset"]["trajectories"] == 20
    assert results["dataset"]["labelled_trajectories"] == 4
    assert {"mean", "std", "min", "p25", "median", "p75", "max"} <= set(
        results["dataset"]["return_statistics"]
    )
    evaluation = results["evaluation"]
    assert set(evaluation) >= {"return_mean", "return_std", "return_ci95", "episodes"}
    assert 0.0 <= evaluation["return_mean"] <= 1000.0
    assert evaluation["episodes"] == results["config"]["run"]["final_episodes"]
    assert re.fullmatch("[0-9a-f]{64}", results["state_digest"])
    for name in ("decoded_action_error", "action_variance", "open_loop_error_1",
                 "open_loop_error_25"):
        assert np.isfinite(results["metrics"][name])
    for plot in ("model_losses", "learning_curve", "open_loop", "returns"):
        assert (workdir / "plots" / f"{plot}.png").stat().st_size > 1000
    assert "walker_walk" in output
    assert f"results and plots in {workdir}" in output


def test_a_run_logs_every_step_once(finished):
    records = [json.loads(x) for x in (finished[0] / "metrics.jsonl").read_text().splitlines()]
    for phase, metric in (("world_model", "loss"), ("agent", "imagined_return")):
        steps = [r["step"] for r in records if r["phase"] == phase and metric in r]
        assert steps == [10, 20, 30, 40, 50, 60]
    evaluations = [r for r in records if r["phase"] == "agent" and "return_mean" in r]
    assert [r["step"] for r in evaluations] == [60]
    assert list((finished[0] / "tensorboard").iterdir())


def test_a_finished_run_started_again_prints_its_summary(place, finished):
    workdir, output = finished
    before = (workdir / "results.json").read_bytes()
    began = time.process_time()
    code, again, error = finish(start(place, "whole"))
    assert (code, error) == (0, "")
    assert "is finished" in again
    table = output[output.index("task  ") : output.index("\n\nresults and plots")]
    assert table in again
    assert time.process_time() - began < 5
    assert (workdir / "results.json").read_bytes() == before


# ---- interruptions


def test_a_killed_and_stopped_run_ends_as_an_uninterrupted_one(place, finished):
    """SIGKILL after a checkpoint, SIGTERM a few steps after the restart: every bit is the same."""
    killed = start(place, "broken")
    while not (place / "broken" / "checkpoints" / str(EVERY)).exists():
        assert killed.poll() is None, finish(killed)
        time.sleep(0.01)
    killed.kill()
    assert finish(killed)[0] == -signal.SIGKILL

    stopped = start(place, "broken")
    lines = iter(stopped.stdout.readline, "")
    assert any(line.startswith("continuing from world_model ") for line in lines)
    assert any(line.startswith("world_model ") for line in lines)
    stopped.send_signal(signal.SIGTERM)
    code, output, error = finish(stopped)
    assert code == 75, error
    assert "start the same command again to continue" in output
    assert "Traceback" not in error
    assert not (place / "broken" / "results.json").exists()

    code, output, error = finish(start(place, "broken"))
    assert code == 0, error
    assert int(re.search(r"continuing from world_model (\d+), agent", output)[1]) > EVERY
    whole, broken = read_results(finished[0]), read_results(place / "broken")
    assert broken["state_digest"] == whole["state_digest"]
    assert broken["evaluation"] == whole["evaluation"]
    logs = [(place / name / "metrics.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_two_hosts_do_one_job(place, finished):
    """The second start finds it finished, a third one's config differs: both hosts agree."""

    def run(*args):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        cluster = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
        pair = [
            start(place, "pair", *args, JAX_PROCESS_ID=str(i), **cluster) for i in range(2)
        ]
        return [finish(process) for process in pair]

    short = ["--config.world_model.steps=20", "--config.agent.steps=20",
             "--config.data.on_device=false"]  # windows are streamed, each host its devices' own
    (code, output, error), (other_code, other, other_error) = run(*short)
    assert (code, other_code) == (0, 0), error + other_error
    assert "2 devices, cpu on 2 hosts" in output
    assert read_results(place / "pair")["device"] == "2 x cpu"
    assert "task  " in output and "task  " not in other  # process 0 alone reports
    again = run(*short)
    assert [code for code, _, _ in again] == [0, 0]
    assert "is finished" in again[0][1] and "is finished" not in again[1][1]
    (code, _, error), (other_code, _, other_error) = run("--config.seed=1")
    assert (code, other_code) == (2, 2)
    assert "belongs to another run" in error
    assert "another process of this run failed" in other_error


def test_seeds_side_by_side(place, finished):
    """Each has results of its own, and the run's are their means."""
    code, _, error = finish(start(
        place, "seeds", "--config.num_seeds=2", "--config.world_model.steps=20",
        "--config.agent.steps=20",
    ))  # fmt: skip
    assert code == 0, error
    results = read_results(place / "seeds")
    assert [one["seed"] for one in results["seeds"]] == [0, 1]
    first, second = (one["evaluation"]["return_mean"] for one in results["seeds"])
    assert first != second
    assert results["evaluation"]["return_mean"] == pytest.approx((first + second) / 2)
    spread = abs(first - second) / 2  # the standard error; 12.706 is Student's t for two
    assert results["evaluation"]["return_ci95"] == pytest.approx(12.706 * spread, rel=1e-6)
    added = report.add(place / "raw", place / "seeds")
    assert [path.stem[-5:] for path in added] == ["seed0", "seed1"]
    one = json.loads(added[1].read_text())
    assert (one["seed"], one["evaluation"]["return_mean"]) == (1, second)


def test_the_agent_learns_the_same_on_the_world_model_of_another_run(place, finished):
    code, output, error = finish(start(
        place, "shared", f"--config.world_model.pretrained={finished[0]}"
    ))  # fmt: skip
    assert code == 0, error
    whole, shared = read_results(finished[0]), read_results(place / "shared")
    assert shared["state_digest"] == whole["state_digest"]
    assert shared["evaluation"] == whole["evaluation"]
    digest = whole["world_model"]["digest"]
    assert whole["world_model"] == {"shared": False, "digest": digest}
    assert shared["world_model"] == {
        "shared": True, "digest": digest, "pretrained": str(finished[0])
    }
    assert f"world model of {finished[0]}: 60 steps, digest {digest[:12]}" in output
    records = [json.loads(x) for x in (place / "shared/metrics.jsonl").read_text().splitlines()]
    assert {record["phase"] for record in records} == {"agent"}


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(place, finished):
    """Rewards of 1e30: finite data, an infinite loss once a window holds one."""
    trajectories = read_dataset(place / "data", DATASET).trajectories
    for n in range(4):  # few enough that some steps pass before one is drawn
        reward = trajectories[n].reward.copy()
        reward[250] = 1e30
        trajectories[n] = dataclasses.replace(trajectories[n], reward=reward)
    write_dataset(place / "data", "broken/rewards", trajectories, {})
    code, _, error = finish(start(place, "nan", "--config.data.name=broken/rewards"))
    assert code == 1
    message = re.search(
        r"^error: world_model step (\d+): (.*); the last checkpoint is kept$", error, re.MULTILINE
    )
    assert message, error
    assert {"reward_error = inf", "loss = inf"} <= set(message[2].split(", "))
    assert "Traceback" not in error
    kept = {int(x.name) for x in (place / "nan" / "checkpoints").iterdir() if x.name.isdigit()}
    expected = (int(message[1]) - 1) // EVERY * EVERY
    assert max(kept, default=0) == expected
    assert not (place / "nan" / "results.json").exists()


# ---- every config


@functools.cache
def trace(program):
    """One step of both phases, traced: shapes of all metrics. Configs share what is the same."""
    mesh = runner.make_mesh(jax.devices()[:1])
    model = program.model
    array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
    trajectories = lambda action: TrajectoryArrays(
        array(4, 101, OBSERVATION), array(4, 100, ACTION) if action else None, array(4, 100),
        array(4, dtype=jnp.int32),
    )
    unlabelled = trajectories(False) if program.learner.unlabelled_rows else None
    optimiser = learner.make_optimiser(program.learner)
    normaliser = Normaliser(array(OBSERVATION), array(OBSERVATION))
    world = jax.eval_shape(lambda n: learner.init(model, optimiser, n, 0), normaliser)
    step = learner.make_step(model, program.elbo, program.learner, optimiser, 1)
    run = functools.partial(runner.data_parallel(step, mesh), steps=1)
    data = TrainingData(trajectories(True), unlabelled)
    after, metrics = jax.eval_shape(run, world, None, data)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), world
    )
    agent = jax.eval_shape(lambda: actor_critic.init(model, program.agent, 0))
    starts = State(array(64, model.deterministic), array(64, model.stochastic))
    run = runner.data_parallel(actor_critic.make_step(model, program.agent, 1), mesh)
    _, more = jax.eval_shape(functools.partial(run, steps=1), agent, world.params, starts)
    return metrics | more


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_config(method, preset):
    for dataset in DATASETS:
        config = get_config(f"walker_walk,{dataset},{preset}")
        config.method = method
        metrics = trace(resolve(config, OBSERVATION, ACTION))
        assert {"loss", "observation_error", "imagined_return", "value_error"} <= set(metrics)
        assert ("kl_u_unlabelled" in metrics) == (method == "lawm")
        assert ("action_error" in metrics) == (method != "dreamer")


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_large_preset_is_the_papers_objective(dataset):
    elbo = resolve(get_config(f"walker_walk,{dataset},large"), OBSERVATION, ACTION).elbo
    assert (elbo.latent_kl_weight, elbo.inverse_on_labelled) == (1.0, 0.0)
    assert elbo.driving_noise == elbo.action_std  # unlabelled dynamics see samples of p(a | s, u)
    assert elbo.free_nats == (1.0 if dataset in ("medium_replay", "plan2explore") else 0.0)


def test_methods_draw_the_same_number_of_windows():
    programs = {}
    for method in METHODS:
        config = get_config("walker_walk")
        config.method = method
        programs[method] = resolve(config, OBSERVATION, ACTION).learner
    total = programs["lawm"].labelled_rows + programs["lawm"].unlabelled_rows
    assert programs["lawm"].unlabelled_rows > 0
    for method in ("c_lap", "dreamer"):
        assert programs[method].labelled_rows == total
        assert programs[method].unlabelled_rows == 0


def test_values_that_may_disagree_are_at_least_two():
    config = get_config("walker_walk,tiny")
    config.agent.disagreement = 0.5
    assert resolve(config, OBSERVATION, ACTION).agent.disagreement == 0.5
    config.agent.value_networks = 1
    with pytest.raises(InputError, match="agent.disagreement needs agent.value_networks"):
        resolve(config, OBSERVATION, ACTION)


# ---- bad input


def make_trajectories(count, length=60, observation=OBSERVATION, action=ACTION):
    rng = np.random.default_rng(0)
    return [
        Trajectory(
            rng.standard_normal((length + 1, observation)).astype(np.float32),
            rng.uniform(-1, 1, (length, action)).astype(np.float32),
            rng.uniform(0, 1, length).astype(np.float32),
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Data sets that are well, too short, of another task, and damaged."""
    directory = tmp_path_factory.mktemp("data")
    write_dataset(directory, "toy/good", make_trajectories(20), {})
    write_dataset(directory, "toy/short", make_trajectories(20, length=10), {})
    write_dataset(directory, "toy/cheetah", make_trajectories(20, observation=17), {})
    write_dataset(directory, "toy/hopper", make_trajectories(20, action=4), {})
    shutil.copytree(directory / "toy/good", directory / "toy/damaged")
    (shard,) = (directory / "toy/damaged").glob("*/*.array_record*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    return directory


@pytest.fixture
def run(tmp_path, data_dir, monkeypatch, capsys):
    """Runs the job in this process; returns (exit code, stderr)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(arg, *args):
        command = ["lawm.py", f"--config=configs/dmc.py:{arg}", f"--workdir={tmp_path / 'run'}",
                   f"--data_dir={data_dir}", *args]
        with pytest.raises(SystemExit) as exit_:
            launch.run(main, command)
        return exit_.value.code, capsys.readouterr().err

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


GOOD = "--config.data.name=toy/good"


@pytest.mark.parametrize(
    ("arg", "args", "message"),
    [
        ("walker_wlak,tiny", [], "unknown task 'walker_wlak': did you mean 'walker_walk'? choose"),
        ("walker_walk,medum", [], "configs/dmc.py: 'medum' is neither a dataset (expert, medium,"),
        (
            "walker_walk,tiny", ["--config.data.name=toy/missing"],
            r"no data set 'toy/missing' in \S+; it has toy/cheetah, toy/damaged, toy/good,",
        ),
        ("walker_walk,tiny", ["--config.data.name=good"], "data set name 'good': must look like"),
        (
            "walker_walk,tiny", ["--config.data.name=toy/cheetah"],
            "toy/cheetah: trajectory 0: observation has 17 numbers a step, not 24",
        ),
        (
            "walker_walk,tiny", ["--config.data.name=toy/hopper"],
            "toy/hopper: trajectory 0: action has 4 numbers a step, not 6",
        ),
        (
            "walker_walk,tiny", ["--config.data.name=toy/short"],
            "a trajectory holds 11 observations, fewer than a window of 16",
        ),
        (
            "walker_walk,tiny", ["--config.data.name=toy/damaged"],
            r"\S+array_record\S*: record 0 of 20 cannot be read: the file is damaged or truncated",
        ),
        (
            "walker_walk,tiny", [GOOD, "--config.data.label_fraction=0.0"],
            "data.label_fraction is 0.0, which is not in (0, 1]",
        ),
        (
            "walker_walk,tiny", [GOOD, "--config.data.label_fraction=0.01"],
            "data.label_fraction 0.01 of 20 trajectories selects none; 0.05 selects one",
        ),
        (
            "walker_walk,tiny", [GOOD, "--config.data.label_fraction=1.0"],
            "data.label_fraction 1.0 leaves no trajectory without labels for method 'lawm'",
        ),
        (
            "walker_walk,tiny", ["--config.method=lap"],
            "method is 'lap'; choose from lawm, c_lap, dreamer",
        ),
        (
            "walker_walk,tiny", ["--config.run.checkpoint_every=15"],
            "run.checkpoint_every is 15, not a multiple of run.steps_per_call (10)",
        ),
        (
            "walker_walk,tiny", ["--config.world_model.dtype=float16"],
            "world_model.dtype is 'float16'; choose float32 or bfloat16",
        ),
        (
            "walker_walk,tiny", ["--config.world_model.units=0"],
            "world_model.units is 0; it must be >= 1",
        ),
        (
            "walker_walk,tiny", ["--config.world_model.unlabelled_rows=-8"],
            "world_model.unlabelled_rows is -8; it must be >= 0",
        ),
        (
            "walker_walk,tiny", ["--config.seed=-1"],
            "seed is -1; it must be at least 0 and below 2^31",
        ),
        (
            "walker_walk,tiny", ["--config.agent.seed=-2"],
            "agent.seed is -2; it must be -1 (the run's) or at least 0, and below 2^31",
        ),
        (
            "walker_walk,tiny", [GOOD, "--config.world_model.pretrained=no/such"],
            "world_model.pretrained: no/such is no work directory of a run: it has no config.json",
        ),
    ],
)
def test_bad_input_is_one_clear_line(run, tmp_path, arg, args, message):
    code, error = run(arg, *args)
    assert code == 2
    if "\\" not in message:
        message = re.escape(message)
    assert re.match(f"error: {message}", error), error
    assert error.count("\n") == 1
    assert {x.name for x in (tmp_path / "run").glob("*")} <= {".lock"}  # nothing is claimed


def test_a_run_on_all_labels_needs_a_method_for_them(run):
    """The oracle is C-LAP on all labels: label_fraction = 1 is no mistake there."""
    code, error = run("walker_walk,tiny", "--config.data.name=toy/short",
                      "--config.data.label_fraction=1.0", "--config.method=c_lap")
    assert code == 2
    assert error.startswith("error: a trajectory holds 11 observations")  # and not the labels
