import numpy as np
import pytest

from experiments import convert as command
from lawm_jax.data.convert_procgen import convert_lapo, read_lapo
from lawm_jax.data.frame_shards import read_frames
from lawm_jax.errors import InputError

LENGTHS = (4, 1, 5, 3)  # rows of the episodes in a chunk; the last is cut by the chunk's end


def chunk(seed, marked, **changes):
    """A chunk whose frames jump between episodes, and whose other arrays count the rows."""
    rng = np.random.default_rng(seed)
    rows = sum(LENGTHS)
    episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    first = np.append(True, episode[1:] != episode[:-1])
    last = np.append(first[1:], False)
    scenes = rng.integers(0, 256, (len(LENGTHS), 64, 64, 3)).astype(np.uint8)
    obs = scenes[episode]
    obs[:, :3] = rng.integers(0, 256, (rows, 3, 64, 3))
    t = np.arange(rows)
    arrays = {
        "obs": obs,
        "ta": t % 15,
        "done": {"last": last, "first": first}[marked],
        "rewards": t / 10,
        "ep_returns": 100.0 * episode + seed,
        "values": t + 0.5,
        "logprobs": -t / 4,
    }
    return {key: value for key, value in {**arrays, **changes}.items() if value is not None}


def write(folder, marked="last", **changes):
    for split, seeds in (("train", (0, 1)), ("test", (2,))):
        (folder / split).mkdir(parents=True)
        for seed in seeds:
            path = folder / split / f"{9 + seed}.npz"
            np.savez_compressed(path, **chunk(seed, marked, **changes))
    return folder


@pytest.mark.parametrize("done", ["last", "first"])
def test_chunks_become_a_data_set(tmp_path, done):
    source = write(tmp_path / "bigfish", done)
    convert_lapo(source, tmp_path, "bigfish/published", "bigfish")
    train = read_frames(tmp_path, "bigfish/published", "train", game="bigfish")
    one, two = chunk(0, done), chunk(1, done)
    keep = np.r_[0:4, 5:13]  # an episode of one row has no transition
    np.testing.assert_array_equal(
        train.frames.observation, np.concatenate([one["obs"][keep], two["obs"][keep]])
    )
    np.testing.assert_array_equal(train.frames.episode, np.repeat(np.arange(6), (4, 5, 3) * 2))
    half = [0, 1, 2, -1, 5, 6, 7, 8, -1, 10, 11, -1]
    np.testing.assert_array_equal(train.frames.action, half * 2)
    acts = np.array(half) >= 0
    np.testing.assert_allclose(train.frames.reward[:12], np.where(acts, keep / 10, 0), rtol=1e-6)
    np.testing.assert_array_equal(train.notes.value[:12], np.where(acts, keep + 0.5, 0))
    np.testing.assert_array_equal(train.notes.log_prob[:12], np.where(acts, -keep / 4, 0))
    returns = np.repeat([0, 200, 300], (4, 5, 3))
    np.testing.assert_array_equal(train.notes.episode_return, np.append(returns, returns + 1))
    assert train.metadata["kind"] == "converted"
    assert len(read_frames(tmp_path, "bigfish/published", "test").frames.action) == 12


def test_missing_log_probabilities_and_returns(tmp_path):
    write(tmp_path, logprobs=None, ep_returns=np.full(13, np.nan))
    first = next(read_lapo(tmp_path / "train"))
    assert not first.log_prob.any()
    assert first.episode_return == pytest.approx(0 + 0.1 + 0.2 + 0.3)


def test_the_meaning_of_done_can_be_told_or_must_be(tmp_path):
    still = np.zeros((13, 64, 64, 3), np.uint8)
    write(tmp_path, obs=still)
    with pytest.raises(InputError, match=r"9\.npz: cannot tell .*--done=first or --done=last"):
        list(read_lapo(tmp_path / "train"))
    lengths = {
        done: [len(episode.observation) for episode in read_lapo(tmp_path / "test", done)]
        for done in ("last", "first")
    }
    assert lengths == {"last": [4, 5, 3], "first": [3, 5, 4]}
    at_the_end = np.arange(13) == 12
    write(tmp_path / "end", done=at_the_end)  # row 12 may be of the next episode: left out
    assert [len(episode.action) for episode in read_lapo(tmp_path / "end" / "test")] == [11]
    with pytest.raises(InputError, match="done: must be one of auto, last, first"):
        list(read_lapo(tmp_path / "train", "never"))


def test_done_means_the_same_in_all_files(tmp_path):
    """A file that does not tell is read as those that do; two that disagree are refused."""
    write(tmp_path, "first")
    clear = [len(episode.observation) for episode in read_lapo(tmp_path / "test")]
    still = chunk(3, "first", obs=np.zeros((13, 64, 64, 3), np.uint8))
    np.savez_compressed(tmp_path / "test" / "10.npz", **still)
    assert [len(x.observation) for x in read_lapo(tmp_path / "test")] == [*clear, *clear]
    np.savez_compressed(tmp_path / "test" / "12.npz", **chunk(4, "last"))
    with pytest.raises(InputError, match=r"12\.npz: done marks .* last row, in .*11\.npz"):
        list(read_lapo(tmp_path / "test"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ta": None}, "has no 'ta'; it has .*values"),
        ({"rewards": np.zeros(12)}, r"'rewards' has shape \(12,\); one number for each of 13"),
        ({"obs": np.zeros((13, 3, 64, 64), np.uint8)}, r"not uint8 \(13, 3, 64, 64\)"),
        ({"ta": np.arange(13) + 5}, "actions must be whole numbers"),
        ({"values": np.full(13, np.nan)}, "value holds NaN"),
    ],
)
def test_wrong_chunks_are_named_and_nothing_is_written(tmp_path, changes, message):
    source = write(tmp_path / "maze", **changes)
    with pytest.raises(InputError, match=message):
        convert_lapo(source, tmp_path / "data", "maze/published", "maze")
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]


def test_damaged_and_missing_files(tmp_path):
    source = write(tmp_path / "maze")
    path = source / "test" / "11.npz"
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", bytes(reversed(content))):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"11\.npz: cannot be read"):
            convert_lapo(source, tmp_path / "data", "maze/published", "maze")
    path.unlink()
    with pytest.raises(InputError, match=r"test: no \.npz files"):
        convert_lapo(source, tmp_path / "data", "maze/published", "maze")
    with pytest.raises(InputError, match="no directory"):
        convert_lapo(tmp_path / "nowhere", tmp_path / "data", "maze/published", "maze")


def test_command_line(tmp_path, capsys):
    source = write(tmp_path / "bigfish")
    arguments = [
        "convert", "--format=lapo", f"--source={source}", f"--data_dir={tmp_path}",
        "--name=bigfish/published",
    ]  # fmt: skip
    assert command.main(arguments) == 2
    assert "--task" in capsys.readouterr().err
    assert command.main([*arguments, "--task=bigfish"]) == 0
    assert "bigfish/published: 24 frames of 6 episodes" in capsys.readouterr().out
    assert command.main([*arguments, "--task=bigfish"]) == 2
    assert "exists" in capsys.readouterr().err
