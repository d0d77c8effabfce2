"""The table of results, rebuilt from raw results."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments import raw_results, report
from lawm_jax.errors import InputError


def result(method, labels, seed, mean):
    return {
        "config": {
            "task": "walker_walk",
            "method": method,
            "data": {"trajectories": 400, "label_fraction": labels},
        },
        "seed": seed,
        "dataset": {"name": "walker_walk/medium_replay_400", "fingerprint": "f00",
                    "return_statistics": {"p75": 348.0}},
        "evaluation": {"return_mean": mean, "return_ci95": 7.0, "predicted_value": 60.0,
                       "real_value": 50.0},
        "metrics": {"decoded_action_error": 0.1, "action_variance": 0.5, "open_loop_error_5": 0.25},
        "wall_clock_seconds": 120.0,
    }


def test_interval_over_seeds_is_students_t_and_over_one_run_its_episodes():
    means = [400.0, 430.0, 490.0]
    runs = [result("lawm", 0.05, seed, mean) for seed, mean in enumerate(means)]
    mean, half = raw_results.mean_and_interval(runs)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(means), scale=stats.sem(means))
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-3)
    assert raw_results.mean_and_interval([result("lawm", 0.05, 0, 400.0)]) == (400.0, 7.0)


def test_table_has_a_row_for_each_label_fraction_with_the_oracle_beside(tmp_path):
    for n, entry in enumerate([result("lawm", 0.05, 0, 411.0), result("c_lap", 0.05, 0, 222.0),
                               result("lawm", 0.01, 0, 333.0), result("c_lap", 1.0, 0, 444.0),
                               result("lawm", 0.1, 0, 422.0)]):
        workdir = tmp_path / f"run{n}"
        workdir.mkdir()
        (workdir / "results.json").write_text(json.dumps(entry))
        raw_results.add(tmp_path / "raw", workdir)
    lines = report.table(tmp_path / "raw").splitlines()
    assert len(lines) == 5
    one, five, ten = (line for line in lines if "%" in line.split("|")[3])  # by number
    assert "| 1% | 333 ± 7 | - | - | 444 ± 7 | 348 | 0.100 (20%) |" in one
    assert "| 5% | 411 ± 7 | 222 ± 7 | 189 ± 10 | 444 ± 7 | 348 |" in five
    assert "| 10% | 422 ± 7 |" in ten
    report.plot(tmp_path / "raw", tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 5000


def test_the_difference_is_paired_by_seed():
    ours = [result("lawm", 0.01, s, m) for s, m in ((0, 266.0), (1, 323.0), (2, 433.0))]
    others = ((2, 400.0), (0, 229.0), (1, 292.0), (3, 9.0))
    theirs = [result("c_lap", 0.01, s, m) for s, m in others]
    low, high = stats.t.interval(0.95, 2, loc=np.mean([37, 31, 33]), scale=stats.sem([37, 31, 33]))
    mean, half = raw_results.difference(ours, theirs)
    np.testing.assert_allclose([mean - half, mean + half], [low, high], rtol=1e-3)
    assert raw_results.difference(ours[:1], theirs[:1]) is None


def test_plain_and_normalised_critics_do_not_mix(tmp_path):
    for seed in (0, 1):
        entry = result("td3_bc", 0.05, seed, 200.0)
        entry["config"]["td3_bc"] = {"critic_layer_norm": True} if seed else {}
        (tmp_path / "results.json").write_text(json.dumps(entry))
        raw_results.add(tmp_path / "raw", tmp_path)
        if not seed:
            assert raw_results.read_cells(tmp_path / "raw")
    with pytest.raises(InputError, match="td3_bc has results with td3_bc.critic_layer_norm False"):
        raw_results.read_cells(tmp_path / "raw")


@pytest.mark.parametrize("labels", [0.05, 0.01])  # of the second: of the same cell or another
@pytest.mark.parametrize(("method", "mixes"), [("lawm", False), ("td3_bc", True)])
@pytest.mark.parametrize("key", ["world_model.latent_kl_weight", "agent.prior"])
def test_settings_of_the_table_do_not_mix_where_they_are_read(
    tmp_path, key, method, mixes, labels
):
    section, _, name = key.partition(".")
    for seed, weight in ((0, 0.3), (1, 1.0)):
        entry = result(method, labels if seed else 0.05, seed, 200.0)
        entry["config"][section] = {name: weight}
        (tmp_path / "results.json").write_text(json.dumps(entry))
        raw_results.add(tmp_path / "raw", tmp_path)
    if mixes:
        assert raw_results.read_cells(tmp_path / "raw")
        return
    with pytest.raises(InputError, match=f"{key} 0.3 and 1.0; keep them"):
        raw_results.read_cells(tmp_path / "raw")


def test_results_of_other_data_or_settings_do_not_mix(tmp_path):
    def keep(entry):
        (tmp_path / "results.json").write_text(json.dumps(entry))
        raw_results.add(tmp_path / "raw", tmp_path)

    keep(result("lawm", 0.05, 0, 411.0))
    other = result("lawm", 0.05, 0, 500.0)
    other["config"]["seed_of_change"] = 1
    with pytest.raises(InputError, match="another configuration"):
        keep(other)
    elsewhere = result("lawm", 0.05, 1, 411.0)
    elsewhere["dataset"]["fingerprint"] = "ba4"
    keep(elsewhere)
    with pytest.raises(InputError, match="2 different data sets"):
        report.table(tmp_path / "raw")


def agent_result(agent, seed, mean, **settings):
    """The result of an agent of its own seed on the world model of a seed."""
    one = result("lawm", 0.05, seed, mean)
    one["config"] |= {
        "seed": seed, "agent": {"seed": agent, **settings}, "world_model": {"pretrained": "there"}
    }
    one["wall_clock_seconds"] = 40.0
    return one


@pytest.fixture
def keep(tmp_path):
    """Keeps results as the sweep does; returns the function that does."""

    def keep(*results):
        for entry in results:
            (tmp_path / "results.json").write_text(json.dumps(entry))
            raw_results.add(tmp_path / "raw", tmp_path)
        return tmp_path / "raw"

    return keep


def test_agents_on_one_world_model_count_as_one_seed(keep):
    directory = keep(
        result("lawm", 0.05, 0, 400.0), agent_result(1, 0, 500.0), agent_result(2, 0, 600.0),
        result("lawm", 0.05, 1, 700.0), result("c_lap", 0.05, 0, 450.0),
        result("c_lap", 0.05, 1, 480.0),
    )
    assert {path.stem for path in directory.glob("*lawm_5pct_seed0*")} == {
        f"walker_walk_medium_replay_400_lawm_5pct_seed0{agent}" for agent in
        ("", "_agent1", "_agent2")
    }
    ((_, cell),) = raw_results.read_cells(directory).items()
    by_seed = {one["seed"]: one for one in cell["lawm"]}
    assert {seed: one["evaluation"]["return_mean"] for seed, one in by_seed.items()} == {
        0: 500.0, 1: 700.0
    }
    low, high = stats.t.interval(0.95, 1, loc=600.0, scale=stats.sem([500.0, 700.0]))
    np.testing.assert_allclose(raw_results.estimate(cell["lawm"]), [600.0, low, high], rtol=1e-3)
    assert raw_results.difference(cell["lawm"], cell["c_lap"])[0] == (50.0 + 220.0) / 2
    mean = by_seed[0]
    assert mean["evaluation"]["return_ci95"] == pytest.approx((3 * 7.0**2) ** 0.5 / 3)
    assert mean["metrics"]["decoded_action_error"] == pytest.approx(0.1)
    assert mean["wall_clock_seconds"] == 120.0  # of the run that trained the world model
    assert by_seed[1] == result("lawm", 0.05, 1, 700.0)


def test_agents_with_other_settings_are_no_seed_of_the_same(keep):
    directory = keep(agent_result(1, 0, 500.0, epsilon=2.0), agent_result(2, 0, 500.0, epsilon=1.0))
    with pytest.raises(InputError, match=r"seed0_agent1.json and .* differ in agent.epsilon 2.0"):
        raw_results.read_cells(directory)
    again = agent_result(0, 0, 400.0)  # the run's own agent once more is no further one
    with pytest.raises(InputError, match="another configuration"):
        keep(result("lawm", 0.05, 0, 400.0), again)


def test_an_unfinished_run_and_an_empty_directory_are_refused(tmp_path):
    with pytest.raises(InputError, match="not finished"):
        raw_results.add(tmp_path / "raw", tmp_path)
    with pytest.raises(InputError, match="holds no results"):
        report.table(tmp_path)
