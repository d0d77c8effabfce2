"""Two processes of one experiment, as on two hosts: what differs between them is said at once.

None of these runs could end by itself: a host that goes on would wait for the one that left.
"""

import counting
import pytest
from processes import start_pair

SECONDS = 120  # far more than they take, far less than a barrier's patience
LOG = "runs/counting/toy/metrics.jsonl"


@pytest.fixture(scope="module")
def disk(tmp_path_factory, shared_compilation):
    """A directory that both hosts see, with a run that they have finished there."""
    place = tmp_path_factory.mktemp("disk")
    (place / "toy.py").write_text(counting.CONFIG)
    for code, out, err in run(place, place):
        assert code == 0, out + err
    return place


def run(*cwds, own=((), ())):
    """Starts the counter on two hosts, each in its directory: (exit code, output, errors) each."""
    pair = start_pair(counting, "--config=toy.py", devices=1, own=own, cwds=cwds)
    try:
        texts = [process.communicate(timeout=SECONDS) for process in pair]
    finally:
        for process in pair:
            process.kill()
    return [(process.returncode, *text) for process, text in zip(pair, texts, strict=True)]


def errors(found):
    """The one line that each host ends with; both must have been refused."""
    assert [code for code, *_ in found] == [2, 2], found
    return [err.splitlines()[-1] for _, _, err in found]


def test_a_finished_run_ends_on_both_hosts(disk):
    before = (disk / LOG).read_bytes()
    (code, out, _), (other_code, other_out, _) = run(disk, disk)
    assert (code, other_code) == (0, 0)
    assert "is finished" in out
    assert "is finished" not in other_out
    assert (disk / LOG).read_bytes() == before


@pytest.mark.parametrize("flag", ["--render", "--workdir=w"])
def test_hosts_with_different_flags_are_refused(disk, flag):
    name = flag.partition("=")[0]
    message = (
        f"error: the hosts of this run do not have the same {name}: "
        "start the same command on all of them"
    )
    assert errors(run(disk, disk, own=((), (flag,)))) == [message] * 2


def test_hosts_that_share_no_directory_are_refused_before_they_train(tmp_path):
    places = [tmp_path / name for name in "ab"]
    for place in places:
        place.mkdir()
        (place / "toy.py").write_text(counting.CONFIG)
    found = run(*places)
    message = (
        "error: the hosts of this run see different directories at runs/counting/toy: give a "
        "--workdir that all of them share, on a disk or as gs://BUCKET/FOLDER"
    )
    assert errors(found) == [message] * 2
    assert {path.name for path in places[0].glob("runs/counting/toy/*")} == {".lock"}  # not claimed
    assert not (places[1] / "runs").exists()


def test_a_host_that_misses_the_checkpoints_is_refused(disk, tmp_path):
    """It sees the claim, but not all that the directory holds."""
    (disk / "runs/counting/toy/results.json").unlink()
    there = tmp_path / "runs/counting/toy"
    there.mkdir(parents=True)
    (tmp_path / "toy.py").write_text(counting.CONFIG)
    (there / ".lock").symlink_to(disk / "runs/counting/toy/.lock")
    for error in errors(run(disk, tmp_path)):
        assert error.startswith("error: the hosts of this run do not have the same checkpoints in ")
