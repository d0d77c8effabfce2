"""Whole files of a gs:// address, and one clear line for what cannot be reached."""

import sys
import time

import pytest

from lawm_jax import bucket
from lawm_jax.errors import InputError, TrainingError


def test_files_come_and_go(gcs):
    assert bucket.names("gs://bucket/run") == []
    for name in ("run/b", "run/a/c", "run2/d"):
        bucket.write(f"gs://bucket/{name}", name.encode())
    assert bucket.names("gs://bucket/run") == bucket.names("gs://bucket/run/") == ["a/c", "b"]
    assert bucket.read("gs://bucket/run/a/c") == b"run/a/c"
    bucket.write("gs://bucket/run/b", b"")
    assert bucket.read("gs://bucket/run/b") == b""
    assert bucket.exists("gs://bucket/run/b")
    for _ in range(2):  # a second time there is nothing to delete
        bucket.delete("gs://bucket/run/b")
        assert not bucket.exists("gs://bucket/run/b")
    with pytest.raises(FileNotFoundError):
        bucket.read("gs://bucket/run/b")
    assert not bucket.exists("gs://bucket/run/a")  # a folder


def test_what_another_process_wrote_is_seen(gcs):
    bucket.write("gs://bucket/run/a", b"1")
    assert bucket.names("gs://bucket/run") == ["a"]
    gcs.objects["run/b"] = b"2", 1000
    assert bucket.names("gs://bucket/run") == ["a", "b"]
    assert bucket.exists("gs://bucket/run/b")


def test_only_gs_is_an_address():
    assert bucket.is_address("gs://bucket/run")
    assert not bucket.is_address("runs/gs/bucket")
    bucket.connect("runs/gs/bucket")
    with pytest.raises(InputError, match="s3://bucket/run: of addresses only gs:// is known"):
        bucket.connect("s3://bucket/run")
    with pytest.raises(InputError, match="gs:///run: an address looks like gs://BUCKET/FOLDER"):
        bucket.connect("gs:///run")


@pytest.mark.parametrize(("status", "name"), [(403, "one"), (404, "two")])
def test_a_bucket_that_cannot_be_used_is_one_line_at_once(gcs, status, name):
    gcs.refuse = status
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"gs://{name} cannot be used: {status} .*credentials"):
        bucket.connect(f"gs://{name}/run")
    assert time.monotonic() - began < 5


def test_a_refusal_later_on_is_one_line(gcs):
    bucket.connect("gs://bucket/run")
    gcs.refuse = 403
    message = "gs://bucket/run/a cannot be read or written: Forbidden"
    with pytest.raises(TrainingError, match=message):
        bucket.write("gs://bucket/run/a", b"")
    with pytest.raises(TrainingError, match=message):
        bucket.read("gs://bucket/run/a")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs://other: .* is missing .*pip install -e '.\[gcs\]'"):
        bucket.connect("gs://other/run")
