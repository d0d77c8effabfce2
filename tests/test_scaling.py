"""scaling: what it counts and compares, and that a step without its mean is noticed."""

import json
import math
import subprocess
import sys
import types

import numpy as np
import pytest
import scaling_small
from processes import output, start

from benchmarks import scaling


def test_scaling_counts_the_collectives_of_a_step_and_their_bytes():
    """Of a program whose collectives are known: 4 rounds of 3 x 5 floats, and the loss."""
    (row,) = output(start(scaling_small, devices=2))
    rounds, numbers = scaling_small.ROUNDS, math.prod(scaling_small.SHAPE)
    assert (row["step"], row["devices"], row["kinds"]) == ("small", 2, ["all-reduce"])
    assert row["devices_agree"]
    assert row["collectives"] == rounds + 1
    assert row["collective_bytes"] == 4 * (rounds * numbers + 1)
    state, losses = np.ones(()), []
    for _ in range(scaling.STEPS):
        for _ in range(rounds):
            state = np.sin((1 + 2) * state)
        losses.append(sum(range(8)) / 2 + numbers * state)
    np.testing.assert_allclose(row["losses"], losses, rtol=1e-5)


@pytest.fixture
def scaled(tmp_path, monkeypatch):
    """Runs scaling with stand-ins for its processes; loss(devices) is what each of them has."""

    def run(loss, code=0, config="configs/dmc.py:walker_walk,tiny", agree=True):
        asked = []

        def child(command, env, **how):
            flag = env["XLA_FLAGS"].rpartition("--xla_force_host_platform_device_count=")
            devices = int(flag[2])
            asked.append(devices)
            assert command[-2:] == ["--child", f"--config={config}"]
            row = {
                "step": "world_model", "devices": devices, "losses": [loss(devices)] * 3,
                "collectives": 2, "collective_bytes": 1500, "kinds": ["all-reduce"],
                "devices_agree": agree or devices < 4,
            }  # fmt: skip
            return types.SimpleNamespace(returncode=code, stdout=f"a line\n{json.dumps([row])}\n")

        monkeypatch.setattr(scaling, "subprocess", types.SimpleNamespace(
            run=child, PIPE=subprocess.PIPE
        ))
        monkeypatch.setattr(
            sys, "argv", ["scaling", f"--json={tmp_path / 'rows.json'}", f"--config={config}"]
        )
        scaling.main()
        assert asked == [1, 2, 4, 8]
        return json.loads((tmp_path / "rows.json").read_text())

    return run


def test_scaling_writes_a_row_for_each_number_of_devices(scaled, capsys):
    written = scaled(lambda devices: 2.0 + 1e-4 * devices)  # rounding
    assert written["command"] == (
        "python -m benchmarks.scaling --config=configs/dmc.py:walker_walk,tiny"
    )
    assert [row["devices"] for row in written["rows"]] == [1, 2, 4, 8]
    assert "| world_model | 8 | 2.0008, 2.0008, 2.0008 | 2 | 1.5 |" in capsys.readouterr().out


def test_scaling_fails_where_losses_differ_or_a_process_fails(scaled, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        scaled(lambda devices: 2.0 if devices < 4 else 2.01)
    assert exit_.value.code == "error: world_model on 4 devices has other losses than on 1"
    with pytest.raises(SystemExit) as exit_:
        scaled(lambda devices: 2.0, agree=False)
    assert exit_.value.code == (
        "error: world_model on 4 devices leaves them with different states"
    )
    with pytest.raises(SystemExit) as exit_:
        scaled(lambda devices: 2.0, code=3)
    assert exit_.value.code == 3
    with pytest.raises(SystemExit) as exit_:
        scaled(lambda devices: 2.0, config="configs/dmc.py:walker_walk,medum")
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: configs/dmc.py: 'medum' is") and error.count("\n") == 1
    assert not (tmp_path / "rows.json").exists()


def test_a_process_of_scaling_says_in_one_line_what_it_cannot_run(monkeypatch, capsys):
    config = "--config=configs/dmc.py:walker_wlak,tiny"
    monkeypatch.setattr(sys, "argv", ["scaling", "--child", config])
    with pytest.raises(SystemExit) as exit_:
        scaling.main()
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown task 'walker_wlak'") and error.count("\n") == 1




def test_a_step_that_forgets_its_mean_over_the_devices_is_noticed():
    """Of the tiny presets' steps, on two devices, with lax.pmean doing nothing."""
    rows = output(start(scaling_small, "forgetful", devices=2))
    assert {row["step"]: row["devices_agree"] for row in rows} == dict.fromkeys(
        scaling_small.FORGETFUL, False
    )
