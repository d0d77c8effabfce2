"""A sweep does everything once, whatever happens to it; its jobs are stubs, but for a tiny run."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stub_sweep
from stub_sweep import STEPS, jobs, place

from experiments import sweep, table
from lawm_jax.errors import InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def start(directory, at_once, *names):
    """Starts a sweep as a process of its own."""
    return subprocess.Popen(
        [sys.executable, stub_sweep.__file__, str(directory), str(at_once), *names],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )


def steps(directory, name):
    """Every step that a job ever took, over all its starts."""
    log = place(directory).log(jobs([name])[0])
    lines = log.read_text().splitlines() if log.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith("step")]


def wait_for(condition):
    for _ in range(1200):  # a minute: starting a process takes long where machines are busy
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


def done(directory):
    return sorted(path.name for path in (directory / "results" / "dmc").glob("*.json"))


def test_a_sweep_stopped_in_the_middle_finishes_the_rest_and_repeats_nothing(tmp_path):
    first = start(tmp_path, 1, "a", "b")
    wait_for(lambda: len(steps(tmp_path, "b")) >= 2)  # a is done, b is under way
    first.terminate()
    output, _ = first.communicate(timeout=120)
    assert first.returncode == 75, output
    assert "b: stopped after saving" in output and len(done(tmp_path)) == 1
    again = start(tmp_path, 1, "a", "b")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0 and "2 jobs, 1 of them done before" in output
    assert steps(tmp_path, "a") == steps(tmp_path, "b") == list(range(1, STEPS + 1))
    kept = [f"walker_walk_some_{method}_5pct_seed0.json" for method in ("c_lap", "lawm")]
    assert done(tmp_path) == kept
    finished = start(tmp_path, 1, "a", "b")
    assert "2 jobs, 2 of them done before" in finished.communicate(timeout=120)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel to tell the jobs")
def test_the_jobs_of_a_killed_sweep_save_and_go(tmp_path):
    first = start(tmp_path, 1, "a", "b")
    wait_for(lambda: len(steps(tmp_path, "a")) >= 2)
    first.kill()
    first.communicate(timeout=120)
    wait_for((place(tmp_path).of(jobs(["a"])[0]) / "step").exists)
    again = start(tmp_path, 1, "a", "b")
    assert again.communicate(timeout=120) and again.returncode == 0
    assert steps(tmp_path, "a") == list(range(1, STEPS + 1)) and len(done(tmp_path)) == 2


def test_a_failed_job_is_reported_and_the_others_go_on(tmp_path, capfd):
    code = sweep.run(jobs(["bad", "a"]), place(tmp_path), 1, stub_sweep.command)
    output = capfd.readouterr().out
    assert code == 1 and len(done(tmp_path)) == 1
    assert "bad: FAILED with code 2: error: no such thing" in output
    assert "1 of 2 jobs failed: bad" in output


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_jobs_side_by_side_have_cores_of_their_own(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    code = "import os, sys; print(*sorted(os.sched_getaffinity(0))); sys.exit(75)"
    sweep.run(jobs("ab"), place(tmp_path), 2, lambda job, where: [sys.executable, "-c", code])
    logs = [place(tmp_path).log(job).read_text().split() for job in jobs("ab")]
    expected = [[str(core) for core in cores[n::2]] for n in range(2)]
    assert logs == expected
    with pytest.raises(InputError, match="--jobs is 1000"):
        sweep.run(jobs("ab"), place(tmp_path), 1000)


def test_hosts_share_the_jobs():
    shares = [sweep.share_of(jobs("abcde"), f"{n}/2") for n in range(2)]
    assert [[job.name for job in share] for share in shares] == [["a", "c", "e"], ["b", "d"]]
    a, b, *others = jobs("abcd")
    shares = [sweep.share_of([a, b, *others, needing(jobs("e")[0], b)], f"{n}/2") for n in range(2)]
    assert [[job.name for job in share] for share in shares] == [["a", "c"], ["b", "d", "e"]]
    for wrong in ("2/2", "1", "0/0", "-1/2"):
        with pytest.raises(InputError, match="write INDEX/COUNT"):
            sweep.share_of(jobs("ab"), wrong)


def test_raw_results_that_were_kept_are_not_run_again(tmp_path):
    (job,) = jobs("a")
    folder = tmp_path / "results" / "dmc"
    folder.mkdir(parents=True)
    config = {key: x for key, x in job.config.items() if key != "task"}  # which came later
    kept = stub_sweep.result_of(config)
    (folder / "old.json").write_text(json.dumps(kept))
    assert sweep.run([job], place(tmp_path), 1, stub_sweep.command) == 0
    assert not place(tmp_path).log(job).exists()
    kept["config"]["td3_bc"] = {"steps": 5}  # that the method does not read
    (folder / "old.json").write_text(json.dumps(kept))
    assert sweep.run([job], place(tmp_path), 1, stub_sweep.command) == 0
    assert not place(tmp_path).log(job).exists()
    kept["config"]["data"] = {"label_fraction": 0.01}
    (folder / "old.json").write_text(json.dumps(kept))
    assert sweep.run([job], place(tmp_path), 1, stub_sweep.command) == 0
    assert steps(tmp_path, "a") == list(range(1, STEPS + 1))


def test_a_job_whose_result_could_not_be_kept_does_not_run(tmp_path, capfd):
    job, other = jobs("ab")
    folder = tmp_path / "results" / "dmc"
    folder.mkdir(parents=True)
    kept = stub_sweep.result_of(job.config | {"agent": {"steps": 5}})
    (folder / "kept.json").write_text(json.dumps(kept))
    assert sweep.run([job, other], place(tmp_path), 1, stub_sweep.command) == 1
    assert not place(tmp_path).log(job).exists() and steps(tmp_path, "b")
    output = capfd.readouterr().out
    name = "walker_walk_some_lawm_5pct_seed0.json"
    assert f"a: FAILED: {folder / name} holds the result of another configuration (" in output
    assert "(agent.steps 5 -> absent)" in output
    assert "2 jobs, 0 of them done before" in output and "1 of 2 jobs failed: a" in output


def needing(job, other):
    return dataclasses.replace(job, needs=other.name)


def test_a_job_starts_once_the_one_that_it_needs_is_finished(tmp_path, capfd):
    at_once = min(2, len(os.sched_getaffinity(0)))
    a, b = jobs("ab")
    assert sweep.run([needing(b, a), a], place(tmp_path), at_once, stub_sweep.command) == 0
    lines = capfd.readouterr().out.splitlines()[1:]
    said = [line.split(" ")[:2] for line in lines]
    assert said == [["a:", "python"], ["a:", "done"], ["b:", "python"], ["b:", "done"]]


def test_a_job_whose_needed_one_failed_or_is_gone_is_reported(tmp_path, capfd):
    bad, a, b = jobs(["bad", "a", "b"])
    assert sweep.run([bad, needing(b, bad), a], place(tmp_path), 1, stub_sweep.command) == 1
    output = capfd.readouterr().out
    assert "b: FAILED: it needs bad, which did not finish\n" in output
    assert "2 of 3 jobs failed: bad, b" in output and len(done(tmp_path)) == 1
    shutil.rmtree(place(tmp_path).of(a))
    assert sweep.run([a, needing(b, a)], place(tmp_path), 1, stub_sweep.command) == 1
    gone = f"b: FAILED: it needs a, whose raw result was kept but whose work directory {tmp_path}"
    assert gone in capfd.readouterr().out and len(done(tmp_path)) == 1


def test_a_kept_result_from_before_agents_had_seeds_is_of_the_runs_own(tmp_path):
    (job,) = jobs(["bad"])
    folder = tmp_path / "results" / "dmc"
    folder.mkdir(parents=True)
    kept = stub_sweep.result_of(job.config)
    (folder / "old.json").write_text(json.dumps(kept))
    for seed, code in ((-1, 0), (1, 1)):  # the second is run, and fails
        agent = dataclasses.replace(job, config={**job.config, "agent": {"seed": seed}})
        assert sweep.run([agent], place(tmp_path), 1, stub_sweep.command) == code


def test_a_finished_run_joins_the_raw_results(tmp_path):
    (job,) = jobs("a")
    stub_sweep.stub(place(tmp_path).of(job), "a")
    assert sweep.run([job], place(tmp_path), 1, stub_sweep.command) == 0
    assert not place(tmp_path).log(job).exists() and len(done(tmp_path)) == 1


def test_the_tiny_sweep_runs_and_its_result_makes_a_table(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    folders = [f"--{name}={tmp_path / name}" for name in ("workdir", "data_dir", "results")]
    flags = ["--config=configs/table.py:tiny", "--config.dmc.label_fractions=(0.05,)", *folders]
    assert table.main(flags) == 0
    assert "done in" in capfd.readouterr().out
    assert table.main(flags) == 0
    assert "1 jobs, 1 of them done before" in capfd.readouterr().out
    assert table.main(["--rebuild", f"--out={tmp_path / 'out'}", folders[-1]]) == 0
    lines = (tmp_path / "out" / "table_5pct.csv").read_text().splitlines()
    assert lines[1].startswith("walker_walk/medium_replay,") and len(lines) == 3
