"""Checkpoints: exact, checked to the last bit, whole after a kill at any instant."""

import errno
import multiprocessing
import os
import random
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lawm_jax.checkpoint import Checkpoints, state_digest
from lawm_jax.errors import InputError, TrainingError


def make_state(step):
    """A train state of every kind of leaf, whose values tell its step."""
    return {
        "params": {"kernel": jnp.full((64, 32), step, jnp.float32), "bias": jnp.arange(8.0) + step},
        "half": jnp.full(3, step, jnp.bfloat16),
        "seed": jnp.uint32(2**32 - 1 - step),
        "step": jnp.int32(step),
        "empty": (),
    }


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.map(lambda x: x.dtype, a) == jax.tree.map(lambda x: x.dtype, b)


def saved(directory, *steps):
    checkpoints = Checkpoints(directory)
    for step in steps:
        checkpoints.save(step, make_state(step), {"seen": [step, 1.5], "name": "x"})
    checkpoints.close()


def restored(directory, template=None):
    checkpoints = Checkpoints(directory)
    try:
        return checkpoints.restore(make_state(0) if template is None else template)
    finally:
        checkpoints.close()


def test_nothing_to_restore(tmp_path):
    assert restored(tmp_path / "checkpoints") is None


def test_round_trip_and_the_latest_two_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 30)
    state, extra, step = restored(tmp_path)
    assert step == 30
    assert extra == {"seen": [30, 1.5], "name": "x"}
    assert_same(state, make_state(30))
    assert state_digest(state) == state_digest(make_state(30))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "30"]


def test_a_bucket_holds_checkpoints_as_a_folder_does(gcs):
    saved("gs://bucket/run/checkpoints", 1, 2, 30)
    state, extra, step = restored("gs://bucket/run/checkpoints")
    assert (step, extra) == (30, {"seen": [30, 1.5], "name": "x"})
    assert_same(state, make_state(30))
    assert {name.split("/")[2] for name in gcs.names("run/checkpoints/")} == {"2", "30"}
    for name in gcs.names("run/checkpoints/30/"):  # as a kill in mid-save leaves it
        if name.endswith("30/commit_success.txt"):
            del gcs.objects[name]
    assert restored("gs://bucket/run/checkpoints").step == 2
    assert gcs.names("run/checkpoints/30/") == []


def test_a_bucket_that_refuses_a_checkpoint_is_one_line(gcs):
    checkpoints = Checkpoints("gs://bucket/run/checkpoints")
    gcs.refuse = 403
    with pytest.raises(TrainingError, match="step 1: no checkpoint in gs://bucket/run/checkpoints"):
        checkpoints.save(1, make_state(1), {})


def test_saving_the_same_step_again_changes_nothing(tmp_path):
    saved(tmp_path, 1, 2, 2)
    assert restored(tmp_path).step == 2


def test_a_refused_save_is_an_error(tmp_path):
    saved(tmp_path, 5)
    with pytest.raises(TrainingError, match=r"step 3: .* refused; the newest there is step 5"):
        saved(tmp_path, 3)


def test_the_digest_covers_path_dtype_shape_and_bytes():
    digests = {
        state_digest(tree)
        for tree in (
            {"a": jnp.zeros(4)},
            {"b": jnp.zeros(4)},
            {"a": jnp.zeros(4, jnp.int32)},
            {"a": jnp.zeros((2, 2))},
            {"a": jnp.zeros(4).at[2].set(-0.0)},
            {"a": jnp.zeros(2), "b": jnp.zeros(2)},
        )
    }
    assert len(digests) == 6
    assert state_digest({"a": np.zeros(4, np.float32)}) in digests


def flip(path, where):
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 0x10
    path.write_bytes(data)


def test_every_flipped_bit_is_found_or_harmless(tmp_path):
    """Flips a bit in every file of the newest checkpoint, at several places, one at a time."""
    saved(tmp_path / "good", 1, 2)
    found = set()
    for file in sorted(path for path in (tmp_path / "good" / "2").rglob("*") if path.is_file()):
        if file.stat().st_size == 0:
            continue
        for where in (0.02, 0.5, 0.95):
            damaged = tmp_path / "damaged"
            shutil.copytree(tmp_path / "good", damaged)
            flip(damaged / file.relative_to(tmp_path / "good"), where)
            try:
                result = restored(damaged)
            except InputError as error:
                found.add(file.relative_to(tmp_path / "good" / "2").parts[0])
                assert "checkpoint step 2 in" in str(error)
                assert f"delete the folder {damaged / '2'} to continue from step 1" in str(error)
            else:  # a file that Orbax keeps for itself
                assert result.step == 2
                assert_same(result.state, make_state(2))
                assert result.extra == {"seen": [2, 1.5], "name": "x"}
            shutil.rmtree(damaged)
    assert found == {"meta", "state"}


def test_the_advice_for_a_damaged_checkpoint_works(tmp_path):
    saved(tmp_path, 1, 2)
    largest = max((tmp_path / "2" / "state").rglob("d/*"), key=lambda path: path.stat().st_size)
    flip(largest, 0.5)
    with pytest.raises(InputError, match=r"step 2 .* damaged .* continue from step 1"):
        restored(tmp_path)
    shutil.rmtree(tmp_path / "2")
    assert_same(restored(tmp_path).state, make_state(1))


def test_a_file_in_the_place_of_checkpoints(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(InputError, match="checkpoints is a file, where checkpoints should be"):
        Checkpoints(tmp_path / "checkpoints")


def test_the_only_checkpoint_damaged(tmp_path):
    saved(tmp_path, 1)
    for path in (tmp_path / "1" / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"step 1 .* damaged .* to start from the beginning"):
        restored(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"half": jnp.zeros(4, jnp.bfloat16)}, r"it has half bfloat16\[3\], this run has half"),
        ({"step": jnp.float32(0)}, r"it has step int32\[\], this run has step float32\[\]"),
        ({"extra": jnp.zeros(1)}, r"it has half bfloat16\[3\], this run has extra"),
        ({"zzz": jnp.zeros(1)}, "it has 5 arrays, this run has 6"),
    ],
)
def test_a_checkpoint_of_another_structure(tmp_path, change, message):
    saved(tmp_path, 1)
    with pytest.raises(InputError, match=message):
        restored(tmp_path, make_state(0) | change)


def test_restored_arrays_are_placed_like_the_template(tmp_path):
    saved(tmp_path, 1)
    sharding = NamedSharding(Mesh(jax.devices(), "data"), PartitionSpec())
    template = jax.device_put(make_state(0), sharding)
    state = restored(tmp_path, template).state
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(state))


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def no_space(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", no_space)
    with pytest.raises(TrainingError, match=r"step 1: no space left .*0.0 MB needed, .* MB free"):
        checkpoints.save(1, make_state(1), {})


def save_forever(directory, first):
    checkpoints = Checkpoints(directory)
    for step in range(first, 10**6):
        checkpoints.save(step, make_state(step), {"step": step})


def test_a_kill_during_saves_leaves_a_whole_checkpoint(tmp_path):
    """SIGKILL at random moments: what is restored is exact, never older than the last but one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lawm_jax.checkpoint"])
    rng = random.Random(0)
    first = 0
    for _ in range(4):
        process = context.Process(target=save_forever, args=(tmp_path, first))
        process.start()
        while not (tmp_path / str(first)).exists():
            time.sleep(0.005)
            assert process.is_alive()
        time.sleep(rng.uniform(0.0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        begun = max(int(path.name.split(".")[0]) for path in tmp_path.iterdir())

        state, extra, step = restored(tmp_path)
        assert begun - 1 <= step <= begun
        assert extra == {"step": step}
        assert_same(state, make_state(step))
        deadline = time.monotonic() + 30.0  # Orbax removes leftovers in the background
        while not all(path.name.isdigit() for path in tmp_path.iterdir()):
            assert time.monotonic() < deadline, "leftovers of the killed save are still there"
            time.sleep(0.01)
        first = step + 1
