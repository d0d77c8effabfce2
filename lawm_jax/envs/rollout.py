"""Whole episodes of a vectorised environment as trajectories."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lawm_jax.data.trajectory import Trajectory
from lawm_jax.envs.dmc import ControlSuite


def rollout(
    env: ControlSuite,
    act: Callable[[Any, np.ndarray, int], tuple[np.ndarray, Any]],
    carry: Any,
) -> list[Trajectory]:
    """Plays one episode in each of the N environments.

    Args:
        env: anything with `reset`, `step`, `num_envs` and `episode_steps`.
        act: `act(carry, observation [N, O], t) -> (action [N, A], carry)`. It is called once for
            every t = 0 .. T-1 and never sees the last observation.
        carry: the agent's state before the first step.

    Returns:
        N trajectories; action[t] led from observation[t] to observation[t+1] and earned reward[t].
    """
    observations, actions, rewards = [env.reset()], [], []
    for t in range(env.episode_steps):
        action, carry = act(carry, observations[-1], t)
        action = np.asarray(action, np.float32)
        observation, reward = env.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(reward)
    observation, action, reward = (np.stack(x, 1) for x in (observations, actions, rewards))
    return [
        Trajectory(observation=observation[n], action=action[n], reward=reward[n])
        for n in range(env.num_envs)
    ]
