"""The main job: its tiny form from data to policy, and interruptions.

The runs are processes of their own; all share one data set and one cache of compiled programs.
"""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import QUICK_COMPILATION

from configs.dmc import get_config
from experiments import report
from lawm_jax.data.shards import read_dataset, write_dataset

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
    environment = os.environ | QUICK_COMPILATION | variables | {"PYTHONPATH": str(ROOT)}
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
    """Each has results of its own, and the run's are their means, though trajectories differ."""
    trajectories = read_dataset(place / "data", DATASET).trajectories
    for n, one in enumerate(trajectories):
        length = 20 if n % 2 else 100 + 10 * n  # seed 0 holds out a long one, 1 a short one
        trajectories[n] = dataclasses.replace(
            one, observation=one.observation[: length + 1], action=one.action[:length],
            reward=one.reward[:length],
        )
    write_dataset(place / "data", "walker_walk/uneven", trajectories, {})
    code, _, error = finish(start(
        place, "seeds", "--config.num_seeds=2", "--config.world_model.steps=20",
        "--config.agent.steps=20", "--config.data.name=walker_walk/uneven",
    ))  # fmt: skip
    assert code == 0, error
    results = read_results(place / "seeds")
    assert [one["seed"] for one in results["seeds"]] == [0, 1]
    first, second = (one["evaluation"]["return_mean"] for one in results["seeds"])
    assert first != second
    assert results["evaluation"]["return_mean"] == pytest.approx((first + second) / 2)
    spread = abs(first - second) / 2  # the standard error; 12.706 is Student's t for two
    assert results["evaluation"]["return_ci95"] == pytest.approx(12.706 * spread, rel=1e-6)
    long, short = (one["metrics"] for one in results["seeds"])
    assert "action_variance" not in short  # too short for the errors to be measured on
    assert results["metrics"]["action_variance"] == long["action_variance"] > 0
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
