"""Windows: inside their trajectory, every step about equally often, splits shared by methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.windows import check_window, sample_windows, split, stack
from lawm_jax.errors import InputError

LENGTHS = (7, 9, 17)  # steps of the trajectories; each holds two windows of observations or more
WINDOW = 4
DRAWS = 20_000


def make_trajectory(index, length):
    """Numbers that tell the trajectory and the step: 1000 index + t, actions + 0.5."""
    t = 1000.0 * (index + 1) + np.arange(length + 1, dtype=np.float32)
    action = np.repeat(t[:-1, None] + 0.5, 3, 1)
    return Trajectory(np.stack([t, -t], 1), action, t[:-1] + 0.25)


@pytest.fixture(scope="module")
def trajectories():
    return [make_trajectory(i, length) for i, length in enumerate(LENGTHS)]


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw(data, count, window=WINDOW):
    """Windows of the keys 0 to count - 1."""
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(count))
    return sample_windows(data, keys, window)


@pytest.fixture(scope="module")
def windows(trajectories):
    return jax.device_get(draw(stack(trajectories, actions=True), DRAWS))


def test_a_window_is_a_piece_of_one_trajectory(windows):
    """No step is padding (0), another trajectory's, or out of order."""
    assert windows.observation.shape == (WINDOW, DRAWS, 2)
    first = windows.observation[0, :, 0]
    trajectory = np.round(first / 1000).astype(int) - 1
    start = first - 1000 * (trajectory + 1)
    lengths = np.array(LENGTHS)[trajectory]
    assert np.all((trajectory >= 0) & (start >= 0) & (start + WINDOW <= lengths + 1))
    t = first + np.arange(WINDOW)[:, None]
    np.testing.assert_array_equal(windows.observation, np.stack([t, -t], -1))
    np.testing.assert_array_equal(windows.action, np.repeat(t[:-1, :, None] + 0.5, 3, 2))
    np.testing.assert_array_equal(windows.reward, t[:-1] + 0.25)


def test_every_step_is_seen_and_first_and_last_as_often_as_those_in_the_middle(windows):
    expected = DRAWS * WINDOW / sum(length + WINDOW for length in LENGTHS)
    spread = 4 * expected**0.5
    for index, length in enumerate(LENGTHS):
        seen = windows.observation[..., 0] - 1000 * (index + 1)
        counts = np.array([np.sum(seen == t) for t in range(length + 1)])
        for t in (0, length, *range(WINDOW, length + 1 - WINDOW)):
            assert abs(counts[t] - expected) < spread, (index, t, counts)
        # the steps beside the ends are also in the windows that were moved inside
        assert np.all(counts > expected - spread)
        assert np.all(counts < 2 * expected + spread)


def test_rows_and_windows_are_drawn_by_their_keys_alone(trajectories, windows):
    """Also where no actions are there: the same key, the same window."""
    few = draw(stack(trajectories, actions=False), 7)
    assert few.action is None
    np.testing.assert_array_equal(few.observation, windows.observation[:, :7])
    np.testing.assert_array_equal(few.reward, windows.reward[:, :7])


def test_a_trajectory_of_one_window(trajectories):
    drawn = draw(stack(trajectories[:1], actions=True), 5, LENGTHS[0] + 1)
    expected = np.broadcast_to(trajectories[0].observation[:, None], (LENGTHS[0] + 1, 5, 2))
    np.testing.assert_array_equal(drawn.observation, expected)


def test_stack_pads_and_leaves_actions_out(trajectories):
    data = stack(trajectories, actions=True)
    assert data.observation.shape == (3, max(LENGTHS) + 1, 2)
    assert tuple(data.length) == LENGTHS
    for i, trajectory in enumerate(trajectories):
        np.testing.assert_array_equal(data.action[i, : LENGTHS[i]], trajectory.action)
        assert not data.action[i, LENGTHS[i] :].any()
        np.testing.assert_array_equal(data.reward[i, : LENGTHS[i]], trajectory.reward)
    blind = stack(trajectories, actions=False)
    assert blind.action is None
    without = [Trajectory(t.observation, None, t.reward) for t in trajectories]
    jax.tree.map(np.testing.assert_array_equal, stack(without, actions=False), blind)


def test_stack_fills_up_by_repeating(trajectories):
    data = stack(trajectories, actions=True, multiple_of=8)
    assert tuple(data.length) == (*LENGTHS, *LENGTHS, *LENGTHS[:2])
    np.testing.assert_array_equal(data.observation[3:6], data.observation[:3])


def test_a_window_longer_than_a_trajectory_is_refused(trajectories):
    data = stack(trajectories, actions=True)
    check_window(data, LENGTHS[0] + 1)
    with pytest.raises(InputError, match=r"a trajectory holds 8 observations, .* window of 9: "):
        check_window(data, LENGTHS[0] + 2)


# ---- split


def test_a_split_takes_every_trajectory_once():
    parts = split([True] * 90 + [False] * 10, 0.2, 0.1, seed=0)
    assert [len(part) for part in parts] == [20, 71, 9]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(100))
    assert set(range(90, 100)) <= set(parts.unlabelled)  # these have no actions to show


def test_labelled_subsets_are_nested_and_the_held_out_do_not_change():
    small, large, oracle = (split([True] * 100, f, 0.05, seed=3) for f in (0.01, 0.2, 1.0))
    assert set(small.labelled) < set(large.labelled) < set(oracle.labelled)
    assert (len(small.labelled), len(large.labelled), len(oracle.labelled)) == (1, 20, 95)
    for other in (large, oracle):
        np.testing.assert_array_equal(small.heldout, other.heldout)
    assert not len(oracle.unlabelled)


def test_a_split_depends_on_the_seed_alone():
    a, b, c = (split([True] * 100, 0.05, 0.05, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert set(a.labelled) != set(c.labelled)


def test_scarce_actions_are_shared_between_held_out_and_labelled():
    has_action = [True] * 20 + [False] * 380
    parts = split(has_action, label_fraction=0.05, heldout_fraction=0.05, seed=0)
    assert [len(part) for part in parts] == [19, 380, 1]
    two = split([True] * 2 + [False] * 18, label_fraction=0.5, heldout_fraction=0.1, seed=0)
    assert [len(part) for part in two] == [1, 18, 1]


@pytest.mark.parametrize(
    ("has_action", "label", "heldout", "message"),
    [
        ([True] * 10, 0.0, 0.1, "data.label_fraction is 0.0, which is not in (0, 1]"),
        ([True] * 10, 1.5, 0.1, "data.label_fraction is 1.5, which is not in (0, 1]"),
        ([True] * 10, 0.1, -1.0, "data.heldout_fraction is -1.0, which is not in (0, 1]"),
        (
            [True] * 10, 0.01, 0.1,
            "data.label_fraction 0.01 of 10 trajectories selects none; 0.1 selects one",
        ),
        (
            [True] + [False] * 18, 0.5, 0.1,
            "1 of 19 trajectories have actions: at least 2 are needed, one to hold out and one to "
            "learn from",
        ),
    ],
)
def test_a_fraction_that_cannot_be_is_refused(has_action, label, heldout, message):
    with pytest.raises(InputError) as error:
        split(has_action, label, heldout, seed=0)
    assert str(error.value) == message
