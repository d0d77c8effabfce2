import dataclasses

import numpy as np
import pytest

from lawm_jax.data.trajectory import Trajectory, fingerprint, return_statistics, validate
from lawm_jax.errors import InputError


def make(length=4, observation_size=3, action_size=2, labelled=True, seed=0, source=""):
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (length, action_size)).astype(np.float32)
    return Trajectory(
        rng.normal(size=(length + 1, observation_size)).astype(np.float32),
        action if labelled else None,
        rng.uniform(size=length).astype(np.float32),
        source,
    )


def changed(trajectory, name, index, value):
    array = getattr(trajectory, name).copy()
    array[index] = value
    return dataclasses.replace(trajectory, **{name: array})


def test_length_and_return():
    trajectory = dataclasses.replace(make(3), reward=np.array([1.0, 0.5, 2.0], np.float32))
    assert trajectory.length == 3
    assert trajectory.episode_return == 3.5


def test_return_statistics_by_hand():
    returns = [4.0, 0.0, 2.0, 6.0, 8.0]
    trajectories = [
        Trajectory(np.zeros((3, 1), np.float32), None, np.array([r - 1, 1], np.float32))
        for r in returns
    ]
    assert return_statistics(trajectories) == {
        "mean": 4.0,
        "std": pytest.approx(np.sqrt((16 + 4 + 0 + 4 + 16) / 5)),
        "min": 0.0,
        "p25": 2.0,
        "median": 4.0,
        "p75": 6.0,
        "max": 8.0,
        "trajectories": 5,
    }


def test_fingerprint_sees_every_float_the_order_and_the_labels():
    one, two = make(seed=1), make(seed=2)
    seen = {
        fingerprint([one, two]),
        fingerprint([two, one]),
        fingerprint([one]),
        fingerprint([one, dataclasses.replace(two, action=None)]),
        fingerprint([one, dataclasses.replace(two, source="elsewhere")]),
    }
    for name in ("observation", "action", "reward"):
        value = np.nextafter(getattr(two, name)[-1], np.float32(2))  # by the least that it can
        seen.add(fingerprint([one, changed(two, name, -1, value)]))
    assert len(seen) == 8
    assert fingerprint([make(seed=1), make(seed=2)]) == fingerprint([one, two])


def test_valid_trajectories_pass():
    validate([make(), make(7), make(labelled=False)], where="x", observation_size=3, action_size=2)
    rounded, beyond = ([changed(make(), "action", 0, 1 + by)] for by in (5e-6, 5e-3))
    validate(rounded, where="x")
    with pytest.raises(InputError):
        validate(beyond, where="x")
    assert rounded[0].action.max() > 1  # which passed all the same


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (changed(make(), "observation", (4, 1), np.nan), "step 4: observation holds NaN"),
        (changed(make(), "reward", 2, np.inf), "step 2: reward holds NaN or Inf"),
        (changed(make(), "action", (3, 0), np.nan), "step 3: action holds NaN"),
        (changed(make(), "action", (1, 1), -1.5), r"step 1: action\[1\] = -1.5 is outside"),
        (make(observation_size=5), "observation has 5 numbers a step, not 3"),
        (make(action_size=1), "action has 1 numbers a step, not 2"),
        (dataclasses.replace(make(), reward=np.zeros(0, np.float32)), "T >= 1"),
        (dataclasses.replace(make(), reward=np.zeros((4, 1), np.float32)), r"\[T\]"),
        (dataclasses.replace(make(), observation=np.zeros((4, 3))), "4 rows of observation"),
        (dataclasses.replace(make(), observation=np.zeros((5, 2, 2))), r"\(5, 2, 2\)"),
        (dataclasses.replace(make(), action=np.zeros((5, 2))), "5 rows of action"),
    ],
)
def test_bad_trajectories_are_named(bad, message):
    bad = dataclasses.replace(bad, source="seed0")
    with pytest.raises(InputError, match=rf"my data: trajectory 1 \(seed0\).*{message}") as caught:
        validate([make(), bad], where="my data")
    assert "\n" not in str(caught.value)


def test_sizes_of_another_task_and_no_trajectories():
    with pytest.raises(InputError, match="trajectory 0: observation has 3 numbers a step, not 24"):
        validate([make()], where="x", observation_size=24)
    with pytest.raises(InputError, match="trajectory 0: action has 2 numbers a step, not 6"):
        validate([make()], where="x", action_size=6)
    with pytest.raises(InputError, match="no trajectories"):
        validate([], where="x")
