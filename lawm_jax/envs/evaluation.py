"""What a policy earns in the simulator, and what its critic expected."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.data.trajectory import Trajectory
from lawm_jax.envs.dmc import ControlSuite
from lawm_jax.envs.rollout import rollout
from lawm_jax.returns import discounted_return


def return_summary(returns: np.ndarray) -> dict[str, float]:
    """Statistics of returns [N >= 2]; the interval is 1.96 standard errors."""
    spread = float(returns.std(ddof=1))
    return {
        "return_mean": float(returns.mean()),
        "return_std": spread,
        "return_ci95": 1.96 * spread / len(returns) ** 0.5,
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "episodes": len(returns),
    }


class Evaluation(NamedTuple):
    """Episodes in the simulator and what the critic expected of them at their first step."""

    trajectories: list[Trajectory]
    predicted: np.ndarray | None  # [N] the critic's discounted return; None without a critic
    discounted: np.ndarray  # [N] the real one

    def summary(self) -> dict[str, float]:
        """Return statistics over episodes and, with a critic, what it expected of them."""
        summary = return_summary(np.array([t.episode_return for t in self.trajectories]))
        summary["real_value"] = float(self.discounted.mean())
        if self.predicted is not None:
            summary["predicted_value"] = float(self.predicted.mean())
            summary["value_overestimation"] = float((self.predicted - self.discounted).mean())
        return summary


def play(
    env: ControlSuite,
    act: Callable[[Any, np.ndarray, int], tuple[np.ndarray, Any]],
    expect: Callable[[np.ndarray], jax.Array] | None,
    discount: float,
) -> Evaluation:
    """Plays one episode in every environment.

    Args:
      act: the policy, as `rollout` calls it.
      expect: first observations [N, O] -> the discounted returns [N] that the critic expects.
      discount: per agent step.
    """
    trajectories = rollout(env, act, None)
    first = np.stack([t.observation[0] for t in trajectories])
    rewards = np.stack([t.reward for t in trajectories], 1)
    return Evaluation(
        trajectories,
        predicted=None if expect is None else np.asarray(expect(first)),
        discounted=np.asarray(discounted_return(jnp.asarray(rewards), discount)),
    )
