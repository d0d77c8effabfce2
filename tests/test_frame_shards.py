import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
import zstandard

from lawm_jax.data import frame_shards, records
from lawm_jax.data.frame_shards import Episode, read_frames, write_frames
from lawm_jax.data.frames import FrameArrays
from lawm_jax.errors import InputError, TrainingError

NAME = "miner/scripted_80"
LENGTHS = (30, 1, 12, 33)  # transitions


def make(lengths=LENGTHS, seed=0):
    """Episodes of a still background on which some pixels change, as in a game."""
    rng = np.random.default_rng(seed)
    episodes = []
    for length in lengths:
        background = rng.integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
        observation = np.repeat(background, length + 1, axis=0)
        observation[:, :2] = rng.integers(0, 256, (length + 1, 2, 64, 3))
        reward = rng.normal(size=length)
        episodes.append(
            Episode(
                observation,
                rng.integers(0, 15, length),
                reward,
                rng.normal(size=length),
                rng.normal(size=length),
                reward.sum(),
            )
        )
    return episodes


def rows(episodes):
    """The rows that the episodes must become, put together another way than in the program."""
    frames = {key: [] for key in (*FrameArrays._fields, *frame_shards.Notes._fields)}
    for index, episode in enumerate(episodes):
        for t, observation in enumerate(episode.observation):
            last = t == len(episode.action)
            frames["observation"].append(observation)
            frames["action"].append(-1 if last else episode.action[t])
            for key in ("reward", "value", "log_prob"):
                frames[key].append(0 if last else np.float32(getattr(episode, key)[t]))
            frames["episode"].append(index)
            frames["episode_return"].append(np.float32(episode.episode_return))
    return {key: np.array(value) for key, value in frames.items()}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A data set of four and two episodes in chunks of 16 rows."""
    monkeypatch.setattr(frame_shards, "CHUNK", 16)
    metadata = {"game": "miner", "kind": "scripted"}
    return Path(write_frames(tmp_path, NAME, make(), make((5, 9), 1), metadata))


def refusal(directory, split="train", **options):
    with pytest.raises(InputError) as caught:
        read_frames(directory.parents[2], NAME, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("chunk", [1, 16, 80, 256])
def test_round_trip_is_bit_exact_however_it_is_cut(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(frame_shards, "CHUNK", chunk)
    monkeypatch.setattr(frame_shards, "RECORDS_PER_SHARD", 3)
    write_frames(tmp_path, NAME, iter(make()), make((5, 9), 1), {"game": "miner"})
    fingerprints = set()
    for split, episodes in (("train", make()), ("test", make((5, 9), 1))):
        dataset = read_frames(tmp_path, NAME, split, game="miner")
        expected = rows(episodes)
        for array, key in zip((*dataset.frames, *dataset.notes), expected, strict=True):
            np.testing.assert_array_equal(array, expected[key], err_msg=key)
        dtypes = [array.dtype for array in dataset.frames]
        assert dtypes == [np.uint8, np.int32, np.float32, np.int32]
        assert dataset.metadata == {"game": "miner"} and dataset.split == split
        fingerprints.add(dataset.statistics.pop("fingerprint"))
        returns = [episode.episode_return for episode in episodes]
        assert dataset.statistics == {
            "frames": len(expected["action"]),
            "episodes": len(episodes),
            "mean_return": pytest.approx(np.mean(returns)),
        }
    assert len(fingerprints) == 2


def test_the_fingerprint_is_of_the_content_alone(tmp_path, monkeypatch):
    write_frames(tmp_path / "a", NAME, make(), make(), {})
    monkeypatch.setattr(frame_shards, "CHUNK", 7)
    changed = make()
    changed[2].observation[3, 4, 5, 1] ^= 1
    write_frames(tmp_path / "b", NAME, make(), changed, {})

    def fingerprint(folder, split):
        return read_frames(tmp_path / folder, NAME, split).statistics["fingerprint"]

    assert fingerprint("a", "train") == fingerprint("a", "test") == fingerprint("b", "train")
    assert fingerprint("b", "test") != fingerprint("b", "train")


def test_part_of_a_split_ends_where_it_is_cut(written):
    whole = read_frames(written.parents[2], NAME, "train")
    part = read_frames(written.parents[2], NAME, "train", max_frames=20)
    assert len(part.frames.observation) == len(part.notes.value) == 20
    pairs = zip((*part.frames, *part.notes), (*whole.frames, *whole.notes), strict=True)
    for mine, theirs in pairs:
        np.testing.assert_array_equal(mine[:19], theirs[:19])
    assert whole.frames.action[19] != -1 and whole.frames.reward[19] != 0
    assert part.frames.action[19] == -1 and part.frames.reward[19] == 0
    np.testing.assert_array_equal(part.frames.observation, whole.frames.observation[:20])
    more = read_frames(written.parents[2], NAME, "train", max_frames=1000)
    assert len(more.frames.action) == len(whole.frames.action) == 80
    assert "at least 1" in refusal(written, max_frames=0)
    assert whole.fingerprint == more.fingerprint == whole.statistics["fingerprint"]


def test_the_fingerprint_of_a_part_is_of_what_was_read(tmp_path):
    """Other data have another fingerprint even where a split is not read whole."""
    for folder, seed in (("a", 0), ("b", 1)):
        write_frames(tmp_path / folder, NAME, make(seed=seed), make(), {})
    parts = [read_frames(tmp_path / x, NAME, "train", max_frames=5).fingerprint for x in "aab"]
    assert parts[0] == parts[1] != parts[2]


def test_any_tfds_program_reads_it(written):
    builder = tfds.builder_from_directory(written)
    assert builder.info.splits["train"].num_examples == 5
    assert builder.info.splits["test"].num_examples == 1
    record = builder.as_data_source("train")[1]
    np.testing.assert_array_equal(record["action"], rows(make())["action"][16:32])


def test_metadata_may_grow_while_the_episodes_are_made(tmp_path):
    metadata = {"game": "maze"}

    def train():
        yield from make()
        metadata["stuck"] = 3

    write_frames(tmp_path, NAME, train(), make(), metadata)
    assert read_frames(tmp_path, NAME, "test").metadata == {"game": "maze", "stuck": 3}


@pytest.mark.parametrize("record", [0, 2, 4])
def test_a_flipped_byte_names_file_and_record(written, record):
    shard = next(written.glob("*train*array_record*"))
    content = bytearray(shard.read_bytes())
    content[_middle_of(content, record)] ^= 0x10
    shard.write_bytes(content)
    message = refusal(written)
    assert message.startswith(f"{shard}: record {record} of 5 cannot be read")
    assert "make the data set again" in message


def _middle_of(content, record):
    """Inside the compressed frames of a record, told from ArrayRecord's own by their size."""
    starts = [match.start() for match in re.finditer(rb"\x28\xb5\x2f\xfd", content)]
    sizes = [zstandard.frame_content_size(bytes(content[at : at + 18])) for at in starts]
    return [at for at, size in zip(starts, sizes, strict=True) if size == 16 * 12288][record] + 2000


@pytest.mark.parametrize("size", [0, 100, 30_000, -5])
def test_a_truncated_shard(written, size):
    shard = next(written.glob("*train*array_record*"))
    shard.write_bytes(shard.read_bytes()[:size])
    message = refusal(written)
    assert message.startswith(f"{shard}: record ") and "truncated" in message
    assert len(read_frames(written.parents[2], NAME, "test").frames.action) == 16


def test_what_cannot_be_read_is_said_in_one_line(written):
    assert "is of the game miner, not of maze" in refusal(written, game="maze")
    assert "has no split 'validation'; it has train, test" in refusal(written, "validation")
    shard = next(written.glob("*train*array_record*"))
    shard.rename(written / "moved")
    assert f"missing shard {shard.name}" in refusal(written)
    (written / "moved").rename(shard)

    path = written / "metadata.json"
    content = json.loads(path.read_text())
    content["splits"]["train"]["fingerprint"] = "0" * 64
    path.write_text(json.dumps(content))
    assert "fingerprint differs" in refusal(written)
    content["splits"]["train"]["frames"] = 90
    path.write_text(json.dumps(content))
    assert "fingerprint differs" in refusal(written)
    path.write_text(json.dumps({"metadata": {}, "fingerprint": "0" * 64}))  # of trajectories
    assert "has no 'splits': the data set is another experiment's" in refusal(written)
    path.write_text("{")
    assert "metadata.json is missing or damaged" in refusal(written)
    with pytest.raises(InputError, match=f"no data set 'maze/a' .* it has {NAME}"):
        read_frames(written.parents[2], "maze/a", "train")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda e: e._replace(action=e.action[:-1]), r"action has shape \(11,\) where 13 frames"),
        (lambda e: e._replace(action=e.action + 3), r"whole numbers in 0 \.\. 14"),
        (lambda e: e._replace(action=e.action * 1.0), r"whole numbers in 0 \.\. 14"),
        (lambda e: e._replace(reward=e.reward * np.nan), "reward holds NaN or Inf"),
        (lambda e: e._replace(episode_return=np.inf), "episode_return holds NaN or Inf"),
        (lambda e: e._replace(observation=e.observation / 255), "frames must be uint8"),
        (lambda e: e._replace(observation=e.observation[:, :32]), r"not uint8 \(13, 32, 64, 3\)"),
        (lambda e: e._replace(observation=e.observation[:1]), "a transition needs 2"),
    ],
)
def test_a_wrong_episode_is_named_and_nothing_is_written(tmp_path, change, message):
    bad = make()
    bad[2] = change(bad[2])
    with pytest.raises(InputError, match=rf"{NAME}, test: episode 2: .*{message}"):
        write_frames(tmp_path, NAME, make(), bad, {})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    write_frames(tmp_path, NAME, make(), make(), {})  # and can be done again


def test_frames_that_do_not_fit_into_memory_are_refused(written, monkeypatch):
    monkeypatch.setattr(frame_shards, "_free_memory", lambda: 10 * 64 * 64 * 3)
    assert len(read_frames(written.parents[2], NAME, "train", max_frames=10).frames.action) == 10
    message = refusal(written, max_frames=11)
    assert message.endswith(
        "11 frames take 0.0 GB of memory, of which 0.0 GB are free; lower --config.data.max_frames"
    )
    monkeypatch.setattr(frame_shards, "_free_memory", lambda: None)
    read_frames(written.parents[2], NAME, "train")


def test_nothing_is_overwritten_and_no_split_is_empty(written, tmp_path):
    with pytest.raises(InputError, match=r"scripted_80/1\.0\.0 exists"):
        write_frames(tmp_path, NAME, make(), make(), {})
    with pytest.raises(InputError, match="train: holds no episodes"):
        write_frames(tmp_path, "miner/empty", [], make(), {})
    with pytest.raises(InputError, match="cannot be written as JSON"):
        write_frames(tmp_path, "miner/other", make(), make(), {"a": np.zeros(2)})


def test_errors_of_the_collection_pass_through(tmp_path):
    def failing(error):
        yield from make()
        raise error

    with pytest.raises(TrainingError, match="^simulator$"):
        write_frames(tmp_path, NAME, failing(TrainingError("simulator")), make(), {})
    with pytest.raises(TrainingError, match="could not be written to .* No space"):
        write_frames(tmp_path, NAME, failing(OSError(28, "No space left")), make(), {})
    assert not records.dataset_directory(tmp_path, NAME).exists()


def test_a_bucket_holds_frames_as_a_folder_does(gcs, tmp_path):
    for data_dir in ("gs://bucket/data", tmp_path):
        write_frames(data_dir, NAME, make(), make((5, 9), 1), {"game": "miner"})
    for split in frame_shards.SPLITS:
        local, remote = (read_frames(x, NAME, split) for x in (tmp_path, "gs://bucket/data"))
        assert remote.statistics == local.statistics
        for one, other in zip((*remote.frames, *remote.notes), (*local.frames, *local.notes),
                              strict=True):
            np.testing.assert_array_equal(one, other)
