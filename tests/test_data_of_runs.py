"""How runs come by their data set: made once, by whichever run is first to finish it."""

import re

import pytest
from make_run import make_run

from configs import dmc, procgen
from experiments.data import load_dataset, load_frames
from experiments.launch import StopSignal
from lawm_jax.envs.dmc import task_spec
from lawm_jax.errors import InputError


class Interlude(StopSignal):
    """Does something the first time that it is polled: while data are being made."""

    def __init__(self, act):
        self.act = act

    @property
    def requested(self):
        act, self.act = self.act, lambda: None
        act()
        return False


def trajectories(run):
    return load_dataset(run, task_spec("cheetah_run"))


@pytest.mark.parametrize(
    "load, config",
    [
        (load_frames, procgen.get_config("maze,tiny")),
        (trajectories, dmc.get_config("cheetah_run,tiny")),
    ],
    ids=["frames", "trajectories"],
)
def test_of_two_runs_that_make_the_same_data_the_second_reads_the_firsts(
    tmp_path, capsys, load, config
):
    made = []
    interlude = Interlude(lambda: made.append(load(make_run(tmp_path, config))))
    data = load(make_run(tmp_path, config, interlude))
    assert len(made) == 1 and data.fingerprint == made[0].fingerprint
    out = capsys.readouterr().out
    assert out.count("making ") == 2 and out.count("another run has made") == 1
    again = load(make_run(tmp_path, config))
    assert again.fingerprint == data.fingerprint and "making" not in capsys.readouterr().out
    assert not list((tmp_path / "data").rglob("incomplete*"))


def test_what_cannot_be_made_is_still_refused(tmp_path):
    config = procgen.get_config("maze,tiny")
    config.data.test_frames = 0
    with pytest.raises(InputError, match="at least 1 frame a split, not 2000 and 0"):
        load_frames(make_run(tmp_path, config))


def test_the_making_of_frames_says_how_far_it_is(tmp_path, capsys):
    load_frames(make_run(tmp_path, procgen.get_config("maze,tiny")))
    told = re.findall(r"^frames (\d+)/2400(.*)$", capsys.readouterr().out, re.MULTILINE)
    (first, _), *_, (last, pace) = told
    assert 0 < int(first) < 2000 and last == "2400"
    assert re.fullmatch(r", [\d.e+]+ frames/s, 0 s left", pace)
