"""Snapshots of behaviour policies and the data sets that are rolled out from them."""

import csv
import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import pytest

from lawm_jax import collect, policies
from lawm_jax.checkpoint import Checkpoints
from lawm_jax.errors import InputError
from lawm_jax.online import collector, sac

TASK = "cheetah_run"


def _agent(seed, returns, collector=policies.TASK):
    """An agent whose snapshots are untrained networks with the returns that a test wants."""
    count, rng = len(returns), np.random.default_rng(seed)

    def layer(rows, columns):
        kernel = rng.normal(size=(count, rows, columns)) / np.sqrt(rows)
        return {"kernel": kernel.astype(np.float16), "bias": np.zeros((count, columns), np.float16)}

    actor = {"params": {"Dense_0": layer(17, 8), "Dense_1": layer(8, 8), "Dense_2": layer(8, 12)}}
    return policies.Snapshots(
        task=TASK,
        collector=np.array([collector] * count),
        seed=np.full(count, seed),
        step=1000 * np.arange(count),
        episode_return=np.array(returns, float),
        actor=actor,
        settings={f"{collector}/{seed}": {"agent_steps": 1000}},
    )


@pytest.fixture
def snapshots():
    return policies.combine(
        [
            _agent(0, [0, 10, 30, 45, 60, 80, 97, 100, 99]),
            _agent(1, [0, 55, 20, 85, 100]),
            _agent(2, [0, 50, 74]),
            _agent(0, [0, 1, 2], policies.EXPLORE),
        ]
    )


def _steps(snapshots, dataset, seed=0):
    used = snapshots.used_by[dataset] & (snapshots.seed == seed)
    return (snapshots.step[used] // 1000).tolist()


def test_choice_of_snapshots(snapshots):
    assert _steps(snapshots, "expert") == [7, 8]
    assert _steps(snapshots, "medium") == [3, 4]  # half of 99.5 lies between 45 and 60
    assert _steps(snapshots, "medium_replay") == [0, 1, 2, 3, 4]
    assert _steps(snapshots, "expert", 1) == [4]  # one snapshot only is at 90% of the best
    assert _steps(snapshots, "medium_replay", 1) == [0, 1]  # up to where half is first reached
    assert _steps(snapshots, "plan2explore") == [0, 1, 2]
    assert 2 not in snapshots.seed  # it reached 84 where others reached 100
    assert 5 not in snapshots.step[snapshots.seed == 0] // 1000  # what nobody uses is dropped


def test_candidates_are_dense_up_to_above_the_medium_level():
    kept = collector._candidates(np.linspace(0, 100, 101), explorer=False)
    assert kept[0] == 0 and kept[-1] == 100 and np.sum(kept <= 65) == 16 and len(kept) == 21
    np.testing.assert_array_equal(collector._candidates(np.zeros(4), explorer=True), [0, 1, 2, 3])


@pytest.mark.parametrize("total", [1, 7, 24, 400])
def test_shares(total):
    counts = collect.shares(np.array([0, 0, 0, 1, 1, 2]), total)
    assert counts.sum() == total
    agents = np.array([counts[:3].sum(), counts[3:5].sum(), counts[5:].sum()])
    assert np.ptp(agents) <= 1 and np.ptp(counts[:3]) <= 1 and np.ptp(counts[3:5]) <= 1


def test_round_trip_of_the_file(snapshots, tmp_path):
    path = tmp_path / "cheetah.npz"
    for _ in range(2):  # the second replaces the first
        policies.save_snapshots(path, snapshots)
    again = policies.load_snapshots(TASK, path)
    policies.save_snapshots(tmp_path / "copy.npz", again)
    assert (tmp_path / "copy.npz").read_bytes() == path.read_bytes()
    jax.tree.map(np.testing.assert_array_equal, snapshots.actor, again.actor)
    for field in ("collector", "seed", "step", "episode_return"):
        np.testing.assert_array_equal(getattr(snapshots, field), getattr(again, field))
    for name in policies.DATASETS:
        np.testing.assert_array_equal(snapshots.used_by[name], again.used_by[name])
    assert again.settings == snapshots.settings and len(again.digest) == 64


def test_compact_parameters_are_close():
    weights = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    compact = collector._compact({"w": weights})["w"]
    assert compact.dtype == np.float16
    np.testing.assert_allclose(compact, weights, rtol=1 / 120, atol=1e-6)


def test_bad_files(snapshots, tmp_path):
    path = tmp_path / "cheetah.npz"
    with pytest.raises(
        InputError, match=r"no policy snapshots of cheetah_run.*experiments\.collect"
    ):
        policies.load_snapshots(TASK, path)
    with pytest.raises(InputError, match="did you mean 'cheetah_run'"):
        policies.load_snapshots("cheetah_runn")
    policies.save_snapshots(path, snapshots)
    with pytest.raises(InputError, match="of cheetah_run, not of walker_walk"):
        policies.load_snapshots("walker_walk", path)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged"):
        policies.load_snapshots(TASK, path)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        policies.load_snapshots(TASK, path)


def test_make_dataset(snapshots, monkeypatch):
    monkeypatch.setattr(collect, "EPISODE_STEPS", 8)
    trajectories, metadata = collect.make_dataset(TASK, "medium_replay", 20, 3, snapshots)
    sources = [trajectory.source for trajectory in trajectories]
    assert sources == sorted(sources)
    counts = {source: sources.count(source) for source in sources}
    assert counts == {
        **{f"seed0/step{1000 * i}": 2 for i in range(5)},
        **{f"seed1/step{1000 * i}": 5 for i in range(2)},
    }
    assert [row["trajectories"] for row in metadata["snapshots"]] == list(counts.values())
    for trajectory in trajectories:
        assert trajectory.observation.shape == (9, 17) and trajectory.action.shape == (8, 6)
        assert trajectory.action.dtype == np.float32 and np.abs(trajectory.action).max() <= 1
    assert metadata["return_statistics"]["trajectories"] == 20
    assert metadata["agent_seeds"] == [0, 1] and metadata["action_repeat"] == 2
    json.dumps(metadata)

    again, _ = collect.make_dataset(TASK, "medium_replay", 20, 3, snapshots)
    for one, two in zip(trajectories, again, strict=True):
        np.testing.assert_array_equal(one.observation, two.observation)
        np.testing.assert_array_equal(one.action, two.action)
    other, _ = collect.make_dataset(TASK, "medium_replay", 20, 4, snapshots)
    assert not np.array_equal(other[0].action, trajectories[0].action)
    starts = np.stack([trajectory.observation[0] for trajectory in trajectories])
    assert len(np.unique(starts, axis=0)) == 20

    _, metadata = collect.make_dataset(TASK, "plan2explore", 3, 3, snapshots)
    assert metadata["collector"].startswith("ensemble-disagreement soft actor-critic, not Dreamer")


def test_rollouts_use_the_snapshot_that_they_name(monkeypatch):
    """Policies with saturated constant actions: each trajectory shows its own policy's."""
    monkeypatch.setattr(collect, "EPISODE_STEPS", 2)
    agent = _agent(0, [1, 1, 1])
    last = agent.actor["params"]["Dense_2"]
    last["kernel"] = np.zeros_like(last["kernel"])
    for i, value in enumerate((-9.0, 9.0, 0.0)):
        last["bias"][i, :6], last["bias"][i, 6:] = value, -20.0
    trajectories = collect._roll_out(agent, np.repeat([0, 1, 2], 9), seed=0)
    means = [trajectory.action.mean() for trajectory in trajectories]
    np.testing.assert_allclose(means, np.repeat([-1, 1, 0], 9), atol=0.01)


def test_bad_requests(snapshots):
    with pytest.raises(InputError, match="unknown dataset 'full'.*medium_replay"):
        collect.make_dataset(TASK, "full", 10, 0, snapshots)
    with pytest.raises(InputError, match="at least 1"):
        collect.make_dataset(TASK, "expert", 0, 0, snapshots)
    without = dataclasses.replace(snapshots, used_by={})
    with pytest.raises(InputError, match="no policy for the dataset 'expert'"):
        collect.make_dataset(TASK, "expert", 10, 0, without)
    with pytest.raises(InputError, match="not a multiple"):
        collector.train_agent(TASK, 0, collector.Training(agent_steps=100), sac.SACConfig())


@pytest.fixture
def train(monkeypatch):
    """train(**changes of train_agent's arguments): a tiny agent."""
    monkeypatch.setattr(collect, "EPISODE_STEPS", 10)
    monkeypatch.setattr(collect, "EVALUATION_EPISODES", 2)
    training = collector.Training(
        agent_steps=160, num_envs=4, snapshot_steps=20, warmup=5, episode_steps=10
    )
    config = sac.SACConfig(actor_units=8, critic_units=8, batch_size=8)
    return functools.partial(collector.train_agent, TASK, 0, training, config)


def test_training_end_to_end(train):
    logged = []
    agent = train(lambda *entry: logged.append(entry))
    assert [step for step, _ in logged] == [40, 80, 120, 160]
    assert agent.step.tolist() == list(range(0, 161, 20))
    kernels = agent.actor["params"]["Dense_1"]["kernel"].astype(np.float32)
    np.testing.assert_array_equal(kernels[0], kernels[1])  # nothing is learned before the end of
    assert not np.allclose(kernels[1], kernels[2])  # the warm-up
    assert np.isfinite(agent.episode_return).all() and "return" in logged[0][1]


def test_an_interrupted_agent_ends_as_an_uninterrupted_one(train, tmp_path, monkeypatch):
    monkeypatch.setattr(collector, "CHECKPOINT_EPISODES", 2)
    whole = train()
    polls = itertools.count()
    kept = Checkpoints(tmp_path / "agent")
    assert train(stop=lambda: next(polls) == 6, checkpoints=kept) is None  # in the fourth episode
    logged = []
    resumed = train(lambda *entry: logged.append(entry), checkpoints=kept)
    assert [step for step, _ in logged] == [120, 160]
    jax.tree.map(np.testing.assert_array_equal, resumed.actor, whole.actor)
    np.testing.assert_array_equal(resumed.episode_return, whole.episode_return)
    assert resumed.settings == whole.settings


def test_experiment_from_snapshots(snapshots, tmp_path, monkeypatch, capsys):
    from experiments import collect as experiment
    from experiments import launch

    monkeypatch.setattr(collect, "EPISODE_STEPS", 5)
    path, workdir = tmp_path / "own.npz", tmp_path / "work"
    policies.save_snapshots(path, snapshots)
    arguments = [
        "collect.py",
        f"--config=configs/dmc.py:{TASK}",
        "--config.collect.from_snapshots=true",
        f"--config.collect.snapshots={path}",
        "--config.data.trajectories=6",
        f"--workdir={workdir}",
        f"--data_dir={tmp_path / 'data'}",
    ]
    for _ in range(2):  # the second finds it finished
        with pytest.raises(SystemExit) as exit_:
            launch.run(experiment.main, arguments)
        assert exit_.value.code == 0, capsys.readouterr().err
    rows = list(csv.DictReader((workdir / "statistics.csv").open()))
    assert [row["dataset"] for row in rows] == list(policies.DATASETS)
    assert all(row["trajectories"] == "6" for row in rows)
    assert (workdir / "returns.png").stat().st_size > 1000
