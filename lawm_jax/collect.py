"""The data sets that behaviour policies collect (LAWM paper, appendix E).

    online/collector.train_agent -> Snapshots of one agent over its training   (minutes an agent)
    policies.combine -> the few that the data sets need, as one small file a task (shipped)
    make_dataset -> trajectories of one data set, rolled out from the snapshots

The four data sets, with the same number of trajectories from every seed:
  expert         the last snapshots at the expert's level
  medium         the snapshots nearest to half of the expert's return, when training first got there
  medium_replay  evenly spaced snapshots from the untrained policy up to the medium level, in equal
                 shares: what training saw up to that point
  plan2explore   evenly spaced snapshots of an explorer that never saw the task's reward
Actions are samples of the stochastic policies, as in training.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from lawm_jax.data.trajectory import Trajectory, return_statistics
from lawm_jax.envs.dmc import ControlSuite, task_spec
from lawm_jax.envs.rollout import rollout
from lawm_jax.errors import InputError
from lawm_jax.online import sac
from lawm_jax.policies import DATASETS, Snapshots

EVALUATION_EPISODES = 12  # behind the return that is noted for each snapshot
EPISODE_STEPS = 500
ROLLOUT_ENVS = 32  # at a time: more would save dispatches, but simulators are slow to build


def evaluate(snapshots: Snapshots, seed: int) -> Snapshots:
    """Fills in `episode_return`, the mean of EVALUATION_EPISODES episodes of each snapshot."""
    index = np.repeat(np.arange(len(snapshots.step)), EVALUATION_EPISODES)
    trajectories = _roll_out(snapshots, index, seed)
    returns = np.array([trajectory.episode_return for trajectory in trajectories])
    return dataclasses.replace(
        snapshots, episode_return=returns.reshape(-1, EVALUATION_EPISODES).mean(axis=1)
    )


def make_dataset(
    task: str,
    dataset: str,
    num_trajectories: int,
    seed: int,
    snapshots: Snapshots,
    poll: Callable[[], None] = lambda: None,
) -> tuple[list[Trajectory], dict[str, Any]]:
    """Rolls out the trajectories of one data set; the same arguments give the same data.

    Args:
        task: the snapshots' task.
        dataset: one of DATASETS.
        num_trajectories: in all; the seeds' numbers differ by at most one.
        seed: of the environments and the action noise.
        snapshots: from `load_snapshots` or `combine`.
        poll: called every few seconds; it may raise to give up.

    Returns:
        The trajectories, ordered by agent and snapshot, and the data set's metadata (JSON values):
        where the data came from and the statistics of the returns (the paper's Table 4).

    Raises:
        InputError: unknown data set, no snapshots for it or too few trajectories.
    """
    if dataset not in DATASETS:
        raise InputError(f"unknown dataset '{dataset}': choose from {', '.join(DATASETS)}")
    if snapshots.task != task:
        raise InputError(f"the snapshots are of {snapshots.task}, not of {task}")
    index = np.flatnonzero(snapshots.used_by.get(dataset, np.zeros(0, bool)))
    if not len(index):
        raise InputError(f"the snapshots of {task} hold no policy for the dataset '{dataset}'")
    if num_trajectories < 1:
        raise InputError(f"a dataset needs at least 1 trajectory, not {num_trajectories}")
    counts = shares(snapshots.seed[index], num_trajectories)
    # The four data sets of one seed must not share their episodes' starts.
    seeds = np.random.SeedSequence([seed, DATASETS.index(dataset)])
    trajectories = _roll_out(
        snapshots, np.repeat(index, counts), int(seeds.generate_state(1)[0] >> 1), poll
    )
    spec = task_spec(task)
    metadata = {
        "task": task,
        "dataset": dataset,
        "collector": str(snapshots.collector[index[0]]),
        "seed": seed,
        "agent_seeds": sorted({int(s) for s in snapshots.seed[index]}),
        "snapshots": [
            {
                "seed": int(snapshots.seed[i]),
                "step": int(snapshots.step[i]),
                "episode_return": float(snapshots.episode_return[i]),
                "trajectories": int(count),
            }
            for i, count in zip(index, counts, strict=True)
        ],
        "snapshots_sha256": snapshots.digest,
        "action_repeat": 2,
        "observation_keys": list(spec.observation_keys),
        "return_statistics": return_statistics(trajectories),
    }
    return trajectories, metadata


def shares(agent_seed: np.ndarray, total: int) -> np.ndarray:
    """How many trajectories each snapshot contributes.

    Args:
        agent_seed: [S] the agent's seed of each snapshot.
        total: trajectories in all.

    Returns:
        [S] int: equal parts for the agents, then for the snapshots of each; where a part does not
        divide, agents earlier and snapshots later in training get one more.
    """
    counts = np.zeros(len(agent_seed), int)
    agents = np.unique(agent_seed)
    for position, agent in enumerate(agents):
        mine = np.flatnonzero(agent_seed == agent)
        part = total // len(agents) + (position < total % len(agents))
        counts[mine] = part // len(mine)
        rest = part % len(mine)
        # Spread the rest over the training instead of piling it up at one end.
        counts[mine[np.round(np.linspace(len(mine) - 1, 0, rest)).astype(int)]] += 1
    return counts


def _roll_out(
    snapshots: Snapshots, index: np.ndarray, seed: int, poll: Callable[[], None] = lambda: None
) -> list[Trajectory]:
    """One trajectory of snapshot index[i] for every i, ROLLOUT_ENVS at a time."""
    num_envs = min(ROLLOUT_ENVS, len(index))
    env = ControlSuite(snapshots.task, num_envs, seed, episode_steps=EPISODE_STEPS)
    rng = np.random.default_rng(seed)
    trajectories = []
    for part in _batches(index, num_envs):
        poll()
        actor = jax.tree.map(
            lambda x, part=part: jax.device_put(x[part].astype(np.float32)), snapshots.actor
        )
        for i, trajectory in zip(
            part, rollout(env, lambda actor, o, t: (_act(actor, o, rng), actor), actor), strict=True
        ):
            source = f"seed{snapshots.seed[i]}/step{snapshots.step[i]}"
            trajectories.append(dataclasses.replace(trajectory, source=source))
    env.close()
    return trajectories[: len(index)]


def _batches(index: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cuts `index` into pieces of `size`; the last is filled up by repeating its last entry."""
    for start in range(0, len(index), size):
        part = index[start : start + size]
        yield np.pad(part, (0, size - len(part)), mode="edge")


def _act(actor: Any, observation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Actions [N, A] of N different policies, actor [N, ...], on observations [N, O]."""
    units, double = actor["params"]["Dense_2"]["kernel"].shape[1:]
    noise = rng.standard_normal((len(observation), double // 2), np.float32)
    return np.asarray(_act_each(actor, observation, noise, units))


_act_each = jax.jit(jax.vmap(sac.act, in_axes=(0, 0, 0, None)), static_argnums=3)
