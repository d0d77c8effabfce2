"""Trajectories: what the program learns from, and the checks on them.

One alignment for the whole code base: a trajectory of length T stores observation[0..T],
action[0..T-1] and reward[0..T-1]; action[t] leads from observation[t] to observation[t+1] and
earns reward[t].
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lawm_jax.errors import InputError

ACTION_TOLERANCE = 1e-5  # how far rounding may carry an action past [-1, 1]


@dataclass(frozen=True)
class Trajectory:
    """One episode, or a piece of one, with or without its actions.

    Attributes:
        observation: [T+1, O] float32.
        action: [T, A] float32 in [-1, 1], or None for an unlabelled trajectory.
        reward: [T] float32.
        source: where it came from, e.g. "seed0/step120000".
    """

    observation: np.ndarray
    action: np.ndarray | None
    reward: np.ndarray
    source: str = ""

    @property
    def length(self) -> int:
        """Number of transitions, T."""
        return len(self.reward)

    @property
    def episode_return(self) -> float:
        """Undiscounted sum of the rewards."""
        return float(np.sum(self.reward, dtype=np.float64))


def validate(
    trajectories: Sequence[Trajectory],
    *,
    where: str,
    observation_size: int | None = None,
    action_size: int | None = None,
) -> None:
    """Checks shapes, finiteness and the range of actions.

    Args:
        trajectories: at least one.
        where: names the data in the error, e.g. a data set's or a file's name.
        observation_size: O; None takes that of the first trajectory.
        action_size: A; None takes that of the first labelled trajectory.

    Raises:
        InputError: names the first trajectory, and the step, that is wrong.
    """
    if not trajectories:
        raise InputError(f"{where}: holds no trajectories")
    for index, trajectory in enumerate(trajectories):
        at = f"{where}: trajectory {index}"
        if trajectory.source:
            at += f" ({trajectory.source})"
        _check_shapes(trajectory, at, observation_size, action_size)
        _check_values(trajectory, at)
        observation_size = trajectory.observation.shape[1]
        if trajectory.action is not None:
            action_size = trajectory.action.shape[1]


def return_statistics(trajectories: Iterable[Trajectory]) -> dict[str, float | int]:
    """Statistics of the episode returns, as in Table 4 of the LAWM paper.

    Returns:
        floats mean, std (of the population), min, p25, median, p75, max; int trajectories, a count.
    """
    returns = np.array([trajectory.episode_return for trajectory in trajectories])
    minimum, p25, median, p75, maximum = np.percentile(returns, [0, 25, 50, 75, 100]).tolist()
    return {
        "mean": float(returns.mean()),
        "std": float(returns.std()),
        "min": minimum,
        "p25": p25,
        "median": median,
        "p75": p75,
        "max": maximum,
        "trajectories": len(returns),
    }


def fingerprint(trajectories: Iterable[Trajectory]) -> str:
    """SHA-256 (hex) over every array and source of the trajectories, in their order."""
    digest = hashlib.sha256()
    for trajectory in trajectories:
        arrays = (trajectory.observation, trajectory.action, trajectory.reward)
        shapes = [None if array is None else array.shape for array in arrays]
        digest.update(repr((shapes, trajectory.source)).encode())  # marks where each array ends
        for array in arrays:
            if array is not None:
                digest.update(np.ascontiguousarray(array, "<f4"))
    return digest.hexdigest()


def _check_shapes(
    trajectory: Trajectory, at: str, observation_size: int | None, action_size: int | None
) -> None:
    observation, action, reward = trajectory.observation, trajectory.action, trajectory.reward
    if reward.ndim != 1 or len(reward) < 1:
        raise InputError(f"{at}: reward must have shape [T] with T >= 1, not {reward.shape}")
    _check_matrix(observation, "observation", len(reward) + 1, observation_size, at)
    if action is not None:
        _check_matrix(action, "action", len(reward), action_size, at)


def _check_matrix(array: np.ndarray, name: str, rows: int, size: int | None, at: str) -> None:
    if array.ndim != 2 or array.shape[1] < 1:
        raise InputError(f"{at}: {name} must have shape [steps, size], not {array.shape}")
    if len(array) != rows:
        raise InputError(
            f"{at}: {len(array)} rows of {name} where its {rows - (name == 'observation')} rewards "
            f"call for {rows} (T+1 observations, T actions, T rewards)"
        )
    if size is not None and array.shape[1] != size:
        raise InputError(f"{at}: {name} has {array.shape[1]} numbers a step, not {size}")


def _check_values(trajectory: Trajectory, at: str) -> None:
    for name in ("observation", "action", "reward"):
        array = getattr(trajectory, name)
        if array is not None and not np.isfinite(array).all():
            step = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise InputError(f"{at}, step {step}: {name} holds NaN or Inf")
    action = trajectory.action
    if action is not None and np.abs(action).max() > 1 + ACTION_TOLERANCE:
        step, dimension = np.argwhere(np.abs(action) > 1 + ACTION_TOLERANCE)[0]
        raise InputError(
            f"{at}, step {step}: action[{dimension}] = {action[step, dimension]:.6g} is outside "
            "[-1, 1]; scale the actions to that range"
        )
