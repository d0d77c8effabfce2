"""Behaviour policies and the data sets that they collect (LAWM paper, appendix E).

    train_agent -> Snapshots of one agent over its training   (minutes an agent)
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
from lawm_jax.errors import InputError, TrainingError
from lawm_jax.online import replay as replay_buffer
from lawm_jax.online import sac
from lawm_jax.policies import DATASETS, EXPLORE, REPLAY_SNAPSHOTS, TASK, Snapshots, evenly

EVALUATION_EPISODES = 12  # behind the return that is noted for each snapshot
EPISODE_STEPS = 500
ROLLOUT_ENVS = 32  # at a time: more would save dispatches, but simulators are slow to build


@dataclasses.dataclass(frozen=True)
class Training:
    """How long and how densely an agent is trained.

    Attributes:
        agent_steps: environment steps of the agent in all, whole lock-step episodes (of 8,000).
        num_envs: environments in lock step.
        steps_per_update: agent steps for one update.
        chunk: vector steps between two calls of the learner; divides the episode's length.
        snapshot_steps: agent steps between two snapshots, a multiple of num_envs * chunk.
        warmup: vector steps by the untrained policy before the first update, less than an episode.
    """

    agent_steps: int
    num_envs: int = 16
    steps_per_update: int = 4
    chunk: int = 5
    snapshot_steps: int = 8000
    warmup: int = 250


# ---------------------------------------------------------------------------------- training


def train_agent(
    task: str,
    seed: int,
    training: Training,
    config: sac.SACConfig,
    log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    stop: Callable[[], bool] = lambda: False,
) -> Snapshots | None:
    """Trains one agent and returns snapshots of its policy, with their returns.

    Args:
        task: a control-suite task.
        seed: of the networks, the environments and the noise.
        training: length and density.
        config: the learner's settings; `intrinsic` makes it an explorer.
        log: called at every episode's end with (agent steps, metrics).
        stop: polled after every chunk; True gives up.

    Returns:
        Snapshots in the order of training, or None if stopped.

    Raises:
        InputError: unknown task; steps that do not divide.
        TrainingError: a metric is NaN or Inf.
    """
    spec = task_spec(task)
    _check(training)
    env = ControlSuite(task, training.num_envs, seed, episode_steps=EPISODE_STEPS)
    noise = np.random.default_rng(seed)
    state = sac.init(seed, spec.observation_size, spec.action_size, config)
    vector_steps = training.agent_steps // training.num_envs
    replay = replay_buffer.empty_replay(
        -(-vector_steps // env.episode_steps),
        env.episode_steps,
        training.num_envs,
        spec.observation_size,
        spec.action_size,
    )
    updates = training.chunk * training.num_envs // training.steps_per_update
    actors, steps, episode_returns = [], [], []
    for t in range(0, vector_steps, training.chunk):
        actor = sac.acting_params(state)
        if t * training.num_envs % training.snapshot_steps == 0:
            actors.append(_compact(actor))
            steps.append(t * training.num_envs)
        if t % env.episode_steps == 0:
            observation, returns = env.reset(), np.zeros(training.num_envs)
        observations, actions, rewards = [observation], [], []
        for _ in range(training.chunk):
            z = noise.standard_normal((training.num_envs, spec.action_size), np.float32)
            action = np.asarray(sac.act(actor, observation, z, config.actor_units))
            observation, reward = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
        returns += np.sum(rewards, axis=0)
        state, replay, metrics = sac.learn(
            state,
            replay,
            np.stack(observations),
            np.stack(actions),
            np.stack(rewards),
            updates if t + training.chunk > training.warmup else 0,
            config,
        )
        done = t + training.chunk
        if done % env.episode_steps == 0:
            metrics = {name: float(value) for name, value in metrics.items()}
            for name, value in metrics.items():
                if not np.isfinite(value):
                    raise TrainingError(
                        f"{task}, seed {seed}: {name} is {value} after {done} steps"
                    )
            episode_returns.append(float(returns.mean()))
            log(done * training.num_envs, {"return": episode_returns[-1], **metrics})
        if stop():
            env.close()
            return None
    actors.append(_compact(sac.acting_params(state)))
    steps.append(vector_steps * training.num_envs)
    env.close()
    snapshots = Snapshots(
        task=task,
        collector=np.array([EXPLORE if config.intrinsic else TASK] * len(steps)),
        seed=np.full(len(steps), seed),
        step=np.array(steps),
        episode_return=np.zeros(len(steps)),
        actor=jax.tree.map(lambda *x: np.stack(x), *actors),
    )
    settings = {**dataclasses.asdict(training), **dataclasses.asdict(config)}
    settings["training_returns"] = [round(x, 1) for x in episode_returns]
    name = f"{snapshots.collector[0]}/{seed}"
    snapshots = dataclasses.replace(snapshots, settings={name: settings})
    behaviour = np.interp(
        snapshots.step,
        (0.5 + np.arange(len(episode_returns))) * env.episode_steps * training.num_envs,
        episode_returns,
    )
    return evaluate(snapshots.take(_candidates(behaviour, config.intrinsic)), seed)


def _check(training: Training) -> None:
    per_episode, per_chunk = (training.num_envs * n for n in (EPISODE_STEPS, training.chunk))
    if training.agent_steps < per_episode or training.agent_steps % per_episode:
        raise InputError(
            f"an agent trains for whole lock-step episodes of {per_episode} agent steps: "
            f"{training.agent_steps} is not a multiple of that"
        )
    if training.snapshot_steps < 1 or training.snapshot_steps % per_chunk:
        raise InputError(
            f"policies are kept at multiples of {per_chunk} agent steps, not every "
            f"{training.snapshot_steps}"
        )


def evaluate(snapshots: Snapshots, seed: int) -> Snapshots:
    """Fills in `episode_return`, the mean of EVALUATION_EPISODES episodes of each snapshot."""
    index = np.repeat(np.arange(len(snapshots.step)), EVALUATION_EPISODES)
    trajectories = _roll_out(snapshots, index, seed)
    returns = np.array([trajectory.episode_return for trajectory in trajectories])
    return dataclasses.replace(
        snapshots, episode_return=returns.reshape(-1, EVALUATION_EPISODES).mean(axis=1)
    )


def _candidates(behaviour: np.ndarray, explorer: bool) -> np.ndarray:
    """Thins an agent's snapshots by the return seen in training, to those worth evaluating."""
    last = len(behaviour) - 1
    if explorer:
        return evenly(last, REPLAY_SNAPSHOTS)
    # Densely up to well above the medium level, and a few of the rest for the expert.
    above = int(np.argmax(behaviour >= 0.65 * behaviour.max()))
    return np.unique(np.concatenate([evenly(above, 16), above + evenly(last - above, 6)]))


def _compact(tree: Any) -> Any:
    """float16 with 6 bits of mantissa (an error of 0.8% at most), which zip packs into half."""

    def compact(x: jax.Array) -> np.ndarray:
        bits = np.asarray(x, np.float16).view(np.uint16)
        return ((bits + 8) & 0xFFF0).astype(np.uint16).view(np.float16)

    return jax.tree.map(compact, tree)


# -------------------------------------------------------------------------------- data sets


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
