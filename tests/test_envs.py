"""The vectorised control suite against dm_control, and episodes as trajectories."""

import envpool
import numpy as np
import pytest

from lawm_jax.envs import dmc, reference
from lawm_jax.envs.rollout import rollout
from lawm_jax.errors import InputError


def test_every_listed_task_exists_in_both_libraries():
    from dm_control import suite

    theirs = {f"{domain}_{name}" for domain, name in suite.ALL_TASKS}
    assert set(dmc.TASKS) == theirs
    offered = set(envpool.list_all_envs())
    assert {dmc.task_spec(task).envpool_id for task in ("walker_walk", "lqr_lqr_2_1")} <= offered
    for domain, names in dmc.SUITE.items():
        for name in names:
            words = f"{domain}_{name}".split("_")
            assert "".join(w[:1].upper() + w[1:] for w in words) + "-v1" in offered


@pytest.mark.parametrize(
    "task, keys, observation_size, action_size",
    [
        ("walker_walk", ("orientations", "height", "velocity"), 24, 6),
        ("cheetah_run", ("position", "velocity"), 17, 6),
        ("hopper_stand", ("position", "velocity", "touch"), 15, 4),
        ("humanoid_CMU_stand", None, 137, 56),
    ],
)
def test_task_spec(task, keys, observation_size, action_size):
    spec = dmc.task_spec(task)
    assert keys is None or spec.observation_keys == keys
    assert (spec.observation_size, spec.action_size) == (observation_size, action_size)
    assert f"{spec.domain}_{spec.name}" == task
    observation_spec = reference.make(task, 0).observation_spec()
    assert tuple(observation_spec) == spec.observation_keys


def test_unknown_task_names_the_nearest_and_lists_the_choices():
    with pytest.raises(InputError, match="did you mean 'walker_walk'.*cheetah_run"):
        dmc.task_spec("walker_wlak")


def _walker_state(observation):
    """Joint angles and velocities from a walker's observation; its x position does not show."""
    xx, xz, height, velocity = *observation[:14].reshape(7, 2).T, observation[14], observation[15:]
    pitch = np.arctan2(xz, xx)  # of torso, then thigh, leg and foot on either side
    torso, right, left = pitch[0], pitch[1:4], pitch[4:7]
    joints = [-np.diff(np.concatenate([[torso], side])) for side in (right, left)]
    joints = np.mod(np.concatenate(joints) + np.pi, 2 * np.pi) - np.pi
    return np.concatenate([[height, 0.0, torso], joints]), velocity


def _position_state(size):
    return lambda observation: (
        np.concatenate([[0.0], observation[:size]]),
        observation[size : 2 * size + 1],
    )


@pytest.mark.parametrize(
    "task, state",
    [
        ("walker_walk", _walker_state),
        ("cheetah_run", _position_state(8)),
        ("hopper_stand", _position_state(6)),
    ],
)
def test_steps_equal_dm_control_from_the_same_state(task, state):
    """Observation and summed reward, step by step; the state is read off EnvPool's observation."""
    env = dmc.ControlSuite(task, 1, seed=1)
    observation = env.reset()
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (25, 1, env.spec.action_size))
    for action in actions[:5]:  # leave the start, where velocities are zero
        observation, _ = env.step(action)
    twin = reference.make(task, 0)
    twin.reset()
    position, velocity = state(observation[0].astype(np.float64))
    if task == "walker_walk":  # qpos starts with z, whose zero is the torso's height at rest
        position[0] -= twin.physics.model.body_pos[twin.physics.model.name2id("torso", "body"), 2]
    with twin.physics.reset_context():
        twin.physics.data.qpos[:], twin.physics.data.qvel[:] = position, velocity
    np.testing.assert_allclose(
        reference.flatten(twin.task.get_observation(twin.physics)), observation[0], atol=1e-5
    )
    for action in actions[5:]:
        observation, reward = env.step(action)
        expected_observation, expected_reward = reference.step(twin, action[0])
        np.testing.assert_allclose(observation[0], expected_observation, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(reward[0], expected_reward, rtol=1e-3, atol=1e-4)


def test_reward_is_summed_over_the_repeat():
    once = dmc.ControlSuite("walker_walk", 2, seed=3, action_repeat=1, episode_steps=10)
    twice = dmc.ControlSuite("walker_walk", 2, seed=3, episode_steps=5)
    np.testing.assert_array_equal(once.reset(), twice.reset())
    for action in np.random.default_rng(0).uniform(-1, 1, (5, 2, 6)):
        _, first = once.step(action)
        observation, second = once.step(action)
        observation_twice, reward = twice.step(action)
        np.testing.assert_array_equal(observation, observation_twice)
        np.testing.assert_allclose(first + second, reward, rtol=1e-6)


@pytest.mark.parametrize("task", ["walker_walk", "cheetah_run", "hopper_stand"])
def test_seeds_reproduce_and_resets_vary(task):
    def starts(seed, num_threads):
        env = dmc.ControlSuite(task, 3, seed, episode_steps=2, num_threads=num_threads)
        first = env.reset()
        stepped, _ = env.step(np.zeros((3, env.spec.action_size)))
        return np.stack([first, stepped, env.reset()])

    once = starts(5, 1)
    np.testing.assert_array_equal(once, starts(5, 2))
    assert not np.allclose(once[0], starts(6, 1)[0])
    assert not np.allclose(once[0], once[2])  # the second episode starts elsewhere
    assert not np.allclose(once[0, 0], once[0, 1])  # so do the environments
    assert once.dtype == np.float32


def test_episode_ends_where_it_says_and_never_resets_by_itself():
    env = dmc.ControlSuite("cheetah_run", 1, seed=0, episode_steps=3)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros((1, 6)))
    start = env.reset()
    for _ in range(3):
        observation, _ = env.step(np.ones((1, 6)))
    assert not np.allclose(observation, start, atol=0.1)
    with pytest.raises(RuntimeError, match="reset"):
        env.step(np.zeros((1, 6)))
    assert env.reset().shape == (1, 17)


class _Counter:
    """A toy whose state counts steps and whose reward is the step times the action."""

    num_envs, episode_steps = 2, 4

    def reset(self):
        self.t = 0
        return np.full((2, 1), 0, np.float32)

    def step(self, action):
        reward = self.t * action[:, 0]
        self.t += 1
        return np.full((2, 1), self.t, np.float32), reward.astype(np.float32)


def test_rollout_aligns_observation_action_and_reward():
    def act(carry, observation, t):
        assert (observation == t).all() and carry == t
        return np.array([[0.1 * t], [0.2]]), carry + 1

    first, second = rollout(_Counter(), act, 0)
    np.testing.assert_array_equal(first.observation[:, 0], [0, 1, 2, 3, 4])
    np.testing.assert_allclose(first.action[:, 0], [0, 0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(first.reward, [0, 0.1, 0.4, 0.9], rtol=1e-6)
    np.testing.assert_allclose(second.reward, [0, 0.2, 0.4, 0.6], rtol=1e-6)
    assert first.action.dtype == first.reward.dtype == np.float32


def test_renderer_renders_or_says_why_not(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(InputError, match="no OpenGL"):
        reference.renderer()
