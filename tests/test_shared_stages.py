"""Stages of another LAPO run: what sets them apart, and the shapes of older runs."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import procgen
from experiments import lapo, shared_stages
from lawm_jax.errors import InputError


@pytest.fixture
def config():
    return ConfigDict(procgen.get_config("miner,tiny").to_dict())


def test_only_a_stage_that_is_played_goes_by_how_policies_are_played(config):
    theirs = config.to_dict()
    config.evaluation.temperature, config.evaluation.episodes = 0.5, 400
    apart = shared_stages._apart(theirs, config.to_dict(), shared_stages.SECTIONS)
    assert apart["cloning"] == ["evaluation.episodes 8 -> 400", "evaluation.temperature 1.0 -> 0.5"]
    assert not any(why for phase, why in apart.items() if phase != "cloning")

    config.evaluation.windows = 32
    apart = shared_stages._apart(theirs, config.to_dict(), shared_stages.SECTIONS)
    assert all("evaluation.windows 64 -> 32" in why for why in apart.values())
    config.evaluation.windows, config.evaluation.merge = 64, (0,) * 15
    apart = shared_stages._apart(theirs, config.to_dict(), shared_stages.SECTIONS)
    assert all(any("evaluation.merge" in x for x in why) for why in apart.values())


def test_keys_that_are_gone_set_nothing_apart(config):
    theirs = config.to_dict()
    theirs["latent_action"]["roll"] = False
    assert not any(shared_stages._apart(theirs, config.to_dict(), shared_stages.SECTIONS).values())
    theirs["latent_action"]["roll"] = True
    apart = shared_stages._apart(theirs, config.to_dict(), shared_stages.SECTIONS)
    assert apart["latent_policy"] == ["latent_action.roll True -> absent"]


def test_a_latent_policy_of_other_latents_than_those_taken_is_not_taken():
    one, other = {"x": np.zeros(2)}, {"x": np.ones(2)}
    for latents, kept in ((one, True), (other, False)):
        finished, apart = {"latent_action": latents, "latent_policy": {}}, {"latent_policy": []}
        shared_stages._check_latents(finished, apart, {"latent_action": one})
        assert ("latent_policy" in finished, not apart["latent_policy"]) == (kept, kept)


@pytest.mark.parametrize("content", ["", "{", "[1]", "{}", '{"workdirs": {}, "digests": 3}'])
def test_a_damaged_note_of_whose_stages_a_run_has_is_refused(tmp_path, content):
    run = SimpleNamespace(workdir=tmp_path, address=tmp_path)
    assert shared_stages.origin(run) is None
    (tmp_path / shared_stages.FILE).write_text(content)
    with pytest.raises(InputError, match=r"pretrained.json is damaged .* delete it to take them"):
        shared_stages.origin(run)


def test_the_shapes_of_an_older_run_are_by_what_absent_keys_stand_for(config):
    """Before distilled policies could have trunks of their own, none had."""
    theirs = config.to_dict()
    del theirs["distillation"]["trunk"]
    config.distillation.trunk = True
    ours = {"any": jnp.zeros(1)}
    of = lambda theirs: shared_stages._template(config, theirs, lapo._initial_state, ours)
    assert set(of(theirs)["distillation"].params) == {"fc", "head"}
    assert set(of(config.to_dict())["distillation"].params) == {"trunk", "fc", "head"}
