"""Frozen behaviour policies: which of an agent's training are kept, and the files they ship in.

One small npz file a task holds the policies that its four data sets need (`collect` says which
those are), as float16 parameters and a JSON header.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from lawm_jax import npz
from lawm_jax.envs.dmc import task_spec
from lawm_jax.errors import InputError

DATASETS = ("expert", "medium", "medium_replay", "plan2explore")
SHIPPED = Path(__file__).parent / "snapshots"

TASK, EXPLORE = "soft actor-critic", "ensemble-disagreement soft actor-critic, not Dreamer-based"

REPLAY_SNAPSHOTS = 10  # at most, an agent, in medium_replay and in plan2explore
MEDIUM_SNAPSHOTS = 2  # an agent
EXPERT_SNAPSHOTS = 2  # an agent
EXPERT_LEVEL = 0.75  # share of the best agent's return that makes an agent an expert


@dataclasses.dataclass(frozen=True)
class Snapshots:
    """S frozen policies of one task.

    Attributes:
        task: the task's name.
        collector: [S] how the policy was trained: TASK or EXPLORE.
        seed: [S] int, the agent's seed.
        step: [S] int, agent steps of training.
        episode_return: [S] float, mean return of a few episodes of the frozen stochastic policy.
        actor: parameters of `sac.Actor`, every leaf [S, ...] float16.
        used_by: data set -> [S] bool, or an empty dict before `combine`.
        settings: what the training was run with (JSON values), by "collector/seed".
        digest: SHA-256 of the file, "" where there is none.
    """

    task: str
    collector: np.ndarray
    seed: np.ndarray
    step: np.ndarray
    episode_return: np.ndarray
    actor: Any
    used_by: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    digest: str = ""

    def take(self, index: np.ndarray) -> "Snapshots":
        """The snapshots at `index`, an int or bool array."""
        return dataclasses.replace(
            self,
            collector=self.collector[index],
            seed=self.seed[index],
            step=self.step[index],
            episode_return=self.episode_return[index],
            actor=jax.tree.map(lambda x: x[index], self.actor),
            used_by={name: mask[index] for name, mask in self.used_by.items()},
        )


def evenly(last: int, count: int) -> np.ndarray:
    """At most `count` evenly spaced integers from 0 to `last`, both included."""
    return np.unique(np.round(np.linspace(0, last, count)).astype(int))


def combine(agents: list[Snapshots]) -> Snapshots:
    """Joins the agents of one task and keeps the snapshots that the data sets use.

    An agent whose best return is below EXPERT_LEVEL of the best agent's never became an expert and
    is left out; explorers always stay.
    """
    best = max((a.episode_return.max() for a in agents if a.collector[0] == TASK), default=0.0)
    agents = [
        agent
        for agent in agents
        if agent.collector[0] == EXPLORE or agent.episode_return.max() >= EXPERT_LEVEL * best
    ]
    chosen = [_choose(agent) for agent in agents]
    settings = {name: value for agent in agents for name, value in agent.settings.items()}
    return dataclasses.replace(
        chosen[0],
        collector=np.concatenate([agent.collector for agent in chosen]),
        seed=np.concatenate([agent.seed for agent in chosen]),
        step=np.concatenate([agent.step for agent in chosen]),
        episode_return=np.concatenate([agent.episode_return for agent in chosen]),
        actor=jax.tree.map(lambda *x: np.concatenate(x), *[agent.actor for agent in chosen]),
        used_by={
            name: np.concatenate([agent.used_by[name] for agent in chosen]) for name in DATASETS
        },
        settings=settings,
    )


def _choose(agent: Snapshots) -> Snapshots:
    """Marks which of one agent's snapshots each data set uses and drops the rest."""
    returns = agent.episode_return
    count = len(returns)
    used = {name: np.zeros(count, bool) for name in DATASETS}
    if agent.collector[0] == EXPLORE:
        used["plan2explore"][evenly(count - 1, REPLAY_SNAPSHOTS)] = True
    else:
        expert = np.flatnonzero(returns >= 0.9 * returns.max())[-EXPERT_SNAPSHOTS:]
        used["expert"][expert] = True
        half = returns[expert].mean() / 2
        reached = int(np.argmax(returns >= half))
        near = np.argsort(np.abs(returns[: reached + 2] - half), kind="stable")
        used["medium"][near[:MEDIUM_SNAPSHOTS]] = True
        used["medium_replay"][evenly(reached, REPLAY_SNAPSHOTS)] = True
    agent = dataclasses.replace(agent, used_by=used)
    return agent.take(np.any(list(used.values()), axis=0))


def save_snapshots(path: epath.PathLike, snapshots: Snapshots) -> None:
    """Writes one npz file; the bytes depend on the content alone."""
    arrays = {
        "/".join(key.key for key in keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(snapshots.actor)
    }
    header = {
        "task": snapshots.task,
        "collector": snapshots.collector.tolist(),
        "seed": snapshots.seed.tolist(),
        "step": snapshots.step.tolist(),
        "episode_return": [round(float(x), 2) for x in snapshots.episode_return],
        "used_by": {name: mask.tolist() for name, mask in snapshots.used_by.items()},
        "settings": snapshots.settings,
    }
    npz.write(path, header, arrays)


def load_snapshots(task: str, path: epath.PathLike | None = None) -> Snapshots:
    """Reads a snapshot file.

    Args:
        task: the task that the file must be of.
        path: the file; None takes the one shipped with the package.

    Raises:
        InputError: no such file, a damaged one or one of another task.
    """
    path = epath.Path(path) if path else epath.Path(SHIPPED / f"{task}.npz")
    if not path.exists():
        task_spec(task)  # a misspelt task deserves its own message
        raise InputError(
            f"no policy snapshots of {task} at {path}: train them with "
            f"'python -m experiments.collect --config=configs/dmc.py:{task}'"
        )
    header, leaves, digest = npz.read(path)
    if header["task"] != task:
        raise InputError(f"{path} holds policies of {header['task']}, not of {task}")
    return Snapshots(
        task=task,
        collector=np.array(header["collector"]),
        seed=np.array(header["seed"]),
        step=np.array(header["step"]),
        episode_return=np.array(header["episode_return"]),
        actor=_nest(leaves),
        used_by={name: np.array(mask, bool) for name, mask in header["used_by"].items()},
        settings=header["settings"],
        digest=digest,
    )


def _nest(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
