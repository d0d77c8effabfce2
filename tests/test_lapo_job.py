"""The LAPO job: its tiny form from shards to results, interruptions, bad input.

The runs are processes of their own; all share one data set and one cache of compiled programs.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from processes import QUICK_COMPILATION

from experiments.lapo import ONLINE, STAGES, _initial_state, chosen_stages, main
from lawm_jax.checkpoint import Checkpoints
from lawm_jax.data.frame_shards import Episode, read_frames, write_frames
from lawm_jax.envs.procgen import FRAME, GAMES

ROOT = Path(__file__).parent.parent
OFFLINE = STAGES[: -len(ONLINE)]
LABELS, STEPS, EVERY, EPISODES = (4, 16), 20, 10, 4
SMALLER = [
    *(f"--config.{phase}.steps={STEPS}" for phase in OFFLINE), "--config.decoder.labels=(4, 16)",
    f"--config.run.checkpoint_every={EVERY}", f"--config.run.evaluate_every={STEPS}",
    f"--config.evaluation.episodes={EPISODES}", "--config.data.train_frames=600",
    "--config.data.test_frames=200",
]
BEFORE = OFFLINE[: OFFLINE.index("decoder")]
PHASES = (*BEFORE, *(f"decoder_{count}" for count in LABELS), "distillation", *ONLINE)
UPDATES, FRAMES = 4, 512  # of the online stages


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_compilation):
    """Where all runs of this module live."""
    return tmp_path_factory.mktemp("job")


def start(place, workdir, *args):
    """Starts the job as a process of its own."""
    environment = os.environ | QUICK_COMPILATION | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.lapo", "--config=configs/procgen.py:miner,tiny",
         f"--workdir={place / workdir}", f"--data_dir={place / 'data'}", *SMALLER, *args],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )


def finish(process):
    """Waits; returns (exit code, stdout, stderr)."""
    output, error = process.communicate()
    return process.returncode, output, error


@pytest.fixture(scope="module")
def finished(place):
    """(work directory of an uninterrupted run, what it printed)."""
    code, output, error = finish(start(place, "whole", "--render"))
    assert code == 0, error
    return place / "whole", output


def read_results(workdir):
    return json.loads((workdir / "results.json").read_text())


def read_log(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


# ---- end to end


def test_a_run_leaves_its_results(place, finished):
    workdir, output = finished
    results = read_results(workdir)
    for name in ("probe_accuracy", "majority_accuracy"):
        assert 0.0 <= results[name] <= 1.0
    assert 0.0 < results["copy_last_frame_error"] < 0.1 and 0.0 < results["fdm_error"] < 0.1
    assert 1.0 <= results["codebook_perplexity"] <= 8.0  # the tiny preset has 8 embeddings
    for key in ("offline_decoding", "offline_distillation"):
        assert [row["labels"] for row in results[key]] == list(LABELS)
    for key in ("online_decoding", "scratch"):
        assert [row["frames"] for row in results[key]] == [FRAMES]
    random, data = (results[f"{name}_policy"]["return_mean"] for name in ("random", "data"))
    for row in (results["behaviour_cloning"], *results["offline_decoding"],
                *results["offline_distillation"], *results["online_decoding"], *results["scratch"]):
        assert row["episodes"] == EPISODES and row["return_ci95"] >= 0.0
        assert row["normalised"] == pytest.approx((row["return_mean"] - random) / (data - random))
        assert row["normalised_ci95"] >= row["return_ci95"] / abs(data - random)
    assert "probe_accuracy" in results["metrics"]["untrained_idm"]
    assert "supervised_idm_accuracy" in results["metrics"]["supervised_idm"]
    assert re.fullmatch("[0-9a-f]{64}", results["state_digest"])
    losses = (f"{x}_losses" for x in (*BEFORE, "distillation", *ONLINE))
    for plot in ("offline_decoding", "online_decoding", "predictions", "latents", *losses):
        assert (workdir / "plots" / f"{plot}.png").stat().st_size > 1000
    assert (workdir / "policy.mp4").stat().st_size > 1000
    assert "decoder, 16 labels" in output and "distilled, 16 labels" in output
    assert "PPO from scratch, 512 frames" in output
    assert f"results and plots in {workdir}" in output


def test_the_data_policys_return_is_that_of_the_data(place, finished):
    results = read_results(finished[0])
    assert results["dataset"]["name"] == "miner/scripted_600"
    frames = read_frames(place / "data", "miner/scripted_600", "train").frames
    returns = np.bincount(frames.episode, weights=frames.reward)
    assert results["data_policy"]["return_mean"] == pytest.approx(returns.mean())
    assert results["data_policy"]["episodes"] == len(returns)
    assert results["dataset"]["train"]["read"] == len(frames.reward) >= 600
    assert results["dataset"]["train"]["read_episodes"] == len(returns)


def test_a_run_logs_every_step_once_and_plays_each_policy_at_its_end(finished):
    records = read_log(finished[0])
    assert list(dict.fromkeys(record["phase"] for record in records)) == list(PHASES)
    for phase in PHASES:
        steps = range(1, UPDATES + 1) if phase in ONLINE else range(5, STEPS + 1, 5)
        logged = [r["step"] for r in records if r["phase"] == phase and "loss" in r]
        assert logged == list(steps)
    labels = [r["labels"] for r in records if r["phase"] == "online" and "labels" in r]
    assert labels and max(labels) <= 300 and labels == sorted(labels)  # the buffer's capacity
    played = [(r["phase"], r["step"]) for r in records if "return_mean" in r]
    offline = [(x, STEPS) for x in PHASES if x == "cloning" or x.startswith("decoder")]
    assert played == [*offline, *((x, UPDATES) for x in ONLINE)]


def test_a_killed_and_stopped_run_ends_as_an_uninterrupted_one(place, finished):
    """SIGTERM in the second stage and SIGKILL in an online one: every bit is the same."""
    stopped = start(place, "broken")
    assert any(x.startswith("latent_policy ") for x in iter(stopped.stdout.readline, ""))
    stopped.send_signal(signal.SIGTERM)
    code, _, error = finish(stopped)
    assert code == 75, error
    assert "Traceback" not in error and not (place / "broken" / "results.json").exists()

    killed = start(place, "broken")
    lines = iter(killed.stdout.readline, "")
    assert any(line.startswith("continuing from latent_action 20, ") for line in lines)
    assert any(line.startswith("online 1/4") for line in lines)
    killed.kill()
    assert finish(killed)[0] == -signal.SIGKILL

    code, output, error = finish(start(place, "broken"))
    assert code == 0, error
    continued = next(x for x in output.splitlines() if x.startswith("continuing from "))
    assert "cloning 20, " in continued and "distillation 20, online " in continued
    whole, broken = read_results(finished[0]), read_results(place / "broken")
    for name in ("state_digest", "offline_decoding", "offline_distillation", "online_decoding",
                 "scratch", "behaviour_cloning", "random_policy"):
        assert broken[name] == whole[name]
    assert read_log(place / "broken") == read_log(finished[0])


@pytest.fixture(scope="module")
def ablation(place, finished):
    """(results, log, output) of some stages: frames on the host, no VQ, no supervised head."""
    code, output, error = finish(start(
        place, "ablation", "--config.stages=latent_action,latent_policy,online",
        "--config.vq.enabled=false", "--config.online.supervised=false",
        "--config.data.on_device=false",
    ))
    assert code == 0, error
    return read_results(place / "ablation"), read_log(place / "ablation"), output


def test_the_ablations_run(ablation):
    """Neither quantisation nor a supervised head."""
    results, log, output = ablation
    assert [row["frames"] for row in results["online_decoding"]] == [FRAMES]
    assert "codebook_perplexity" not in results
    assert not any("labels" in record for record in log)
    assert "online decoding, 512 frames" in output


def test_stages_can_be_chosen(ablation):
    results, log, output = ablation
    assert {record["phase"] for record in log} == {"latent_action", "latent_policy", "online"}
    assert "probe_accuracy" in results
    assert not {"behaviour_cloning", "offline_decoding", "scratch"} & results.keys()
    assert "decoder" not in output


def test_frames_may_be_streamed(ablation, finished):
    """Probes of a model that is not trained learn from the same windows either way."""
    resident, (streamed, _, _) = read_results(finished[0]), ablation
    assert streamed["copy_last_frame_error"] == resident["copy_last_frame_error"]
    names = ("probe_accuracy", "majority_accuracy")
    fresh = [results["metrics"]["untrained_idm"] for results in (resident, streamed)]
    assert [fresh[0][name] for name in names] == [fresh[1][name] for name in names]


def assert_its_trunk_was_learned(results, workdir):
    """The one distilled policy has its own, which is not the latent policy's any more."""
    config = ConfigDict(results["config"])
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: _initial_state(config)),
    )
    with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
        state = checkpoints.restore(template).state
    trunks = jax.tree.leaves(state["distillation"].params["trunk"])
    for own, before in zip(trunks, jax.tree.leaves(state["latent_policy"].params["trunk"]),
                           strict=True):
        (learned,) = np.asarray(own)
        assert (learned != before).any()


def test_stages_of_another_run_are_taken(place, finished):
    """Those that it has finished with the same settings; what follows is what it was there."""
    workdir = place / "taken"
    args = (
        f"--config.pretrained={finished[0]}/", "--config.cloning.steps=10",
        "--config.stages=latent_action,latent_policy,cloning,decoder,distillation",
        "--config.distillation.trunk=true", "--config.distillation.labels=(16,)",  # not so there
    )
    code, output, error = finish(start(place, "taken", *args))
    assert code == 0, error
    assert f"latent_policy of {finished[0]}: {STEPS} steps, digest " in output
    assert f"cloning is trained here: cloning.steps {STEPS} -> 10\n" in output
    whole, results = read_results(finished[0]), read_results(workdir)
    assert set(results["pretrained"]["digests"]) == {"latent_action", "latent_policy"}
    for name in ("probe_accuracy", "fdm_error", "offline_decoding", "random_policy"):
        assert results[name] == whole[name]
    of = lambda path: [r for r in read_log(path) if r["phase"].startswith(("latent", "decoder"))]
    assert of(workdir) == of(finished[0])
    assert [row["labels"] for row in results["offline_distillation"]] == [16]
    assert_its_trunk_was_learned(results, workdir)

    code, output, error = finish(start(
        place, "put_together", f"--config.pretrained={workdir},{finished[0]}",
        "--config.stages=cloning,supervised_idm", "--config.cloning.steps=10",
    ))
    assert code == 0, error
    assert f"cloning of {workdir}: 10 steps" in output and "is trained here" not in output
    assert f"supervised_idm of {finished[0]}: {STEPS} steps" in output
    together = read_results(place / "put_together")
    assert together["behaviour_cloning"] == results["behaviour_cloning"]
    assert together["pretrained"]["workdirs"] == {
        "cloning": str(workdir), "supervised_idm": str(finished[0])
    }
    for phase, source in (("cloning", results), ("supervised_idm", whole)):
        assert together["metrics"][phase] == source["metrics"][phase]


def test_stages_run_in_their_order():
    assert chosen_stages("cloning, latent_policy,latent_action") == STAGES[:3]


# ---- bad input


def episode(length=20):
    return Episode(
        np.zeros((length + 1, *FRAME), np.uint8), np.zeros(length, int), np.zeros(length),
        np.zeros(length), np.zeros(length), 0.0,
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Data sets of two games, and two that were made otherwise: by settings, by an older expert."""
    directory = tmp_path_factory.mktemp("data")
    made = {"num_envs": 4, "levels": {"train": {"start": 0, "number": None}}}
    made["asked_frames"] = {"train": 2000, "test": 400}
    for name, metadata in (
        ("toy/maze", {"game": "maze"}),
        ("toy/miner", {"game": "miner"}),
        ("miner/scripted_2000", {"game": "miner", "random_actions": 0.5, **made}),
        ("chaser/scripted_2000", {"game": "chaser", "random_actions": 0.1, **made}),
    ):  # fmt: skip
        write_frames(directory, name, [episode()], [episode()], metadata)
    return directory


@pytest.fixture
def run(run_main, data_dir):
    """Runs the job in this process; returns (exit code, stderr)."""
    return lambda config, *args: run_main(
        main, f"--config=configs/{config}", f"--data_dir={data_dir}", *args
    )


MINER, TOY = "procgen.py:miner,tiny", "--config.data.name=toy/miner"


@pytest.mark.parametrize(("config", "args", "message"), [
    ("procgen.py:pong,tiny", [], f"'pong' is no Procgen game; choose from {', '.join(GAMES)}"),
    ("dmc.py:walker_walk,tiny", [], f"unknown game 'walker_walk': choose from {GAMES[0]}"),
    (
        "procgen.py:bossfight,tiny", [],
        "bossfight has no expert that ships with the package, only bigfish, ",
    ),
    (MINER, ["--config.data.name=toy/maze"], "is of the game maze, not of miner"),
    (MINER, ["--config.data.name=toy/none"], "no data set 'toy/none' in "),
    (MINER, [], "was made with other settings than the config's (random_actions 0.5): change"),
    (
        "procgen.py:chaser,tiny", [],
        "was made with other settings than the config's (expert_version 1): change",
    ),
    (
        "procgen.py:chaser,tiny", ["--config.data.test_frames=800"],
        "was made with other settings than the config's (test_frames 400, expert_version 1): ",
    ),
    (MINER, ["--config.decoder.labels=(0,)"], "decoder.labels has 0; each must be a whole"),
    (MINER, [TOY], "32 transitions asked for; the data's 21 frames hold 19"),
    (MINER, ["--config.data.max_frames=2"], "data.max_frames is 2; a window needs 3 frames"),
    (MINER, ["--config.stages=cloning,decode"], "stages names 'decode'; choose from latent_action"),
    (
        MINER, ["--config.stages=latent_action,decoder"],
        "stages has decoder without latent_policy, which it needs",
    ),
    (MINER, ["--config.evaluation.episodes=1"], "episodes is 1; an interval needs at least 2"),
    (
        MINER, ["--config.run.checkpoint_every=12"],
        "run.checkpoint_every is 12, not a multiple of run.steps_per_call (5)",
    ),
])  # fmt: skip
def test_bad_input_is_one_clear_line(run, tmp_path, config, args, message):
    code, error = run(config, *args)
    assert code == 2
    assert error.startswith("error: ") and message in error, error
    assert error.count("\n") == 1
    assert {x.name for x in (tmp_path / "run").glob("*")} <= {".lock"}  # nothing is claimed


def test_stages_of_a_run_that_has_none_to_take(run, place, finished, tmp_path):
    shared = (MINER, f"--data_dir={place / 'data'}", "--config.stages=latent_action", *SMALLER)
    whole = finished[0]
    for other, changes, message in (
        (tmp_path / "none", [], f"{tmp_path / 'none'} is no work directory of a run: it has no "),
        (
            whole, ["--config.vq.size=2"], f"{whole} has no finished stage with this run's "
            "settings (latent_action: vq.size 4 -> 2)\n",
        ),
        (
            f"{whole},{whole}",
            ["--config.stages=latent_action,cloning", "--config.cloning.steps=9"],
            f"{whole} has no finished stage with this run's settings that those before it lack "
            f"(cloning: cloning.steps {STEPS} -> 9)\n",
        ),
    ):  # fmt: skip
        code, error = run(*shared, f"--config.pretrained={other}", *changes)
        assert code == 2
        assert error.startswith(f"error: pretrained: {message}") and error.count("\n") == 1
        assert {x.name for x in (tmp_path / "run").glob("*")} <= {".lock"}
