"""What Dreamer-based agents gathered in training, and the data sets that are parts of it.

A replay is its own data set: nothing is rolled out again. With the level of an agent taken as the
best mean return of its lock-step episodes,

  expert         lock-step episodes that returned at least 90% of the level
  medium         those between 40% and 60% of it
  medium_replay  all until half of it was first reached
  plan2explore   all of an explorer, which never saw the task's reward
Actions are samples of the policy of that time, which learned on while it acted.
"""

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from lawm_jax import npz
from lawm_jax.data.trajectory import Trajectory, return_statistics
from lawm_jax.envs.dmc import task_spec
from lawm_jax.errors import InputError
from lawm_jax.policies import DATASETS, evenly

DREAMER = "Dreamer: episodes of its own replay"
PLAN2EXPLORE = (
    "plan2explore: episodes of the replay of a Dreamer whose reward is an ensemble's disagreement"
)

EXPERT_SHARE, HALF, MEDIUM_MARGIN = 0.9, 0.5, 0.1


class TooFew(InputError):
    """Agents gathered fewer episodes of a kind than a data set is to hold."""


@dataclasses.dataclass(frozen=True)
class Gathered:
    """All episodes of one agent's training, lock-step episode after lock-step episode.

    Attributes:
        task: the task's name.
        collector: DREAMER or PLAN2EXPLORE.
        seed: the agent's.
        num_envs: environments N in lock step; R is a multiple of it.
        observation: [R, T + 1, O] float32.
        action: [R, T, A] float32.
        reward: [R, T] float32.
        settings: what the training was run with (JSON values).
        digest: SHA-256 of the file, "" where there is none.
    """

    task: str
    collector: str
    seed: int
    num_envs: int
    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    settings: dict[str, Any]
    digest: str = ""

    @property
    def returns(self) -> np.ndarray:
        """[R / N] mean return of each lock-step episode."""
        return self.reward.sum(1, dtype=np.float64).reshape(-1, self.num_envs).mean(1)


def save(path: epath.PathLike, gathered: Gathered) -> None:
    """Writes one npz file; the bytes depend on the content alone."""
    header = {
        name: getattr(gathered, name)
        for name in ("task", "collector", "seed", "num_envs", "settings")
    }
    arrays = {name: getattr(gathered, name) for name in ("observation", "action", "reward")}
    npz.write(path, header, arrays)


def load(path: epath.PathLike) -> Gathered:
    """Reads a file that `save` wrote; raises InputError where it is damaged."""
    header, arrays, digest = npz.read(path)
    return Gathered(**header, **arrays, digest=digest)


def make_dataset(
    task: str, dataset: str, num_trajectories: int, agents: list[Gathered]
) -> tuple[list[Trajectory], dict[str, Any]]:
    """Picks the trajectories of one data set, spread evenly over what each agent has for it.

    Args:
        task: the agents' task.
        dataset: one of DATASETS.
        num_trajectories: in all; the agents' numbers differ by at most one.
        agents: those that learned the task or, for plan2explore, those that explored.

    Returns:
        The trajectories, in the order of agents and of their training, and the data set's metadata
        (JSON values), with the statistics of the returns (the paper's Table 4).

    Raises:
        InputError: unknown data set, or too few trajectories asked for.
        TooFew: there are fewer.
    """
    if dataset not in DATASETS:
        raise InputError(f"unknown dataset '{dataset}': choose from {', '.join(DATASETS)}")
    if num_trajectories < 1:
        raise InputError(f"a dataset needs at least 1 trajectory, not {num_trajectories}")
    trajectories, parts = [], []
    for position, agent in enumerate(agents):
        share = num_trajectories // len(agents) + (position < num_trajectories % len(agents))
        rows = _rows(agent, dataset)
        if share > len(rows):
            raise TooFew(
                f"agent {agent.seed} gathered {len(rows)} such episodes, not the "
                f"{share} wanted: raise collect.agent_steps (or explorer_steps), or lower "
                "data.trajectories"
            )
        rows = rows[evenly(len(rows) - 1, share)] if share else rows[:0]
        trajectories += [_trajectory(agent, row) for row in rows]
        parts.append({"seed": agent.seed, "trajectories": len(rows), "sha256": agent.digest,
                      "settings": agent.settings})
    metadata = {
        "task": task,
        "dataset": dataset,
        "collector": agents[0].collector,
        "agents": parts,
        "replay_sha256": replay_digest(agents),
        "action_repeat": 2,
        "observation_keys": list(task_spec(task).observation_keys),
        "return_statistics": return_statistics(trajectories),
    }
    return trajectories, metadata


def replay_digest(agents: list[Gathered]) -> str:
    """Tells one set of agents' files from another."""
    return " ".join(agent.digest for agent in agents)


def _rows(agent: Gathered, dataset: str) -> np.ndarray:
    """Which of an agent's episodes a data set may hold."""
    share = agent.returns / max(agent.returns.max(), 1e-9)
    episodes = np.arange(len(share))
    chosen = {
        "expert": share >= EXPERT_SHARE,
        "medium": np.abs(share - HALF) <= MEDIUM_MARGIN,
        "medium_replay": episodes <= np.argmax(share >= HALF),
        "plan2explore": np.ones(len(share), bool),
    }[dataset]
    return np.flatnonzero(np.repeat(chosen, agent.num_envs))


def _trajectory(agent: Gathered, row: int) -> Trajectory:
    step = row // agent.num_envs * agent.num_envs * agent.reward.shape[1]
    return Trajectory(
        observation=agent.observation[row],
        action=agent.action[row],
        reward=agent.reward[row],
        source=f"seed{agent.seed}/step{step}",
    )
