"""The benchmarks run and write what others read; they are not timed here."""

import json
import sys

from benchmarks import step_time


def test_step_time_writes_its_rows(tmp_path, monkeypatch, capsys):
    target = tmp_path / "rows.json"
    monkeypatch.setattr(step_time, "REPETITIONS", 1)
    arguments = ["step_time", "--config=configs/dmc.py:walker_walk,tiny", f"--json={target}",
                 "--config.run.steps_per_call=1"]
    monkeypatch.setattr(sys, "argv", arguments)
    step_time.main()
    written = json.loads(target.read_text())
    assert [row["step"] for row in written["rows"]] == ["world_model", "actor_critic"]
    assert all(row["steps_per_second"] > 0 for row in written["rows"])
    assert "| world_model |" in capsys.readouterr().out
