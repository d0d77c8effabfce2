"""The world model of another run: taken where it is the run's own, and refused otherwise.

The other run is what it would have left behind; tests/test_lawm_job.py has a real one.
"""

import json
from typing import NamedTuple

import jax
import numpy as np
import pytest
from make_run import make_run

from configs.dmc import get_config
from experiments import shared_world
from experiments.identity import agent_seed, same_config
from lawm_jax import bucket, runner
from lawm_jax.checkpoint import Checkpoints, state_digest
from lawm_jax.errors import InputError
from lawm_jax.lawm import actor_critic
from lawm_jax.lawm.methods import resolve


class World(NamedTuple):
    """Stands for a world model's train state."""

    params: np.ndarray
    step: np.ndarray


def make_config(changes):
    config = get_config("walker_walk,tiny").unlock()
    config.update_from_flattened_dict({"world_model.units": 4, "agent.units": 4, **changes})
    return config


def resolved(config):
    return resolve(config, observation_size=24, action_size=6)


def make_state(config, step=0, params=0.0):
    """Train states of zeros, but for the world model's parameters and step."""
    program, seeds = resolved(config), config.num_seeds
    shapes = jax.eval_shape(lambda: actor_critic.init(program.model, program.agent, 0))
    agent = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    world = World(np.full(3, params, np.float32), np.int32(step))
    mesh = runner.make_mesh(jax.devices()[:1])
    return {
        phase: runner.replicate(runner.join_seeds([one] * seeds), mesh)
        for phase, one in (("world_model", world), ("agent", agent))
    }


@pytest.fixture
def other(tmp_path):
    """Leaves what another run leaves behind, its world model's parameters 7."""

    def leave(changes=(), step=60, fingerprint="data", experiment="lawm", params=7.0):
        config = make_config(dict(changes))
        identity = {"experiment": experiment, "config": config.to_dict()}
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "config.json").write_text(json.dumps(identity))
        checkpoints = Checkpoints(tmp_path / "other" / "checkpoints")
        extra = {"fingerprint": fingerprint}
        checkpoints.save(step + int(params), make_state(config, step, params), extra)
        checkpoints.close()

    return leave


@pytest.fixture
def opened(tmp_path):
    """Opens the session of a run on that world model; returns it with the run."""

    def start(changes=()):
        config = make_config({"world_model.pretrained": str(tmp_path / "other"), **dict(changes)})
        run = make_run(tmp_path, config.lock())
        session = shared_world.open_session(run, resolved(config), make_state(config), "data")
        return run, session

    return start


@pytest.mark.parametrize("seeds", [1, 2])
def test_an_agent_of_another_size_and_seed_learns_on_it(other, opened, seeds):
    other({"num_seeds": seeds, "agent.layers": 2, "agent.value_networks": 3, "agent.epsilon": 1.0})
    run, session = opened({"num_seeds": seeds, "agent.seed": 5})
    world = session.state["world_model"]
    np.testing.assert_array_equal(world.params, np.full((3,) if seeds == 1 else (2, 3), 7))
    assert runner.step_of(world) == 60 and runner.step_of(session.state["agent"]) == 0
    assert shared_world.origin(run, session) == {
        "shared": True, "digest": state_digest(world),
        "pretrained": run.config.world_model.pretrained,
    }
    session.close()


def test_the_other_run_may_be_in_a_bucket(gcs, opened):
    address = "gs://bucket/other/"
    with pytest.raises(InputError, match="gs://bucket/other is no work directory"):
        opened({"world_model.pretrained": address})
    config = make_config({})
    identity = {"experiment": "lawm", "config": config.to_dict()}
    bucket.write(f"{address}config.json", json.dumps(identity).encode())
    with pytest.raises(InputError, match="gs://bucket/other has no checkpoint yet"):
        opened({"world_model.pretrained": address})
    checkpoints = Checkpoints(f"{address}checkpoints")
    checkpoints.save(60, make_state(config, 60, 7.0), {"fingerprint": "data"})
    checkpoints.close()
    _, session = opened({"world_model.pretrained": address})
    np.testing.assert_array_equal(session.state["world_model"].params, np.full(3, 7))
    session.close()


def test_runs_from_before_it_could_be_shared_serve_too(other, opened, tmp_path):
    other()
    path = tmp_path / "other" / "config.json"
    old = json.loads(path.read_text())
    del old["config"]["num_seeds"], old["config"]["world_model"]["pretrained"]
    del old["config"]["agent"]["seed"], old["config"]["agent"]["disagreement"]
    path.write_text(json.dumps(old))
    session = opened()[1]
    np.testing.assert_array_equal(session.state["world_model"].params, np.full(3, 7.0))
    session.close()


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (
            {"changes": {"seed": 1, "task": "walker_run", "world_model.window": 8}},
            r"holds another world model \(seed 1 -> 0, task walker_run -> walker_walk, "
            r"world_model.window 8 -> 16\)",
        ),
        ({"changes": {"data.label_fraction": 0.5}}, r"\(data.label_fraction 0.5 -> 0.2\)"),
        ({"changes": {"method": "c_lap"}}, r"\(method c_lap -> lawm\)"),
        ({"changes": {"num_seeds": 2}}, r"\(num_seeds 2 -> 1\)"),
        ({"experiment": "baselines"}, "is of experiments.baselines, not of experiments.lawm"),
        ({"step": 40}, "has trained its world model for 40 of 60 steps: let that run go on first"),
        ({"fingerprint": "fish"}, r"was trained on other data \(fingerprint fish, here data\)"),
    ],
)
def test_a_world_model_that_is_not_the_runs_own_is_refused(
    other, opened, tmp_path, left, message
):
    other(**left)
    with pytest.raises(InputError, match=rf"world_model.pretrained: {tmp_path}/other .*{message}"):
        opened()
    assert not list((tmp_path / "work").iterdir())  # so that nothing is claimed


def test_a_run_that_is_not_there_or_has_saved_nothing_is_refused(opened, tmp_path):
    with pytest.raises(InputError, match=r"other is no work directory of a run: it has no config"):
        opened()
    (tmp_path / "other").mkdir()
    identity = {"experiment": "lawm", "config": make_config({}).to_dict()}
    (tmp_path / "other" / "config.json").write_text(json.dumps(identity))
    for _ in range(2):
        with pytest.raises(InputError, match="other has no checkpoint yet: let that run go on"):
            opened()
        (tmp_path / "other" / "checkpoints").mkdir(exist_ok=True)


def test_a_run_that_is_saving_is_left_alone_and_a_damaged_one_found(other, opened, tmp_path):
    other()
    half = tmp_path / "other" / "checkpoints" / "90.orbax-checkpoint-tmp"
    half.mkdir()
    opened()[1].close()
    assert half.exists()
    # All of them: which of Orbax's files hold data that are read, and where, varies.
    for file in (tmp_path / "other" / "checkpoints" / "67" / "state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="checkpoint step 67 in .* is damaged"):
        opened()


def test_a_run_goes_on_only_with_the_world_model_that_it_was_begun_on(other, opened):
    other()
    _, session = opened()
    session.save()
    session.close()
    opened()[1].close()
    other(params=8.0)  # trained again, by other code perhaps
    message = "/work was begun on another world model than .*/other now"
    with pytest.raises(InputError, match=message):
        opened()


def test_what_counts_as_the_same_config():
    config = json.loads(make_config({}).to_json_best_effort())
    kept = json.loads(json.dumps(config))
    del kept["agent"]["seed"], kept["world_model"]["pretrained"], kept["num_seeds"]
    kept["agent"]["values"] = kept["agent"].pop("value_networks")  # its name of then
    assert same_config(kept, config)
    for roll in (False, True):  # a key that went, when only one of its values was left
        assert same_config({**kept, "latent_action": {"roll": roll}}, config) != roll
    for section, key, value in (
        ("agent", "seed", 1), ("world_model", "pretrained", "a"), ("agent", "epsilon", 1.0),
    ):
        changed = {**config, section: {**config[section], key: value}}
        assert not same_config(kept, changed) and not same_config(changed, config)
        assert same_config(changed, changed)
    for method, section, key, reads in (
        ("td3_bc", "world_model", "latent_kl_weight", False), ("td3_bc", "td3_bc", "alpha", True),
        ("c_lap", "td3_bc", "alpha", False), ("c_lap", "world_model", "latent_kl_weight", True),
    ):
        one = {**config, "method": method}
        two = {**one, section: {**one[section], key: 7.0}}
        assert same_config(one, two) != reads
    one, two = ({**config, "world_model": {"pretrained": name}} for name in "ab")
    assert same_config(one, two)  # wherever it was found
    assert same_config({**kept, "pretrained": "runs/other"}, {**config, "pretrained": ""})
    few, more = ({**kept, "stages": stages} for stages in ("a,c", "a,b,c"))
    assert same_config(more, {**config, "stages": "a,c"})
    assert not same_config(few, {**config, "stages": "a,b,c"})


def test_the_agents_seed_is_the_runs_or_counts_on_from_its_own():
    config = make_config({"seed": 3})
    assert [agent_seed(config, seed) for seed in (3, 4)] == [3, 4]
    config = make_config({"seed": 3, "agent.seed": 0})
    assert [agent_seed(config, seed) for seed in (3, 4)] == [0, 1]
