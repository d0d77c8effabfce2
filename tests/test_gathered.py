"""Data sets as parts of a replay, and the experiment that writes them."""

import dataclasses
import json

import numpy as np
import pytest

from lawm_jax import coverage, gathered
from lawm_jax.errors import InputError

ENVS, STEPS = 2, 5


def make_gathered(seed, returns, collector=gathered.DREAMER):
    """An agent whose lock-step episodes have these mean returns."""
    rng, rows = np.random.default_rng(seed), ENVS * len(returns)
    reward = np.repeat(returns, ENVS)[:, None] / STEPS + np.zeros((rows, STEPS))
    return gathered.Gathered(
        task="pendulum_swingup",
        collector=collector,
        seed=seed,
        num_envs=ENVS,
        observation=rng.normal(size=(rows, STEPS + 1, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, (rows, STEPS, 1)).astype(np.float32),
        reward=reward.astype(np.float32),
        settings={"agent_steps": 10},
    )


def _make(dataset, count, agents):
    trajectories, metadata = gathered.make_dataset("pendulum_swingup", dataset, count, agents)
    json.dumps(metadata)
    return [trajectory.source for trajectory in trajectories], metadata


def test_parts_of_a_replay():
    agent = make_gathered(0, [1, 20, 45, 58, 70, 92, 100, 80])
    np.testing.assert_allclose(agent.returns, [1, 20, 45, 58, 70, 92, 100, 80], rtol=1e-5)
    step = lambda episode: f"seed0/step{10 * episode}"
    assert _make("expert", 4, [agent])[0] == [step(5)] * 2 + [step(6)] * 2
    assert _make("medium", 4, [agent])[0] == [step(2)] * 2 + [step(3)] * 2
    assert _make("medium_replay", 8, [agent])[0] == [step(i) for i in (0, 0, 1, 1, 2, 2, 3, 3)]
    sources, metadata = _make("plan2explore", 3, [agent])
    assert sources == [step(0), step(4), step(7)]  # evenly spread
    assert metadata["return_statistics"]["trajectories"] == 3
    other = make_gathered(1, [50, 100])
    sources, metadata = _make("medium", 3, [agent, other])
    assert [part["trajectories"] for part in metadata["agents"]] == [2, 1]
    with pytest.raises(gathered.TooFew, match="agent 1 gathered 2 such episodes, not the 3 wanted"):
        _make("medium", 6, [agent, other])
    with pytest.raises(InputError, match="unknown dataset 'full'"):
        _make("full", 1, [agent])
    with pytest.raises(InputError, match="at least 1 trajectory"):
        _make("expert", 0, [agent])


def test_round_trip_of_the_file(tmp_path):
    agent, path = make_gathered(0, [1, 2]), tmp_path / "agent.npz"
    gathered.save(path, agent)
    again = gathered.load(path)
    for field in dataclasses.fields(agent):
        if field.name != "digest":
            np.testing.assert_array_equal(getattr(agent, field.name), getattr(again, field.name))
    assert len(again.digest) == 64
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="damaged"):
        gathered.load(path)


def test_experiment_writes_the_replay(tmp_path, monkeypatch, capsys):
    from experiments import collect as experiment
    from experiments import launch
    from lawm_jax.data.shards import read_dataset
    from lawm_jax.online import dreamer_collector

    def train(task, seed, training, config, normaliser_episodes, log, stop, checkpoints):
        log(10, {"return": 1.0})
        if config.ensemble:
            return make_gathered(7, [1, 2, 3], gathered.PLAN2EXPLORE)
        return make_gathered(seed, [10, 30, 100])

    monkeypatch.setattr(dreamer_collector, "train_agent", train)

    def run(workdir):
        arguments = [
            "collect.py", "--config=configs/dmc.py:pendulum_swingup,tiny",
            "--config.collect.collector=dreamer", "--config.collect.explorer=plan2explore",
            "--config.data.trajectories=2", f"--workdir={tmp_path / workdir}",
            f"--data_dir={tmp_path / 'data'}",
        ]
        with pytest.raises(SystemExit) as exit_:
            launch.run(experiment.main, arguments)
        return exit_.value.code, capsys.readouterr()

    code, printed = run("work")
    assert code == 0, printed.err
    assert "medium: skipped, agent 0 gathered 0 such episodes" in printed.out
    explored = read_dataset(tmp_path / "data", "pendulum_swingup/plan2explore_2")
    assert explored.metadata["collector"] == gathered.PLAN2EXPLORE
    assert [x.source for x in explored.trajectories] == ["seed7/step0", "seed7/step20"]
    expert = read_dataset(tmp_path / "data", "pendulum_swingup/expert_2")
    assert expert.metadata["collector"] == gathered.DREAMER
    results = json.loads((tmp_path / "work" / "results.json").read_text())
    assert set(results["statistics"]) == {"expert", "medium_replay", "plan2explore"}
    code, printed = run("other")  # nothing is trained where data of that name are in the way
    assert code == 2 and "already holds pendulum_swingup/expert_2" in printed.err


def test_coverage_tells_wide_from_narrow():
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(size=(2, 500, 6)) * np.array([1.0, 0.2])[:, None, None]
    measured = coverage.coverage([wide, narrow])
    assert measured[0].cells > 2 * measured[1].cells
    distance = measured[0].log_distance - measured[1].log_distance
    np.testing.assert_allclose(distance, np.log(5), atol=0.1)  # of one shape: the ratio of scales
    same = coverage.coverage([wide, wide])
    assert same[0] == same[1]
    with pytest.raises(ValueError, match="of one shape"):
        coverage.coverage([wide, narrow[1:]])


def test_coverage_by_hand():
    """Five points on a line, each twice: the second neighbour of each is one step away."""
    line = np.repeat(np.arange(5.0), 2)[:, None]
    measured = coverage.coverage([line], components=1, bins=5, neighbour=2)[0]
    assert measured.cells == 5
    np.testing.assert_allclose(measured.log_distance, np.log(1 / line.std()), atol=1e-6)
