"""The inverse dynamics model: what it recovers, what it keeps, what it must not read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import OBS, A, make_trajectory

from lawm_jax import runner
from lawm_jax.data.normaliser import fit
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.errors import InputError
from lawm_jax.offline import inverse_dynamics
from lawm_jax.offline.inverse_dynamics import InverseDynamicsConfig

CONFIG = InverseDynamicsConfig(
    steps=600, batch_rows=64, context=1, units=32, layers=1, dropout=0.0, learning_rate=1e-2,
    weight_decay=1e-4, validate_every=50, validation_fraction=0.2, validation_piece=10,
    action_size=A,
)
SYSTEM = np.array([[0.9, 0.2, 0.0], [-0.1, 0.8, 0.3], [0.2, 0.0, 0.7]])
INPUT = np.array([[0.6, -0.2], [0.1, 0.5], [-0.3, 0.4]])


def linear_trajectories(count, length=50, seed=0):
    """o_{t+1} = SYSTEM o_t + INPUT a_t: an action follows from two observations."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        action = rng.uniform(-0.9, 0.9, (length, A))
        observation = [rng.standard_normal(OBS)]
        for a in action:
            observation.append(SYSTEM @ observation[-1] + INPUT @ a)
        found.append(Trajectory(
            np.stack(observation).astype(np.float32), action.astype(np.float32),
            np.zeros(length, np.float32),
        ))
    return found


def start(config, trajectories):
    normaliser = fit([t.observation for t in trajectories])
    data = inverse_dynamics.labelled_data(config, normaliser, trajectories, seed=0)
    run = runner.data_parallel(
        inverse_dynamics.make_step(config, 1), runner.make_mesh(jax.devices()[:1])
    )
    return inverse_dynamics.init(config, normaliser, seed=0), data, run


@pytest.mark.parametrize("context", [0, 1])
def test_the_actions_of_a_linear_system_are_recovered(context):
    config = dataclasses.replace(CONFIG, context=context)
    state, data, run = start(config, linear_trajectories(20))
    state, metrics = run(state, None, data, steps=config.steps)
    unseen = linear_trajectories(3, seed=1)
    guessed = inverse_dynamics.label(config, state, unseen)
    variance = inverse_dynamics.action_variance(unseen)
    assert 0.2 < variance < 0.3  # of a uniform distribution over [-0.9, 0.9]: 0.27
    assert inverse_dynamics.action_error(guessed, unseen) < 0.02 * variance
    assert metrics["best_validation_error"][-1] < 0.04 * variance
    for ours, theirs in zip(guessed, unseen, strict=True):
        assert ours.action.shape == theirs.action.shape
        np.testing.assert_array_equal(ours.observation, theirs.observation)


def test_the_best_parameters_are_kept():
    """A fixed rule: a lower validation error than all before."""
    state = inverse_dynamics.init(CONFIG, fit([np.eye(OBS)]), seed=0)
    make = lambda x: jax.tree.map(lambda leaf: jnp.full_like(leaf, x), state.params)
    for x, error in ((1.0, 0.5), (2.0, 0.7), (3.0, 0.2), (4.0, 0.2), (5.0, 0.3)):
        state = inverse_dynamics.keep_best(state, make(x), jnp.float32(error))
    jax.tree.map(np.testing.assert_array_equal, state.best, make(3.0))
    assert state.best_error == np.float32(0.2)
    assert state.validation_error == np.float32(0.3)


def test_training_keeps_the_best_although_it_goes_on():
    """Three labelled trajectories of noise: what is learned of them does not carry over."""
    config = dataclasses.replace(CONFIG, steps=300, learning_rate=3e-2, validate_every=10)
    trajectories = [make_trajectory(30, seed) for seed in range(3)]
    state, data, run = start(config, trajectories)
    state, metrics = run(state, None, data, steps=config.steps)
    validation = metrics["validation_error"]
    assert metrics["training_error"][-1] < 0.3 * metrics["training_error"][0]
    assert validation[-1] > 1.1 * validation.min()  # it did overfit
    error = lambda params: inverse_dynamics.squared_error(config, params, data.validation, None)
    np.testing.assert_allclose(error(state.best), validation.min(), rtol=1e-4)
    np.testing.assert_allclose(state.best_error, validation.min())
    np.testing.assert_allclose(error(state.params), validation[-1], rtol=1e-4)
    # It validates after the first step and every tenth.
    changes = np.flatnonzero(np.diff(validation)) + 2
    assert set(changes) <= set(range(10, 301, 10))


def test_labels_come_from_observations_alone():
    """NaN for the true actions, or none at all, gives the same labels."""
    trajectories = [make_trajectory(n, seed) for seed, n in enumerate((12, 7))]
    state, _, _ = start(CONFIG, trajectories)
    clean = inverse_dynamics.label(CONFIG, state, trajectories)
    for actions in (lambda t: np.full_like(t.action, np.nan), lambda t: None):
        poisoned = [dataclasses.replace(t, action=actions(t)) for t in trajectories]
        same = inverse_dynamics.label(CONFIG, state, poisoned)
        for a, b in zip(clean, same, strict=True):
            np.testing.assert_array_equal(a.action, b.action)
    assert inverse_dynamics.action_error(same, poisoned) is None  # nothing to compare with
    assert inverse_dynamics.action_error(clean, [poisoned[0], trajectories[1]]) == pytest.approx(
        np.mean((clean[1].action - trajectories[1].action) ** 2), rel=1e-5
    )


def test_labels_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    trajectories = [make_trajectory(n, seed) for seed, n in enumerate((12, 7, 9))]
    state, _, _ = start(CONFIG, trajectories)
    together = inverse_dynamics.label(CONFIG, state, trajectories)
    monkeypatch.setattr(inverse_dynamics, "CHUNK", 5)
    for one, trajectory in zip(together, trajectories, strict=True):
        (alone,) = inverse_dynamics.label(CONFIG, state, [trajectory])
        np.testing.assert_allclose(alone.action, one.action, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("lengths", "piece", "kept"),
    [((50, 50, 50, 50), 10, 40), ((30, 50), 10**6, 30), ((25,), 50, 12), ((2,), 50, 1)],
)
def test_whole_pieces_are_kept_for_validation(lengths, piece, kept):
    config = dataclasses.replace(CONFIG, validation_piece=piece, context=0)
    trajectories = [make_trajectory(n, seed) for seed, n in enumerate(lengths)]
    data = inverse_dynamics.labelled_data(
        config, fit([t.observation for t in trajectories]), trajectories, seed=1
    )
    actions = np.concatenate([t.action for t in trajectories])
    where = {tuple(action): i for i, action in enumerate(actions)}
    validation, training = (
        [where[tuple(action)] for action in part.action]
        for part in (data.validation, data.training)
    )
    assert sorted(validation + training) == list(range(len(actions)))
    assert len(validation) in (kept, len(actions) - kept)
    borders = np.flatnonzero(np.diff(validation) != 1) + 1
    for run in np.split(np.array(validation), borders):
        assert len(run) % min(piece, *lengths) == 0 or len(lengths) == 1
    same = inverse_dynamics.labelled_data(
        config, fit([t.observation for t in trajectories]), trajectories, seed=1
    )
    np.testing.assert_array_equal(same.validation.action, data.validation.action)


def test_a_single_labelled_step_is_refused():
    with pytest.raises(InputError, match="needs two labelled steps at least"):
        start(CONFIG, [make_trajectory(1)])


def test_dropout_is_noise_in_training_only():
    config = dataclasses.replace(CONFIG, dropout=0.5, steps=3)
    trajectories = linear_trajectories(2)
    state, data, run = start(config, trajectories)
    without, _, run_without = start(CONFIG, trajectories)
    once = inverse_dynamics.label(config, state, trajectories)
    again = inverse_dynamics.label(CONFIG, without, trajectories)
    np.testing.assert_array_equal(once[0].action, again[0].action)
    _, noisy = run(state, None, data, steps=1)
    _, clean = run_without(without, None, data, steps=1)
    assert noisy["training_error"][0] != clean["training_error"][0]


def test_steps_of_one_dispatch_equal_steps_one_by_one():
    config = dataclasses.replace(CONFIG, dropout=0.3, validate_every=2)
    trajectories = linear_trajectories(2)

    def train(*counts):
        state, data, run = start(config, trajectories)
        metrics = []
        for count in counts:
            state, part = run(state, None, data, steps=count)
            metrics.append(jax.device_get(part))
        return jax.device_get(state), jax.tree.map(lambda *x: np.concatenate(x), *metrics)

    jax.tree.map(np.testing.assert_array_equal, train(1, 1, 1), train(3))
