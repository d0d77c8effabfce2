"""Dreamer and plan2explore online: the ensemble, the replay, learning, and continuing."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import dmc
from lawm_jax import runner
from lawm_jax.checkpoint import Checkpoints
from lawm_jax.data.windows import sample_windows
from lawm_jax.errors import InputError
from lawm_jax.lawm import evaluate
from lawm_jax.online import dreamer, dreamer_collector, ensemble
from lawm_jax.online.collector import Training
from lawm_jax.online.dreamer_config import check_collectors, dreamer_config, dreamer_training
from lawm_jax.online.ensemble import Ensemble, EnsembleConfig

REWARD = jax.jit(ensemble.reward, static_argnums=0)
INIT = jax.jit(ensemble.init, static_argnums=(0, 1, 2))
NETWORK = Ensemble(EnsembleConfig(members=4, units=16, layers=1, learning_rate=1e-2), 3)
TASK = "pendulum_swingup"


def make_config(**changes):
    """The tiny preset's config with some keys of it changed, "collect.explorer" and the like."""
    config = dmc.get_config(f"{TASK},tiny").unlock()
    config.update_from_flattened_dict(changes)
    return config.lock()


def test_identical_members_do_not_disagree():
    state = INIT(NETWORK, 2, 1, 0)
    feature, action = jnp.ones((5, 7, 2)), jnp.zeros((5, 7, 1))
    apart = REWARD(NETWORK, state, feature, action)
    assert apart.shape == (5, 7) and (apart > 0).all()
    same = state.replace(params=jax.tree.map(lambda x: 0.0 * x + x[:1], state.params))
    together = REWARD(NETWORK, same, feature, action)
    np.testing.assert_allclose(together, 0.0, atol=1e-9)


def test_disagreement_by_hand():
    prediction = jnp.array([[[1.0, 0.0]], [[3.0, 0.0]]])  # two members, one step, two numbers
    np.testing.assert_allclose(ensemble.disagreement(prediction), [0.5])


def test_disagreement_grows_off_the_data():
    rng = np.random.default_rng(0)
    feature = rng.uniform(-1, 1, (256, 2)).astype(np.float32)
    action = rng.uniform(-1, 1, (256, 1)).astype(np.float32)
    embedding = np.concatenate([np.sin(3 * feature), feature[:, :1] * action], 1)

    def step(state, shared, data):
        return ensemble.step(NETWORK, state, *data)

    run = runner.data_parallel(step, runner.make_mesh(jax.devices()[:1]))
    state, metrics = run(
        INIT(NETWORK, 2, 1, 0), None, (feature, action, embedding), steps=800
    )
    assert metrics["ensemble_error"][-1] < 0.1 * metrics["ensemble_error"][0]
    on = REWARD(NETWORK, state, feature, action).mean()
    off = REWARD(NETWORK, state, 4 * feature, action).mean()
    np.testing.assert_allclose(on, 1.0, atol=0.5)  # in units of its mean on the data
    assert off > 5 * on


def _filled(envs, episode_steps, episodes, steps):
    """A replay after `steps` vector steps, appended in chunks of 2; observations say where."""
    replay, written = dreamer.make_replay(episodes, envs, episode_steps, 2, 1), 0
    append = jax.jit(dreamer.append)
    while written < steps:
        episode, t = divmod(written, episode_steps)
        row = (episode * envs + np.arange(envs))[:, None] + np.zeros((1, 3))
        at = t + np.arange(3) + np.zeros((envs, 1))
        observation = np.stack([row, at], -1).astype(np.float32)
        action = 100 * row[:, :2, None] + at[:, :2, None]
        replay = append(replay, observation, action.astype(np.float32), row[:, :2] + at[:, :2])
        written += 2
    return replay


@pytest.mark.parametrize("steps", [4, 8, 10, 14])
def test_windows_stay_within_an_episode_and_what_is_written(steps):
    envs, episode_steps, window = 3, 8, 4
    replay = _filled(envs, episode_steps, 3, steps)
    assert int(replay.length.sum()) == envs * steps
    keys = jax.random.split(jax.random.key(0), 500)
    drawn = jax.device_get(jax.jit(sample_windows, static_argnums=2)(replay, keys, window))
    row, t = drawn.observation[..., 0], drawn.observation[..., 1]
    assert (row == row[0]).all() and (np.diff(t, axis=0) == 1).all()
    lengths = np.asarray(replay.length)
    assert (t[-1] <= lengths[row[0].astype(int)]).all()
    np.testing.assert_array_equal(drawn.action[..., 0], 100 * row[:-1] + t[:-1])
    np.testing.assert_array_equal(drawn.reward, row[:-1] + t[:-1])
    long_enough = np.flatnonzero(lengths + 1 >= window)
    assert set(row[0]) == set(long_enough)  # and every one of those is drawn


def test_normaliser_is_of_what_is_written():
    replay = _filled(envs=2, episode_steps=8, episodes=3, steps=10)
    normaliser = dreamer.fit_normaliser(replay)
    t = np.concatenate([np.arange(9)] * 2 + [np.arange(3)] * 2)
    np.testing.assert_allclose(normaliser.mean[1], t.mean(), rtol=1e-6)
    np.testing.assert_allclose(normaliser.std[1], t.std() + dreamer.NORMALISER_OFFSET, rtol=1e-6)


# The next two tests share one compiled program: sizes, settings and updates a call agree.
TRAINING = Training(
    agent_steps=160, num_envs=2, steps_per_update=2, chunk=10, warmup=10, episode_steps=20
)
UPDATES = 10


@pytest.fixture(scope="module")
def explorer():
    rates = {"world_model.learning_rate": 4e-3, "agent.learning_rate": 4e-3}
    changes = {f"collect.dreamer.{name}": value for name, value in rates.items()}
    return dreamer_config(make_config(**changes), 3, 1, explorer=True)


def test_learning_from_replay(explorer):
    """A point that actions push about: its model and the ensemble learn, imagined returns rise."""
    rng, (rows, steps) = np.random.default_rng(0), (8, TRAINING.episode_steps)
    action = rng.uniform(-1, 1, (rows, steps, 1)).astype(np.float32)
    place = np.concatenate([np.zeros((rows, 1)), 0.5 * np.cumsum(action[..., 0], 1)], 1)
    observation = np.stack([place, np.ones_like(place), np.sin(place)], -1).astype(np.float32)
    replay = dreamer.append(
        dreamer.make_replay(1, rows, steps, 3, 1), observation, action,
        place[:, 1:].astype(np.float32),
    )
    functions = dreamer_collector.make_functions(explorer)
    state = dreamer.init(explorer, seed=0)
    fitted = dreamer.fit_normaliser(replay)
    state = state.replace(world=state.world.replace(normaliser=fitted))
    state, replay = (put(x, functions.mesh) for put, x in (
        (runner.replicate, state), (runner.shard, replay)))

    def learn(state):
        state, metrics = functions.learn(state, None, replay, steps=UPDATES)
        return state, {name: float(x.mean()) for name, x in metrics.items()}

    state, first = learn(state)
    for _ in range(39):
        state, last = learn(state)
    assert int(state.world.step) == int(state.agent.step) == int(state.ensemble.step) == 400
    assert last["loss"] < 0.5 * first["loss"]
    assert last["reward_error"] < 0.5 * first["reward_error"]
    assert last["ensemble_error"] < 0.5 * first["ensemble_error"]
    assert last["imagined_return"] > first["imagined_return"] + 5.0


def test_interruption_changes_nothing(explorer, tmp_path):
    """An explorer, whose state holds all there is, stopped in the midst of its third episode."""
    train = functools.partial(dreamer_collector.train_agent, TASK, 0, TRAINING, explorer, 2)
    logged, resumed = [], []
    whole = train(log=lambda *entry: logged.append(entry))
    polls, kept = itertools.count(), Checkpoints(tmp_path / "agent")
    assert train(stop=lambda: next(polls) == 4, checkpoints=kept) is None
    again = train(log=lambda *entry: resumed.append(entry), checkpoints=kept)
    kept.close()
    for name in ("observation", "action", "reward"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))
    assert resumed == logged[2:] and [step for step, _ in logged] == [40, 80, 120, 160]
    assert whole.observation.shape == (8, 21, 3) and np.abs(whole.action).max() <= 1
    assert whole.collector.startswith("plan2explore") and whole.settings["ensemble"]
    returns = [metrics["return"] for _, metrics in logged]
    np.testing.assert_allclose(whole.returns, returns, rtol=1e-5)


def test_acting_by_samples_or_the_mode(explorer):
    state, act = dreamer.init(explorer, seed=0), dreamer_collector.make_functions(explorer).act
    params = evaluate.policy_params(state.world, state.agent)
    observation = np.ones((2, 3), np.float32)
    mode = act(params, None, observation).action
    draw = lambda scale: act(params, None, observation, np.full((2, 1), scale, np.float32)).action
    np.testing.assert_array_equal(draw(0.0), mode)
    assert (draw(1.0) > mode).all() and (draw(-1.0) < mode).all()


def test_dreamer_maximises_the_task(explorer):
    """Without an ensemble the reward is the world model's: the step is the offline program's."""
    config = dataclasses.replace(explorer, ensemble=None)
    assert dreamer.init(config, seed=0).ensemble is None
    state, replay = jax.eval_shape(lambda: (
        dreamer.init(config, seed=0), dreamer.make_replay(1, 2, 20, 3, 1)
    ))
    mapped = jax.shard_map(
        dreamer.make_step(config), mesh=runner.make_mesh(jax.devices()[:1]),
        in_specs=(P(), P(), P(runner.AXIS)), out_specs=P(), check_vma=False,
    )
    after, metrics = jax.eval_shape(mapped, state, None, replay)
    assert after == state and "disagreement" not in metrics and "imagined_return" in metrics


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"collect.collector": "dreamr"}, "collect.collector is 'dreamr'; choose from sac, dream"),
        ({"collect.explorer": "random"}, "collect.explorer is 'random'; choose from sac, plan2"),
        ({"collect.collector": "dreamer", "collect.from_snapshots": True}, "set one of them back"),
        ({"collect.dreamer.world_model.units": 0}, r"collect.dreamer: world_model.units is 0"),
        ({"collect.dreamer.ensemble.members": 1}, "to disagree takes at least 2"),
        ({"collect.dreamer.ensemble.layers": 0}, r"collect.dreamer: ensemble.layers is 0"),
        ({"collect.dreamer.steps_per_update": 0}, r"dreamer.steps_per_update is 0"),
        ({"collect.dreamer.normaliser_episodes": -1}, "dreamer.normaliser_episodes is -1"),
        ({"collect.dreamer.chunk": 7}, "do not divide into chunks of 7"),
        ({"collect.dreamer.steps_per_update": 7}, "updates every 7 agent steps"),
        ({"collect.dreamer.world_model.window": 12}, "window of 12 observations does not fit"),
        ({"collect.explorer_steps": 100}, "100 is not a multiple"),
    ],
)
def test_bad_configs(changes, message):
    config = make_config(**changes)
    with pytest.raises(InputError, match=message):
        check_collectors(config)
        settings = dreamer_config(config, 3, 1, explorer=True)
        dreamer_collector.train_agent(TASK, 0, dreamer_training(config, True), settings, 0)


def test_only_a_plain_dreamer_learns_online():
    from lawm_jax.lawm.methods import resolve

    config = dreamer.DreamerConfig(resolve(make_config(), 3, 1), None)
    with pytest.raises(InputError, match="for method 'dreamer'"):
        dreamer.init(config, seed=0)
