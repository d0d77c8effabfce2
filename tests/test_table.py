"""The table rebuilt from raw results, and the jobs that a config of it asks for."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from test_report import result

from configs.table import get_config
from experiments import raw_results, table, table_figures, table_jobs, table_report
from experiments.identity import same_config
from lawm_jax import statistics
from lawm_jax.errors import InputError

ROWS = [f"{task}/medium_replay" for task in ("cheetah_run", "hopper_stand", "walker_walk")]
ROOT = Path(__file__).parent.parent
RUNS = Path("runs")
COLUMNS = ("td3_bc_oracle", "c_lap_oracle", "td3_bc", "c_lap", "idm_td3_bc", "lawm")


def read_csv(path):
    with path.open() as file:
        return {row["dataset"]: row for row in csv.DictReader(file)}


def rebuild(*args):
    return table.main(["--rebuild", *map(str, args)])


@pytest.fixture
def raw(tmp_path):
    """Keeps results as files of results/dmc; returns the function that does."""

    def keep(*results):
        (tmp_path / "results" / "dmc").mkdir(parents=True, exist_ok=True)
        for n, entry in enumerate(results):
            (tmp_path / "results" / "dmc" / f"{n}.json").write_text(json.dumps(entry))
        return tmp_path / "results"

    return keep


# ---- rebuild


def test_the_committed_results_make_every_table_and_figure(tmp_path):
    assert rebuild(f"--out={tmp_path}") == 0
    for labels in ("5pct", "1pct"):
        rows = read_csv(tmp_path / f"table_{labels}.csv")
        assert list(rows)[-1] == "average" and set(ROWS) < set(rows)
        expected = [f"{column}{end}" for column in COLUMNS for end in ("", "_low", "_high")]
        assert list(rows["average"]) == ["dataset", *expected]
        for row in rows.values():
            for column in COLUMNS:
                mean, low, high = (row[f"{column}{end}"] for end in ("", "_low", "_high"))
                assert (mean == low == high == "") or float(low) <= float(mean) <= float(high)
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {
        "table.md", "diagnostics.csv", "returns_5pct.png", "returns_1pct.png",
        "interquartile_means.png", "performance_profiles.png", "label_fractions.png",
    }


def test_cells_and_averages_by_hand(raw, tmp_path):
    lawm = [result("lawm", 0.05, seed, mean) for seed, mean in enumerate((500.0, 600.0))]
    cheetah = result("lawm", 0.05, 0, 100.0)
    cheetah["config"]["task"] = "cheetah_run"
    cheetah["dataset"] |= {"name": "cheetah_run/medium_replay_400", "fingerprint": "ba4"}
    alone = json.loads(json.dumps(cheetah).replace("cheetah", "hopper"))
    clap = json.loads(json.dumps(cheetah).replace('"lawm"', '"c_lap"'))
    oracle = result("td3_bc", 1.0, 0, 900.0)
    results = raw(*lawm, cheetah, alone, clap, result("c_lap", 0.05, 0, 300.0), oracle)
    assert rebuild(f"--results={results}", f"--out={tmp_path}") == 0
    rows = read_csv(tmp_path / "table_5pct.csv")
    walker = rows["walker_walk/medium_replay"]
    half = 12.706 * np.std([50, 60], ddof=1) / 2**0.5  # Student's t over two seeds
    assert (walker["lawm"], walker["lawm_low"]) == ("55.00", f"{55 - half:.2f}")
    assert (walker["c_lap"], walker["c_lap_low"], walker["c_lap_high"]) == (
        "30.00", "29.30", "30.70"  # over the episodes of one seed
    )
    assert walker["td3_bc_oracle"] == "90.00" and walker["idm_td3_bc"] == ""
    # only walker has each of the three filled columns
    assert [rows["average"][column] for column in COLUMNS] == [
        "90.00", "", "", "30.00", "", "55.00"
    ]
    assert read_csv(tmp_path / "table_1pct.csv")["walker_walk/medium_replay"]["lawm"] == ""
    (results / "dmc" / "6.json").unlink()  # the oracle: now walker and cheetah share the columns
    assert rebuild(f"--results={results}", f"--out={tmp_path}") == 0
    average = read_csv(tmp_path / "table_5pct.csv")["average"]
    assert (average["c_lap"], average["lawm"]) == ("20.00", "32.50")


def test_differences_of_averages_are_paired_by_seed(raw):
    """Three seeds of walker_walk by Student's t, one of cheetah_run by its episodes."""
    both = []
    for method, returns in (("lawm", (500.0, 300.0, 400.0)), ("c_lap", (410.0, 190.0, 300.0))):
        both += [result(method, 0.05, seed, mean) for seed, mean in enumerate(returns)]
        cheetah = result(method, 0.05, 0, returns[0] - 100.0)
        cheetah["config"]["task"] = "cheetah_run"
        cheetah["dataset"] |= {"name": "cheetah_run/medium_replay_400", "fingerprint": "ba4"}
        both.append(cheetah)
    cells = table.read_cells(raw(*both) / "dmc")
    rows = table_report.rows_of(cells, "5%")
    found = raw_results.average_difference([(row["lawm"], row["c_lap"]) for row in rows.values()])
    assert found.mean == pytest.approx((100 + 90) / 2)  # of gains 90, 110, 100 and 90
    gains = np.array([90.0, 110.0, 100.0])
    few = statistics.student_half_width(gains)
    episodes = np.hypot(7.0, 7.0)  # of `result`'s runs
    assert max(few, episodes) / 2 < (found.high - found.low) / 2 < (few + episodes) / 2
    assert table_report.markdown(cells).count("| average | 5% |") == 1
    assert raw_results.average_difference([(rows["walker_walk/medium_replay"]["lawm"], [])]) is None


def test_oracles_end_the_curves_over_label_fractions(raw):
    results = raw(
        result("lawm", 0.05, 0, 400.0), result("c_lap", 0.01, 0, 200.0),
        result("c_lap", 0.05, 0, 300.0), result("c_lap", 1.0, 0, 800.0),
        result("idm_td3_bc", 0.05, 0, 350.0), result("td3_bc", 1.0, 0, 500.0),
    )
    curves = table_figures.label_curves(table.read_cells(results / "dmc"))
    means = {
        method: {labels: point.mean for labels, point in points.items()}
        for method, points in curves["walker_walk/medium_replay"].items()
    }
    assert means == {
        "c_lap": {1.0: 20.0, 5.0: 30.0, 100.0: 80.0}, "idm_td3_bc": {5.0: 35.0, 100.0: 50.0}
    }


def lapo_result(game, seed, returns, data=10.0, temperature=1.0):
    played = lambda mean: {
        "return_mean": mean, "return_ci95": 0.98, "episodes": 8, "normalised": mean / data
    }
    return {
        "config": {
            "task": game, "vq": {"enabled": True}, "evaluation": {"temperature": temperature}
        },
        "seed": seed,
        "dataset": {"name": f"{game}/scripted", "fingerprint": "one"},
        "random_policy": {"return_mean": 0.0, "return_ci95": 0.0},
        "data_policy": {"return_mean": data, "return_ci95": 0.0},
        "behaviour_cloning": played(0.9 * data),
        "offline_decoding": [{"labels": n, **played(mean)} for n, mean in returns.items()],
    }


def test_lapo_curves_are_means_over_games_at_shared_label_counts(tmp_path):
    results = [
        lapo_result("maze", 0, {16: 2.0, 64: 4.0}), lapo_result("maze", 1, {16: 4.0, 64: 4.0}),
        lapo_result("miner", 0, {16: 10.0, 256: 12.0}, data=20.0),
    ]
    curves = table_figures.lapo_curves(results)
    assert list(curves["lapo"]) == [16]
    mean, low, high = curves["lapo"][16]
    np.testing.assert_allclose(mean, (0.3 + 0.5) / 2)
    # maze from its two seeds by Student's t, miner by its episodes (a standard error of 0.025)
    half = statistics.student_half_width([0.2, 0.4]) / 2
    np.testing.assert_allclose([low, high], [0.4 - half, 0.4 + half], rtol=0.05)
    np.testing.assert_allclose(curves["behaviour_cloning"][16].mean, 0.9)
    (tmp_path / "maze.json").write_text(json.dumps(results[0]))
    (path,) = table_figures.write_lapo(tmp_path, tmp_path)
    assert path.stat().st_size > 5000
    assert table_figures.write_lapo(tmp_path / "none", tmp_path) == []
    dataset = results[1]["dataset"] | {"fingerprint": "another"}
    other = results[1] | {"seed": 2, "dataset": dataset}
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match="results on maze come from 2 different data sets"):
        table_figures.write_lapo(tmp_path, tmp_path)
    other = lapo_result("maze", 1, {16: 4.0}, temperature=0.5)
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=r"maze has results with evaluation.temperature 0.5 and 1"):
        table_figures.write_lapo(tmp_path, tmp_path)


def test_methods_of_lapo_are_compared_on_games_that_all_have():
    plain = [lapo_result("maze", 0, {16: 2.0}), lapo_result("miner", 0, {16: 8.0})]
    other = lapo_result("miner", 0, {16: 6.0})
    other["config"]["vq"]["enabled"] = False
    panels = table_figures.lapo_panels([*plain, other])
    means = {
        title: {method: points[16].mean for method, points in curves.items()}
        for title, curves in panels.items()
    }
    assert means == {
        "mean over maze, miner": {"lapo": 0.5, "behaviour_cloning": 0.9},
        "mean over miner": {"lapo": 0.8, "lapo_without_vq": 0.6, "behaviour_cloning": 0.9},
    }
    assert list(table_figures.lapo_panels(plain)) == ["mean over maze, miner"]
    assert table_figures.lapo_panels([]) == {}


@pytest.mark.parametrize(("content", "message"), [
    ('{"config"', "is no whole result of a run"),
    ("{}", "is no whole result of a run"),
    ("[]", "is no whole result of a run"),
    ("half", r"is no whole result of a run .*evaluation.return_mean"),
    (None, "are results of one run; remove one"),
    ("lapo", "is of LAPO, and the others are not; keep it in another directory"),
])
def test_raw_results_that_cannot_be_are_refused(raw, content, message):
    whole = result("lawm", 0.05, 0, 400.0)
    results = raw(whole) / "dmc"
    if content in (None, "lapo"):
        content = json.dumps(whole if content is None else lapo_result("maze", 0, {16: 2.0}))
    if content == "half":
        content = json.dumps(whole | {"evaluation": {"return_ci95": 1.0}})
    (results / "other.json").write_text(content)
    with pytest.raises(InputError, match=f"other.json .*{message}"):
        raw_results.read(results)
    assert rebuild(f"--results={results.parent}", f"--out={results}") == 2


# ---- jobs


def test_a_job_is_what_a_user_would_type():
    config = get_config("tiny").unlock()
    config.dmc.methods = ("lawm", "c_lap", "td3_bc")
    config.lapo.games, config.lapo.methods = ("maze",), ("lapo_without_vq",)
    jobs = {job.name: job for job in table_jobs.jobs_of(config, RUNS)}
    job = jobs["walker_walk_medium_replay_tiny_td3_bc_20pct_seed0"]
    assert (job.experiment, job.group) == ("baselines", "dmc")
    flags = (
        "--config=configs/dmc.py:walker_walk,medium_replay,tiny", "--config.method=td3_bc",
        "--config.data.label_fraction=0.2", "--config.seed=0",
    )
    assert job.flags == (*flags, "--config.td3_bc.critic_layer_norm=True")
    assert job.config["method"] == "td3_bc" and job.config["td3_bc"]["steps"] == 300
    lawm = jobs["walker_walk_medium_replay_tiny_lawm_20pct_seed0"]
    assert lawm.experiment == "lawm" and not any("layer_norm" in flag for flag in lawm.flags)
    c_lap = jobs["walker_walk_medium_replay_tiny_c_lap_20pct_seed0"]
    weight = lambda job: job.config["world_model"]["latent_kl_weight"]
    assert (weight(lawm), weight(c_lap)) == (1.0, 0.3)
    rows = lambda job: [job.config["world_model"][f"{x}labelled_rows"] for x in ("", "un")]
    assert rows(lawm) == rows(c_lap)
    config.dmc.settings = (
        ("lawm", 0.2, "world_model.labelled_rows", 1), ("lawm", None, "agent.horizon", 3),
        ("lawm", 0.1, "world_model.unlabelled_rows", 11),  # of no job here
    )
    changed = {job.name: job for job in table_jobs.jobs_of(config, RUNS)}
    assert rows(changed[lawm.name]) == [1, rows(lawm)[1]] and rows(lawm)[0] > 1
    assert changed[lawm.name].config["agent"]["horizon"] == 3
    assert changed[c_lap.name].config["agent"]["horizon"] == c_lap.config["agent"]["horizon"] != 3
    assert rows(changed[c_lap.name]) == rows(c_lap) == rows(lawm)
    plain = changed[job.name]
    assert plain.flags == flags and not same_config(job.config, plain.config)
    job = jobs["maze_tiny_lapo_without_vq_seed0"]
    assert (job.experiment, job.group, job.config["vq"]["enabled"]) == ("lapo", "lapo", False)


def test_kept_results_are_those_that_the_config_asks_for():
    kept = {
        group: raw_results.read(ROOT / "results" / group, lapo=group == "lapo")
        for group in ("dmc", "lapo")
    }
    refused = {
        job.name for job in table_jobs.jobs_of(get_config(), RUNS)
        if not any(same_config(result["config"], job.config) for result in kept[job.group])
        and any(raw_results.takes_name_of(job.config, result) for result in kept[job.group])
    }
    assert not refused
    assert {"dmc", "lapo"} == {
        job.group for job in table_jobs.jobs_of(get_config(), RUNS)
        if any(same_config(result["config"], job.config) for result in kept[job.group])
    }


@pytest.mark.parametrize(("settings", "message"), [
    (("lawm", 0.2, "seed"), "dmc.settings has 'lawm'; write "),
    ((("lawm", "agent.prior", 0.2),), "dmc.settings has .'lawm', 'agent.prior', 0.2.; write "),
    ((("c_lab", None, "agent.prior", 0.2),), "dmc.settings has 'c_lab'; choose from "),
    ((("lawm", None, "agent.pryor", 0.2),), "agent.prior"),
    ((("lawm", None, "seed", 5),), "dmc.settings has 'seed', which tells jobs apart"),
])
def test_settings_that_cannot_be(settings, message):
    """A setting of what names a job would run under another one's name."""
    config = get_config("tiny").unlock()
    config.dmc.methods, config.dmc.settings = ("lawm",), settings
    with pytest.raises(InputError, match=message):
        table_jobs.jobs_of(config, RUNS)


def test_settings_of_lapo():
    config = get_config("tiny").unlock()
    config.lapo.games = ("maze",)
    config.lapo.settings = (("distillation.labels", (8,)), ("distillation.trunk", True))
    job = {job.name: job for job in table_jobs.jobs_of(config, RUNS)}["maze_tiny_lapo_seed0"]
    chosen = job.config["distillation"]
    assert (chosen["labels"], chosen["trunk"]) == ([8], True)
    for settings, message in (
        ((("seed", 3),), "lapo.settings has 'seed', which tells jobs apart"),
        (("distillation.trunk", True), "lapo.settings has 'distillation.trunk'; write "),
    ):
        config.lapo.settings = settings
        with pytest.raises(InputError, match=message):
            table_jobs.jobs_of(config, RUNS)


def test_further_agents_come_after_the_run_whose_world_model_they_take():
    config = get_config("tiny").unlock()
    config.dmc.methods, config.dmc.seeds = ("lawm", "td3_bc"), (0, 1)
    config.dmc.agent_seeds = (0, 5)
    jobs = table_jobs.jobs_of(config, RUNS)
    name = "walker_walk_medium_replay_tiny_lawm_20pct_seed{}"
    assert [(job.name, job.needs) for job in jobs[4:]] == [
        (name.format("0_agent5"), name.format("0")),  # 0 has the agent of seed 0 itself
        (name.format("1_agent0"), name.format("1")), (name.format("1_agent5"), name.format("1")),
    ]
    assert not any(job.needs for job in jobs[:4])
    base, further = next(job for job in jobs if job.name == jobs[4].needs), jobs[4]
    added = ("--config.agent.seed=5", f"--config.world_model.pretrained=runs/{base.name}")
    assert further.flags == (*base.flags, *added)
    assert further.config["world_model"]["pretrained"] == f"runs/{base.name}"
    assert {name: x for name, x in further.config["agent"].items() if name != "seed"} == {
        name: x for name, x in base.config["agent"].items() if name != "seed"
    }


def test_presets_name_every_row_and_each_job_once():
    counts = {}
    for preset in ("evidence", "paper"):
        config = get_config(preset).unlock()
        config.dmc.seeds, config.lapo.games = (0,), ("maze",)
        jobs = table_jobs.jobs_of(config, RUNS)
        counts[preset] = len({job.flags for job in jobs})
        assert counts[preset] == len({job.name for job in jobs}) == len(jobs)
    # 4 rows with 2 oracles and 5 methods at 2 fractions, of one two more seeds and 2 x 3 for curves
    assert counts["evidence"] == 4 * 12 + 2 * 12 + 6 + 1
    assert counts["paper"] == 12 * 12 + 6 + 6  # LAPO: 2 methods, 3 seeds


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config=configs/table.py:tiny", "--config.dmc.methods=('lwam',)"], "method is 'lwam'"),
        (["--config=configs/table.py:big"], "'big' is no preset"),
        (["--config=configs/table.py:tiny", "--config.dmc.rows=('walker_walk',)"], "TASK/DATASET"),
        (["--config=configs/table.py:tiny", "--config.dmc.rows=('a/b',)"], "neither a dataset"),
        (
            ["--config=configs/table.py:tiny", "--config.dmc.methods=('lawm',)",
             "--config.dmc.agent_seeds=(-1,)"],
            "dmc.agent_seeds has -1",
        ),
        (["--config=configs/table.py:tiny", "--config.dmc.seeds=(0, -1)"], "dmc.seeds has -1"),
        (
            ["--config=configs/table.py:tiny", "--config.dmc.label_fractions=(5.0,)"],
            "dmc.label_fractions has 5.0",
        ),
        (
            ["--config=configs/table.py:tiny", "--config.dmc.oracles=('lawm',)"],
            "dmc.oracles has 'lawm'; choose from c_lap, dreamer, td3_bc, bc",
        ),
        (["--config=configs/table.py:tiny", "--share=2/2"], "--share is '2/2'"),
        (["--config=configs/table.py:tiny", "--jobs=0"], "--jobs is 0"),
        (["--config=configs/table.py:tiny", "--jobs=two"], "--jobs: invalid int value"),
        (["--config=configs/table.py:tiny", "--job=2"], "unknown flag '--job'"),
        ([], "--config is missing"),
        (["--rebuild"], "--rebuild needs --out"),
        (["--rebuild", "--out=x", "--results=no/such"], "no/such/dmc not found"),
        (["--rebuild", "--out=README.md/x"], "--out=README.md/x cannot be written: "),
        (["--config=configs/table.py:tiny", "--workdir=README.md"], "--workdir=README.md cannot"),
        (
            ["--config=configs/table.py:tiny", "--config.dmc.label_fractions=(0.2, 0.2000000001)"],
            "two jobs are called walker_walk_medium_replay_tiny_td3_bc_20pct_seed0",
        ),
    ],
)
def test_bad_input_is_one_line(args, message, capsys):
    assert table.main(args) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_results_without_a_run_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no results"):
        (tmp_path / "dmc").mkdir()
        table.rebuild(tmp_path, tmp_path)


def test_diagnostics_show_the_methods_that_have_them(raw):
    idm = result("idm_td3_bc", 0.05, 0, 350.0)
    idm["metrics"] = {"decoded_action_error": 0.3, "unlabelled_action_error": 0.4}
    cells = table.read_cells(raw(result("lawm", 0.05, 0, 400.0), idm) / "dmc")
    (line,) = table_report.diagnostics(cells)
    found = dict(zip(table_report.DIAGNOSTICS, line[2:], strict=True))
    assert line[:2] == ["walker_walk/medium_replay", "5%"]
    assert found["lawm_decoded_action_error"] == "0.1"
    assert found["idm_unlabelled_action_error"] == "0.4"
    assert found["c_lap_open_loop_error_5"] == ""
