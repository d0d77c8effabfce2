import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lawm_jax.data import records, shards
from lawm_jax.data.trajectory import Trajectory, fingerprint
from lawm_jax.errors import InputError, TrainingError

NAME = "walker_walk/medium_replay_6"


def make(count=6, labelled=lambda index: True):
    rng = np.random.default_rng(0)
    return [
        Trajectory(
            rng.normal(size=(51 + i, 24)).astype(np.float32),
            rng.uniform(-1, 1, (50 + i, 6)).astype(np.float32) if labelled(i) else None,
            rng.uniform(size=50 + i).astype(np.float32),
            f"seed{i}/step7",
        )
        for i in range(count)
    ]


def same(one, two):
    arrays = zip(
        (one.observation, one.action, one.reward),
        (two.observation, two.action, two.reward),
        strict=True,
    )
    return one.source == two.source and all(
        np.array_equal(a, b) and (a is None) == (b is None) and (a is None or a.dtype == b.dtype)
        for a, b in arrays
    )


@pytest.fixture
def written(tmp_path):
    """A data set of six trajectories, and the path of its only shard."""
    directory = Path(shards.write_dataset(tmp_path, NAME, make(), {"a": 1}))
    (shard,) = directory.glob("*array_record*")
    return tmp_path, shard


def refusal(data_dir):
    with pytest.raises(InputError) as caught:
        shards.read_dataset(data_dir, NAME)
    message = str(caught.value)
    assert "\n" not in message
    return message


def run(program, *args):
    root = Path(__file__).parent.parent
    return subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, cwd=root
    )


@pytest.mark.parametrize(
    "labelled", [lambda i: True, lambda i: False, lambda i: i in (2, 5)], ids=["all", "none", "two"]
)
def test_round_trip(tmp_path, labelled):
    trajectories = make(labelled=labelled)
    metadata = {"task": "walker_walk", "returns": {"mean": 1.5}, "seeds": [0, 1], "note": None}
    assert not shards.dataset_exists(tmp_path, NAME)
    directory = shards.write_dataset(tmp_path, NAME, iter(trajectories), metadata)
    assert shards.dataset_exists(tmp_path, NAME)
    assert directory == tmp_path / "walker_walk/medium_replay_6/1.0.0"

    dataset = shards.read_dataset(tmp_path, NAME)
    assert dataset.name == NAME
    assert dataset.metadata == metadata
    assert dataset.fingerprint == fingerprint(trajectories)
    assert len(dataset.trajectories) == 6
    assert all(map(same, dataset.trajectories, trajectories))


def test_any_tfds_program_reads_it(written):
    builder = tfds.builder_from_directory(written[1].parent)
    assert builder.info.full_name == "walker_walk/medium_replay_6/1.0.0"
    source = builder.as_data_source("train")
    assert len(source) == 6
    np.testing.assert_array_equal(source[3]["action"], make()[3].action)
    unlabelled = make(labelled=lambda i: False)
    directory = shards.write_dataset(written[0], "a/unlabelled", unlabelled, {})
    features = tfds.builder_from_directory(directory).info.features
    assert set(features) == {"observation", "reward", "source"}


def test_several_shards_keep_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 15_000)
    trajectories = make(7)
    directory = Path(shards.write_dataset(tmp_path, NAME, trajectories, {}))
    files = sorted(directory.glob("*array_record*"))
    assert len(files) == 4
    assert all(map(same, shards.read_dataset(tmp_path, NAME).trajectories, trajectories))

    files[1].rename(directory / "moved")
    assert f"missing shard {files[1].name}" in refusal(tmp_path)
    files[0].rename(files[1])
    (directory / "moved").rename(files[0])
    assert "fingerprint differs" in refusal(tmp_path)  # two shards swapped


def test_writing_needs_no_tensorflow_and_prints_nothing(tmp_path):
    program = (
        "import sys, numpy as np; from lawm_jax.data import shards\n"
        "from lawm_jax.data.trajectory import Trajectory\n"
        "t = Trajectory(np.zeros((3, 2)), np.zeros((2, 1)), np.zeros(2))\n"
        "shards.write_dataset(sys.argv[1], 'a/b', [t], {})\n"
        "assert shards.read_dataset(sys.argv[1], 'a/b').trajectories[0].length == 2\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = run(program, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_refuses_to_overwrite(written):
    with pytest.raises(InputError, match=r"medium_replay_6/1\.0\.0 exists"):
        shards.write_dataset(written[0], NAME, make(2), {})
    assert len(shards.read_dataset(written[0], NAME).trajectories) == 6


def test_two_writers_at_once_leave_the_first_ones_data(tmp_path, monkeypatch):
    def other_writes_first(trajectory, action_size, original=shards._to_example):
        monkeypatch.setattr(shards, "_to_example", original)
        shards.write_dataset(tmp_path, NAME, make(2), {})
        return original(trajectory, action_size)

    monkeypatch.setattr(shards, "_to_example", other_writes_first)
    with pytest.raises(InputError, match=r"medium_replay_6/1\.0\.0 exists"):
        shards.write_dataset(tmp_path, NAME, make(), {})
    assert len(shards.read_dataset(tmp_path, NAME).trajectories) == 2
    assert len(list((tmp_path / NAME).iterdir())) == 1  # nothing temporary is left


def test_bad_trajectories_names_and_metadata_write_nothing(tmp_path):
    bad = make()
    bad[3].reward[7] = np.nan
    with pytest.raises(InputError, match=r"trajectory 3 \(seed3/step7\), step 7: reward holds NaN"):
        shards.write_dataset(tmp_path, NAME, bad, {})
    with pytest.raises(InputError, match="cannot be written as JSON"):
        shards.write_dataset(tmp_path, NAME, make(), {"array": np.zeros(2)})
    for name in ("walker_walk", "../walker/a", "a/b/c", "A b/c"):
        with pytest.raises(InputError, match="must look like NAME/CONFIG"):
            shards.write_dataset(tmp_path, name, make(), {})
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_no_data_set_and_can_be_repeated(tmp_path, monkeypatch):
    def interrupt(trajectory, action_size, original=shards._to_example):
        if trajectory.source.startswith("seed3"):
            raise KeyboardInterrupt
        return original(trajectory, action_size)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_to_example", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shards.write_dataset(tmp_path, NAME, make(), {})
    assert not shards.dataset_exists(tmp_path, NAME)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    shards.write_dataset(tmp_path, NAME, make(), {})
    assert len(shards.read_dataset(tmp_path, NAME).trajectories) == 6


def test_a_killed_write_leaves_no_data_set_and_can_be_repeated(tmp_path):
    program = (  # dies when all but the renaming is done
        "import os, signal, sys; sys.path.insert(0, 'tests')\n"
        "import test_shards; from lawm_jax.data import shards\n"
        "os.rename = os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "shards.write_dataset(sys.argv[1], test_shards.NAME, test_shards.make(), {})\n"
    )
    assert run(program, tmp_path).returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("*array_record*"))
    assert not shards.dataset_exists(tmp_path, NAME)
    assert refusal(tmp_path).endswith("it has no data sets")
    shards.write_dataset(tmp_path, NAME, make(), {})
    assert len(shards.read_dataset(tmp_path, NAME).trajectories) == 6


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("write()")])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(records.tfds.core.SequentialWriter, "add_examples", fail)
    with pytest.raises(TrainingError, match=f"{NAME} could not be written to .*: .*(space|write)"):
        shards.write_dataset(tmp_path, NAME, make(), {})


def test_missing_data_set_lists_what_there_is(written):
    with pytest.raises(InputError, match=rf"no data set 'walker_walk/expert_6'.*it has {NAME}"):
        shards.read_dataset(written[0], "walker_walk/expert_6")
    with pytest.raises(InputError, match=r"no data set .* it has no data sets"):
        shards.read_dataset(written[0] / "nowhere", NAME)


@pytest.mark.parametrize("size", [0, 10, 20_000, 65_536, -5])
def test_truncated_shard(written, size):
    data_dir, shard = written
    shard.write_bytes(shard.read_bytes()[:size])
    message = refusal(data_dir)
    assert message.startswith(f"{shard}: record ")
    assert "truncated" in message


@pytest.mark.parametrize("record", [0, 3, 5])
def test_flipped_byte_names_file_and_record(written, record):
    data_dir, shard = written
    content = bytearray(shard.read_bytes())
    used = len(content[:65_536].rstrip(b"\0"))  # records fill the first block, then padding
    content[used * (2 * record + 1) // 12] ^= 0x10
    shard.write_bytes(content)
    message = refusal(data_dir)
    assert message.startswith(f"{shard}: record {record} of 6 cannot be read")
    assert "make the data set again" in message


def test_missing_shard(written):
    data_dir, shard = written
    shard.unlink()
    assert f"missing shard {shard.name}" in refusal(data_dir)


@pytest.mark.parametrize("file", ["metadata.json", "dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [b"", b'{"a": 1', b'{"a": 1}', b"[1]", b"\xff\xfe", None])
def test_damaged_description(written, file, content):
    data_dir, shard = written
    path = shard.parent / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    message = refusal(data_dir)
    assert str(shard.parent) in message and file in message
    assert "missing or damaged" in message


def test_content_that_passes_all_checksums_but_is_not_what_was_written(written):
    data_dir, shard = written
    path = shard.parent / "metadata.json"
    content = json.loads(path.read_text())
    content["fingerprint"] = "0" * 64
    path.write_text(json.dumps(content))
    assert "fingerprint differs" in refusal(data_dir)


# ---- in a bucket


def test_a_bucket_holds_a_data_set_as_a_folder_does(gcs):
    trajectories = make(labelled=lambda i: i in (2, 5))
    assert not shards.dataset_exists("gs://bucket/data", NAME)
    directory = shards.write_dataset("gs://bucket/data", NAME, trajectories, {"a": 1})
    assert str(directory) == f"gs://bucket/data/{NAME}/1.0.0"
    assert shards.dataset_exists("gs://bucket/data", NAME)
    dataset = shards.read_dataset("gs://bucket/data", NAME)
    assert (dataset.metadata, dataset.fingerprint) == ({"a": 1}, fingerprint(trajectories))
    assert all(map(same, dataset.trajectories, trajectories))
    with pytest.raises(InputError, match="exists: choose another name"):
        shards.write_dataset("gs://bucket/data", NAME, trajectories, {})
    with pytest.raises(InputError, match=f"no data set 'a/b' in gs://bucket/data; it has {NAME}"):
        shards.read_dataset("gs://bucket/data", "a/b")


def test_an_upload_that_was_killed_is_no_data_set(gcs):
    directory = shards.write_dataset("gs://bucket/data", NAME, make(), {})
    written = list(gcs.objects)
    assert written[-1] == f"data/{NAME}/1.0.0/dataset_info.json"  # in the order of the uploads
    del gcs.objects[written[-1]]
    assert not shards.dataset_exists("gs://bucket/data", NAME)
    assert shards.write_dataset("gs://bucket/data", NAME, make(), {}) == directory
    assert len(shards.read_dataset("gs://bucket/data", NAME).trajectories) == 6


def test_a_damaged_shard_in_a_bucket_is_named_by_its_address(gcs):
    directory = shards.write_dataset("gs://bucket/data", NAME, make(), {})
    (shard,) = (name for name in gcs.objects if "array_record" in name)
    gcs.objects[shard] = gcs.objects[shard][0][:20_000], 1000
    assert refusal("gs://bucket/data").startswith(f"{directory}/{Path(shard).name}: record ")
