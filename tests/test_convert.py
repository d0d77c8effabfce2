import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import convert as command
from lawm_jax.data import convert, shards
from lawm_jax.errors import InputError

KEYS = ("orientations", "height", "velocity")  # 2 + 1 + 1 numbers


def episode(steps, first=0):
    """Rows as both formats store them, from an environment whose state counts its steps.

    Observation t holds the number first + t in all its parts, the action that leaves it is
    (first + t) / 1000, and the reward is that action plus the state that it leads to.
    """
    state = np.arange(first, first + steps + 1, dtype=np.float64)
    led_to = np.concatenate([[0.0], state[:-1] / 1000])
    reward = np.concatenate([[0.0], led_to[1:] + state[1:]])
    return {
        "velocity": -state[:, None],
        "height": state[:, None] + 0.5,
        "orientations": np.stack([state, 2 * state], axis=1),
        "action": np.stack([led_to, -led_to], axis=1),
        "reward": reward[:, None],  # AIME's rewards are [rows, 1]
    }


def aime(rows):
    return {"pre_action" if key == "action" else key: array for key, array in rows.items()}


def dreamer(rows, **flags):
    observation = np.concatenate([rows[key] for key in KEYS], axis=1)
    return {"observation": observation, "action": rows["action"], "reward": rows["reward"][:, 0],
            **flags}  # fmt: skip


def check(trajectory, steps, first=0, labelled=True):
    state = np.arange(first, first + steps + 1, dtype=np.float32)
    expected = np.stack([state, 2 * state, state + 0.5, -state], axis=1)
    np.testing.assert_array_equal(trajectory.observation, expected)
    np.testing.assert_allclose(trajectory.reward, state[:-1] / 1000 + state[1:], rtol=1e-6)
    assert trajectory.length == steps
    assert (trajectory.action is not None) == labelled
    if labelled:
        np.testing.assert_allclose(trajectory.action[:, 0], state[:-1] / 1000, rtol=1e-6)
        np.testing.assert_allclose(trajectory.action[:, 1], -state[:-1] / 1000, rtol=1e-6)
        assert trajectory.action.dtype == np.float32
    assert trajectory.observation.dtype == trajectory.reward.dtype == np.float32


def write_hdf5(path, arrays):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip")


def joined(*episodes):
    return {key: np.concatenate([e[key] for e in episodes]) for key in episodes[0]}


# ---- AIME


def test_aime_alignment_order_and_missing_actions(tmp_path):
    for number in (10, 9, 2):  # text order would be 10, 2, 9
        rows = aime(episode(5, first=number))
        if number == 9:
            del rows["pre_action"]
        rows["image"] = np.zeros((6, 8, 8, 3), np.uint8)
        np.savez_compressed(tmp_path / f"{number}.npz", **rows)
    trajectories = list(convert.read_aime(tmp_path, KEYS))
    assert [t.source for t in trajectories] == ["2.npz", "9.npz", "10.npz"]
    for trajectory, first in zip(trajectories, (2, 9, 10), strict=True):
        check(trajectory, 5, first, labelled=first != 9)


def test_aime_action_of_the_wrong_step_is_refused(tmp_path):
    rows = aime(episode(5))
    rows["pre_action"] = np.roll(rows["pre_action"], -2, axis=0)
    np.savez(tmp_path / "0.npz", **rows)
    with pytest.raises(InputError, match=r"0\.npz: pre_action must be the action that led"):
        list(convert.read_aime(tmp_path, KEYS))


# ---- V-D4RL


def test_dreamer_npz_with_either_kind_of_observation(tmp_path):
    np.savez(tmp_path / "a-6.npz", **dreamer(episode(5), is_first=np.arange(6) == 0))
    np.savez(tmp_path / "b-4.npz", **episode(3, first=7))
    one, two = convert.read_vd4rl(tmp_path, KEYS)
    check(one, 5)
    check(two, 3, first=7)
    assert (one.source, two.source) == ("a-6.npz", "b-4.npz")


STEP_TYPE = [0, 1, 1, 1, 1, 2]


@pytest.mark.parametrize(
    "flags",
    [
        {"step_type": STEP_TYPE},
        {"step_type": np.array(STEP_TYPE)[:, None]},
        {"is_first": [True] + 5 * [False], "discount": 6 * [1.0]},
        {"is_last": 5 * [False] + [True]},
        {"discount": 5 * [1.0] + [0.0]},
    ],
    ids=["step_type", "step_type_column", "is_first", "is_last", "discount"],
)
def test_hdf5_splits_episodes(tmp_path, flags):
    flags = {key: np.asarray(value) for key, value in flags.items()}
    episodes = [dreamer(episode(5, first), **flags) for first in (0, 100, 200)]
    write_hdf5(tmp_path / "0.hdf5", joined(*episodes))
    trajectories = list(convert.read_vd4rl(tmp_path, KEYS))
    assert [t.source for t in trajectories] == ["0.hdf5:0", "0.hdf5:6", "0.hdf5:12"]
    for trajectory, first in zip(trajectories, (0, 100, 200), strict=True):
        check(trajectory, 5, first)


def test_hdf5_episode_cut_between_files_becomes_two_aligned_pieces(tmp_path):
    whole = joined(*[dreamer(episode(5, f), step_type=np.array(STEP_TYPE)) for f in (0, 100)])
    write_hdf5(tmp_path / "0.hdf5", {key: array[:9] for key, array in whole.items()})
    write_hdf5(tmp_path / "1.hdf5", {key: array[9:] for key, array in whole.items()})
    trajectories = list(convert.read_vd4rl(tmp_path, KEYS))
    assert [trajectory.length for trajectory in trajectories] == [5, 2, 2]
    for trajectory, first in zip(trajectories, (0, 100, 103), strict=True):
        check(trajectory, trajectory.length, first)


def test_hdf5_without_marks_or_without_h5py(tmp_path, monkeypatch):
    write_hdf5(tmp_path / "0.hdf5", dreamer(episode(5)))
    with pytest.raises(InputError, match="needs one of is_first, step_type"):
        list(convert.read_vd4rl(tmp_path, KEYS))
    write_hdf5(tmp_path / "0.hdf5", dreamer(episode(5), discount=np.ones(6)))  # time limits alone
    with pytest.raises(InputError, match="its discount is nowhere 0"):
        list(convert.read_vd4rl(tmp_path, KEYS))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="the extra 'hdf5'"):
        list(convert.read_vd4rl(tmp_path, KEYS))


def test_published_vd4rl_holds_pixels_only(tmp_path):
    rows = {"action": np.zeros((6, 2)), "reward": np.zeros(6), "discount": np.ones(6)}
    np.savez(tmp_path / "0.npz", image=np.zeros((6, 4, 4, 3), np.uint8), **rows)
    with pytest.raises(InputError, match=r"0\.npz: holds pixels only"):
        list(convert.read_vd4rl(tmp_path, KEYS))
    (tmp_path / "0.npz").unlink()
    write_hdf5(tmp_path / "0.hdf5", {"observation": np.zeros((6, 3, 4, 4), np.uint8), **rows})
    with pytest.raises(InputError, match=r"0\.hdf5: holds pixels only"):
        list(convert.read_vd4rl(tmp_path, ()))


# ---- bad files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": None}, "lacks height; it has"),
        ({"reward": None}, "has no 'reward'"),
        ({"height": np.zeros(5)}, r"'height' has shape \(5,\); one row for each of 6"),
        ({"pre_action": np.zeros((7, 2))}, r"'pre_action' has shape \(7, 2\)"),
        ({"height": np.array(["x"] * 6)}, "cannot be read"),
        ({"height": np.array([None] * 6)}, "cannot be read"),
    ],
)
def test_bad_arrays(tmp_path, change, message):
    rows = {k: v for k, v in {**aime(episode(5)), **change}.items() if v is not None}
    np.savez(tmp_path / "0.npz", **rows)
    with pytest.raises(InputError, match=rf"0\.npz: .*{message}"):
        list(convert.read_aime(tmp_path, KEYS))


def test_one_row_is_no_trajectory(tmp_path):
    np.savez(tmp_path / "0.npz", **aime(episode(0)))
    with pytest.raises(InputError, match="has 1 rows; a trajectory needs at least 2"):
        list(convert.read_aime(tmp_path, KEYS))


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "text"])
@pytest.mark.parametrize("suffix", [".npz", ".hdf5"])
def test_damaged_files(tmp_path, damage, suffix):
    path = tmp_path / f"0{suffix}"
    rows = dreamer(episode(500), step_type=np.array([0] + [1] * 500))
    if suffix == ".npz":
        np.savez_compressed(path, **rows)
    else:
        write_hdf5(path, rows)
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        needle = b"observation.npy" if suffix == ".npz" else b"\x78\x5e"  # a zlib stream of hdf5
        at = content.find(needle)
        content[at + 60 : at + 70] = bytes(byte ^ 0xFF for byte in content[at + 60 : at + 70])
    path.write_bytes(
        {"empty": b"", "truncated": content[: len(content) // 2], "text": b"hello"}.get(
            damage, content
        )
    )
    with pytest.raises(InputError, match=rf"0\{suffix}: cannot be read"):
        list(convert.read_vd4rl(tmp_path, KEYS))


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match="no directory"):
        list(convert.read_aime(tmp_path / "nowhere", KEYS))
    with pytest.raises(InputError, match=r"no \.npz files in it"):
        list(convert.read_aime(tmp_path, KEYS))


# ---- the command


def walker(tmp_path, count=3, **change):
    rng = np.random.default_rng(0)
    source = tmp_path / "source"
    source.mkdir()
    for number in range(count):
        rows = {
            "velocity": rng.normal(size=(6, 9)),
            "orientations": rng.normal(size=(6, 14)),
            "height": rng.normal(size=(6, 1)),
            "reward": np.array([[0.0], [1], [1], [1], [1], [number]]),
            "pre_action": np.concatenate([np.zeros((1, 6)), rng.uniform(-1, 1, (5, 6))]),
        }
        if number == 1:
            del rows["pre_action"]
        np.savez(source / f"{number}.npz", **{**rows, **change})
    return ["convert", "--format=aime", f"--source={source}", f"--data_dir={tmp_path}/data",
            "--name=walker_walk/own"]  # fmt: skip


def test_command_writes_a_data_set(tmp_path, capsys):
    argv = walker(tmp_path)
    assert command.main([*argv, "--task=walker_walk"]) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert "3 trajectories (2 labelled), 15 steps, return mean 5.0" in out
    dataset = shards.read_dataset(tmp_path / "data", "walker_walk/own")
    assert dataset.metadata["task"] == "walker_walk"
    assert dataset.metadata["observation_keys"] == ["orientations", "height", "velocity"]
    assert [t.action is not None for t in dataset.trajectories] == [True, False, True]
    rows = np.load(tmp_path / "source" / "2.npz")
    expected = np.concatenate([rows[key] for key in KEYS], axis=1).astype(np.float32)
    np.testing.assert_array_equal(dataset.trajectories[2].observation, expected)

    assert command.main([*argv, "--task=walker_walk"]) == 2
    assert "'walker_walk/own' exists" in capsys.readouterr().err


def test_keys_take_the_place_of_the_task(tmp_path):
    assert command.main([*walker(tmp_path), "--keys=height,velocity"]) == 0
    (trajectory, *_) = shards.read_dataset(tmp_path / "data", "walker_walk/own").trajectories
    assert trajectory.observation.shape == (6, 10)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--task=cheetah_run"], "lacks position"),
        (["--task=walker_wlk"], "did you mean 'walker_walk'"),
        (["--task=walker_walk", "--keys=height"], "observation has 1 numbers a step, not 24"),
        (["--task=hopper_stand", "--keys=orientations,height"], "action has 6 numbers a step, not"),
        ([], "lacks observation; it has"),
        (["--format=mat"], "one of <aime|vd4rl|lapo>"),
        (["--frmat=aime"], "'frmat'. Did you mean: format ?"),
        (["--name=own"], "must look like NAME/CONFIG"),
        (["--name="], "--format, --source and --name are required"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_usage_is_one_line(tmp_path, capsys, extra, message):
    assert command.main([*walker(tmp_path), *extra]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "data").exists()


def test_bad_values_name_the_file_and_the_step(tmp_path, capsys):
    height = np.zeros((6, 1))
    height[4] = np.nan
    assert command.main([*walker(tmp_path, height=height), "--task=walker_walk"]) == 2
    assert "trajectory 0 (0.npz), step 4: observation holds NaN" in capsys.readouterr().err


def test_help_is_quick_and_formats_agree():
    assert set(command.FORMATS) == {*convert.READERS, "lapo"}
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "experiments.convert", "--help"],
        capture_output=True, text=True, timeout=5, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0
    assert "--source" in done.stdout
