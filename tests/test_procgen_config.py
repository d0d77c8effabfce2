"""configs/procgen.py: every preset resolves to a program, mistakes are one clear line."""

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from configs import dmc, table
from configs.procgen import ACTIONS, GAMES, PRESETS, get_config
from experiments.identity import complete, flatten
from lawm_jax import runner
from lawm_jax.data.frames import FrameWindows
from lawm_jax.errors import InputError
from lawm_jax.lapo import learner
from lawm_jax.lapo.program import check_rows, resolve
from lawm_jax.online import ppo

SHAPE = (64, 64, 3)


@pytest.mark.parametrize(
    ("game", "preset"),
    [*(("miner", preset) for preset in PRESETS), ("bigfish", "small"), ("maze", "small")],
)
def test_presets_resolve_and_their_networks_fit_the_frames(game, preset):
    program = resolve(get_config(f"{game},{preset}"), SHAPE, ACTIONS)
    assert bool(program.policy.encoder.glimpses) == (game == "bigfish")
    state = jax.eval_shape(
        lambda: learner.init(program.model, program.latent_action, SHAPE, 0))
    frame = jax.ShapeDtypeStruct((2, *SHAPE), jnp.uint8)
    windows = FrameWindows(frame, frame, frame, jax.ShapeDtypeStruct((2,), jnp.int32))

    def predict(state, windows):
        z = learner.infer(program.model, state.params, windows)
        return z, learner.predict(program.model, state, windows, z)

    z, prediction = jax.eval_shape(predict, state, windows)
    assert z.shape == (2, program.model.idm.vq.latent_size) == (2, program.policy.out)
    assert prediction.shape == (2, *SHAPE)
    for stage in (program.online, program.scratch):
        online = jax.eval_shape(
            lambda stage=stage: ppo.init(stage.network, stage.ppo, SHAPE, 0))
        assert {name for name, _ in stage.ppo.groups} <= set(online.params)
        assert stage.ppo.updates >= 1
    assert "trunk" not in dict(program.online.ppo.groups)
    assert dict(program.scratch.ppo.groups).keys() == {"trunk", "fc", "policy", "value"}


def test_the_default_is_the_published_setting():
    config = get_config("bigfish")
    program = resolve(config, SHAPE, ACTIONS)
    assert config.preset == "published"
    assert program.model.idm.vq.latent_size == 128
    assert (program.latent_action.steps, program.latent_policy.steps) == (50_000, 60_000)
    assert config.decoder.labels[0] == 8 and config.decoder.labels[-1] == 131_072
    assert program.online.supervision.decoder.units == (192, 128, 64)
    assert program.online.ppo.updates == 976


def test_ablations_are_configuration():
    config = get_config("maze,tiny")
    config.vq.enabled = config.online.supervised = False
    program = resolve(config, SHAPE, ACTIONS)
    assert not program.model.idm.vq.enabled
    assert program.online.network.latent_size == 0 and program.online.supervision is None


def test_an_unknown_game_or_preset_is_refused():
    with pytest.raises(ValueError) as error:
        get_config("pong")
    assert str(error.value).count("\n") == 0
    assert all(game in str(error.value) for game in GAMES) and len(GAMES) == 16
    with pytest.raises(ValueError, match="'large' is no preset; choose one of published, small"):
        get_config("maze,large")


@pytest.mark.parametrize("key, value, message", [
    ("dtype", "float16", "choose float32 or bfloat16"),
    ("decoder.labels", (), "one or more numbers of labelled transitions"),
    ("decoder.labels", (0, 8), "decoder.labels has 0; each must be a whole number >= 1"),
    ("decoder.labels", ("a",), "decoder.labels has 'a'; each must be a whole number >= 1"),
    ("decoder.labels", (8, True), "decoder.labels has True; each must be a whole number >= 1"),
    ("decoder.labels", (8, 8), "decoder.labels is .8, 8.; name each once"),
    ("distillation.labels", (8, 8), "distillation.labels is .8, 8.; name each once"),
    ("distillation.labels", (8, 64), "distillation.labels names 64, which no decoder has"),
    ("evaluation.merge", (*range(14), "x"), "evaluation.merge has 'x'; each must be a whole"),
    ("evaluation.temperature", -1.0, "evaluation.temperature is -1.0; it must be >= 0"),
    ("policy.channels", (0,), "policy.channels has 0; each must be a whole number >= 1"),
    ("policy.patch", -1, "policy.patch is -1; it must be >= 0"),
    ("policy.glimpses", -1, "policy.glimpses is -1; it must be >= 0"),
    ("policy.glimpse", 0, "policy.glimpse is 0; it must be >= 1"),
    ("policy.resize", -60, "policy.resize is -60; it must be >= 0"),
    ("fdm.reach", 64, "fdm.reach is 64; pixels of frames of 64 x 64 cannot move further than 63"),
    ("policy.resize", 3, "policy.resize is 3, less than policy.patch .4.; a frame must have room"),
    ("policy.resize", 257, "policy.resize is 257; a side of more than 256 pixels, 4 times"),
    ("cloning.shift", 64, "cloning.shift is 64; it would move frames of 64 x 64 pixels out of"),
    ("vq.restart_below", 1.0, "vq.restart_below is 1.0; it must be in .0, 1."),
    ("vq.decay", 7.0, "vq.decay is 7.0; it must be in"),
    ("online.decoder.label_smoothing", 2.0, "online.decoder.label_smoothing is 2.0; it must be in"),
    ("cloning.warmup_steps", -1, "cloning.warmup_steps is -1; it must be >= 0"),
    ("cloning.warmup_steps", 40, "cloning.warmup_steps is 40, not less than cloning.steps .40."),
    ("evaluation.merge", (15,) * 15, "evaluation.merge has the class 15; name a class after one"),
    ("evaluation.temperature", 1e-39, "evaluation.temperature is 1e-39; 0 takes the best action"),
    ("policy.channels", (), "policy.channels is ..; a trunk needs at least one stage"),
    ("scratch.schedule.fc", ((9, 0), (5, 1)), "scratch.schedule.fc is .*; the frames of its poin"),
    ("scratch.schedule.fc", ((9, 0), (9, 1)), "scratch.schedule.fc is .*; the frames of its poin"),
    ("scratch.schedule.fc", ((float("inf"), 0),), "scratch.schedule.fc is .*; write "),
    ("online.supervised_from", 513, "online.supervised_from is 513, .* would never learn; choose"),
    ("online.supervised_to", 0, "online.supervised_to 0 and online.frames 512: the decoder would"),
    ("scratch.lambda_", 3.0, "scratch.lambda_ is 3.0; it must be in"),
    ("scratch.schedule.fc", (1, 2), "scratch.schedule.fc is .1, 2.; write "),
    ("evaluation.merge", (0, 1), "has 2 numbers; the game has 15"),
    ("fdm.levels", 5, "fdm.levels needs frames whose sides 128 divides; these have 64 x 64"),
    ("policy.blocks", (1, 2), "policy.blocks has 2 numbers and policy.channels 1; each stage"),
    ("latent_policy.steps", 0, "latent_policy.steps is 0; it must be >= 1"),
    ("online.minibatches", 3, "online.minibatches is 3, which does not divide online.horizon"),
    ("scratch.discount", 1.0, "it must be in"),
    ("scratch.frames", 100, "scratch.frames is 100, less than one rollout"),
    ("online.supervised_capacity", 0, "online.supervised_capacity is 0; it must be >= 1"),
    ("distillation.gradient_clip", -1.0, "distillation.gradient_clip is -1.0; it must be >= 0"),
    ("scratch.gradient_clip", 0.0, "scratch.gradient_clip is 0.0; it must be positive"),
    ("online.entropy", -0.1, "online.entropy is -0.1; it must be >= 0"),
    ("cloning.learning_rate", 0.0, "cloning.learning_rate is 0.0; it must be positive"),
])
def test_settings_that_cannot_be(key, value, message):
    config = get_config("maze,tiny")
    with config.ignore_type():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=message):
        resolve(config, SHAPE, ACTIONS)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("pool", True, "policy.glimpses is 2 and policy.pool true; glimpses tell where they are"),
    ("glimpse", 129, "policy.glimpse is 129; windows of more than 128 pixels, twice the frame's"),
    ("glimpse", 1, "policy.glimpse is 1, less than policy.patch .2.; a frame must have room"),
    ("patch", 50, "policy.glimpse is 48, less than policy.patch .50.; a frame must have room"),
])
def test_glimpses_that_cannot_be(key, value, message):
    config = get_config("bigfish,small")
    config.policy[key] = value
    with pytest.raises(InputError, match=message):
        resolve(config, SHAPE, ACTIONS)


def test_patches_are_cut_from_glimpses_where_there_are_any():
    """Windows are padded to whole patches, where frames that are not resized are refused."""
    config = get_config("bigfish,small")
    config.policy.patch = 5
    resolve(config, SHAPE, ACTIONS)
    config.policy.patch, config.policy.resize, config.policy.glimpse = 12, 8, 16
    resolve(config, SHAPE, ACTIONS)
    config.policy.glimpses = 0
    with pytest.raises(InputError, match="policy.resize is 8, less than policy.patch"):
        resolve(config, SHAPE, ACTIONS)


def test_configs_of_before_glimpses_have_none():
    config = get_config("bigfish").to_dict()
    kept = get_config("bigfish").to_dict()
    for section in ("idm", "policy", "expert_policy"):
        del kept[section]["glimpses"], kept[section]["glimpse"]
    assert complete(kept) == complete(config)


@pytest.mark.parametrize(("key", "value", "message"), [
    ("fdm.levels", 1, "fdm.levels is 1; a U-Net on pixels has at least 2"),
    ("fdm.reach", 3, "fdm.reach is 3 and fdm.residual false; what is moved"),
    ("policy.resize", 60, "policy.resize is 60 and policy.patch 0; only networks on patches"),
])
def test_settings_that_the_published_networks_cannot_have(key, value, message):
    config = get_config("maze")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=message):
        resolve(config, SHAPE, ACTIONS)


def test_devices_must_divide_the_batches():
    config = get_config("maze,tiny")
    check_rows(config, runner.make_mesh(jax.devices()[:1]))
    with pytest.raises(InputError, match="latent_action.rows is 16, which 3 devices"):
        check_rows(config, type("Mesh", (), {"size": 3})())


def test_no_key_hides_behind_a_method_of_its_section():
    """The command line could not set it: an attribute of ConfigDict comes before a key."""
    for config in (get_config("miner"), dmc.get_config("walker_walk"), table.get_config()):
        names = [part for key in flatten(config.to_dict()) for part in key.split(".")]
        assert not [name for name in names if hasattr(ml_collections.ConfigDict, name)]
