"""Training of behaviour policies: soft actor-critic agents and explorers, in lock-step episodes.

An episode of all environments together is the unit. Simulators have no snapshots, so they and the
exploration noise are made anew every CHECKPOINT_EPISODES, from a seed that follows from the agent's
and the episode: an agent that continues from a checkpoint sees what an uninterrupted one would.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import flax
import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.checkpoint import Checkpoints
from lawm_jax.collect import evaluate
from lawm_jax.envs.dmc import ControlSuite, task_spec
from lawm_jax.errors import InputError, TrainingError
from lawm_jax.online import replay as replay_buffer
from lawm_jax.online import sac
from lawm_jax.policies import EXPLORE, REPLAY_SNAPSHOTS, TASK, Snapshots, evenly

S = TypeVar("S")

CHECKPOINT_EPISODES = 5  # lock-step episodes between two checkpoints


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
        episode_steps: agent steps of an episode.
    """

    agent_steps: int
    num_envs: int = 16
    steps_per_update: int = 4
    chunk: int = 5
    snapshot_steps: int = 8000
    warmup: int = 250
    episode_steps: int = 500

    @property
    def episodes(self) -> int:
        """Lock-step episodes in all."""
        return self.agent_steps // (self.episode_steps * self.num_envs)


@flax.struct.dataclass
class Collection:
    """Everything that an agent's training remembers between two episodes.

    Attributes:
        learner: the soft actor-critic.
        replay: all experience so far.
        actors: compact policies [S, ...], one a snapshot; zeros where still to come.
        returns: [E] mean return of each lock-step episode; 0 where still to come.
        episode: [] int32 episodes done.
    """

    learner: sac.SACState
    replay: replay_buffer.Replay
    actors: Any
    returns: jax.Array
    episode: jax.Array


def train_agent(
    task: str,
    seed: int,
    training: Training,
    config: sac.SACConfig,
    log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoints: Checkpoints | None = None,
) -> Snapshots | None:
    """Trains one agent and returns snapshots of its policy, with their returns.

    Args:
        task: a control-suite task.
        seed: of the networks, the environments and the noise.
        training: length and density.
        config: the learner's settings; `intrinsic` makes it an explorer.
        log: called at every episode's end with (agent steps, metrics).
        stop: polled after every chunk; True gives up.
        checkpoints: where training is saved as it goes, and continued from, bit for bit.

    Returns:
        Snapshots in the order of training, or None if stopped.

    Raises:
        InputError: unknown task; steps that do not divide; a damaged checkpoint.
        TrainingError: a metric is NaN or Inf.
    """
    check_episodes(training)
    _check_snapshots(training)
    state = run_episodes(
        task, seed, training, _init(task, seed, training, config),
        lambda env, noise, state: _run_episode(env, noise, state, training, config, stop),
        log, checkpoints, CHECKPOINT_EPISODES,
    )
    return None if state is None else _snapshots(task, seed, state, training, config)


def run_episodes(
    task: str,
    seed: int,
    training: Training,
    state: S,
    play: Callable[[ControlSuite, np.random.Generator, S], tuple[S, dict[str, float]] | None],
    log: Callable[[int, dict[str, float]], None],
    checkpoints: Checkpoints | None,
    checkpoint_episodes: int,
) -> S | None:
    """Trains in lock-step episodes: what every collector's training has in common.

    Args:
        state: fresh, with a counter `episode`; a checkpoint's takes its place.
        play: plays an episode in these environments, with this noise, learning as it goes, and
            returns the state and metrics, or None to give up.
        log, checkpoints: as in `train_agent`.
        checkpoint_episodes: lock-step episodes between two checkpoints, at each of which the
            environments and the noise are made anew.

    Returns:
        The last state, or None if `play` gave up.

    Raises:
        InputError: a damaged checkpoint.
        TrainingError: a metric is NaN or Inf.
    """
    restored = checkpoints.restore(state) if checkpoints else None
    state = restored.state if restored else state
    env = None
    try:
        for episode in range(int(state.episode), training.episodes):
            if episode % checkpoint_episodes == 0:
                if env is not None:
                    env.close()
                env, noise = _fresh(task, seed, episode, training)
            result = play(env, noise, state)
            if result is None:
                return None
            state, metrics = result
            done = (episode + 1) * training.episode_steps * training.num_envs
            for name, value in metrics.items():
                if not np.isfinite(value):
                    raise TrainingError(f"{task}, seed {seed}: {name} is {value} at step {done}")
            log(done, metrics)
            if checkpoints and (episode + 1) % checkpoint_episodes == 0:
                checkpoints.save(episode + 1, state, {})
    finally:
        if env is not None:
            env.close()
    return state


def _init(task: str, seed: int, training: Training, config: sac.SACConfig) -> Collection:
    spec = task_spec(task)
    learner = sac.init(seed, spec.observation_size, spec.action_size, config)
    count = len(_snapshot_steps(training))
    blank = lambda x: jnp.zeros((count, *x.shape), jnp.float16)
    return Collection(
        learner=learner,
        replay=replay_buffer.empty_replay(
            training.episodes, training.episode_steps, training.num_envs, spec.observation_size,
            spec.action_size,
        ),
        actors=jax.tree.map(blank, sac.acting_params(learner)),
        returns=jnp.zeros(training.episodes),
        episode=jnp.int32(0),
    )


def _fresh(
    task: str, seed: int, episode: int, training: Training
) -> tuple[ControlSuite, np.random.Generator]:
    """Environments and exploration noise from this episode on."""
    sequence = np.random.SeedSequence([seed, episode])
    env_seed = int(sequence.generate_state(1)[0] >> 1)
    env = ControlSuite(task, training.num_envs, env_seed, episode_steps=training.episode_steps)
    return env, np.random.default_rng(sequence)


def _run_episode(
    env: ControlSuite,
    noise: np.random.Generator,
    state: Collection,
    training: Training,
    config: sac.SACConfig,
    stop: Callable[[], bool],
) -> tuple[Collection, dict[str, float]] | None:
    """One lock-step episode, learning after every chunk; None if stopped."""
    learner, replay, actors = state.learner, state.replay, state.actors
    updates = training.chunk * training.num_envs // training.steps_per_update
    first = int(state.episode) * training.episode_steps  # vector steps so far
    observation, returns, metrics = env.reset(), np.zeros(training.num_envs), {}
    for t in range(first, first + training.episode_steps, training.chunk):
        actor = sac.acting_params(learner)
        if t * training.num_envs % training.snapshot_steps == 0:
            actors = _keep(actors, actor, t * training.num_envs // training.snapshot_steps)
        observations, actions, rewards = [observation], [], []
        for _ in range(training.chunk):
            z = noise.standard_normal((training.num_envs, env.spec.action_size), np.float32)
            action = np.asarray(sac.act(actor, observation, z, config.actor_units))
            observation, reward = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(reward)
        returns += np.sum(rewards, axis=0)
        learner, replay, metrics = sac.learn(
            learner,
            replay,
            np.stack(observations),
            np.stack(actions),
            np.stack(rewards),
            updates if t + training.chunk > training.warmup else 0,
            config,
        )
        if stop():
            return None
    mean = float(returns.mean())
    state = Collection(
        learner, replay, actors, state.returns.at[state.episode].set(mean), state.episode + 1
    )
    return state, {"return": mean, **{name: float(value) for name, value in metrics.items()}}


def _snapshot_steps(training: Training) -> list[int]:
    """Agent steps at which a policy is kept: regularly, and the last."""
    return [*range(0, training.agent_steps, training.snapshot_steps), training.agent_steps]


def _keep(actors: Any, actor: Any, index: int) -> Any:
    return jax.tree.map(lambda all_, x: all_.at[index].set(x), actors, _compact(actor))


def _snapshots(
    task: str, seed: int, state: Collection, training: Training, config: sac.SACConfig
) -> Snapshots:
    """The policies worth keeping, each with the return of a few episodes."""
    steps = _snapshot_steps(training)
    actors = _keep(state.actors, sac.acting_params(state.learner), len(steps) - 1)
    collector = EXPLORE if config.intrinsic else TASK
    returns = np.asarray(state.returns, float)
    settings = {**dataclasses.asdict(training), **dataclasses.asdict(config)}
    settings["training_returns"] = [round(x, 1) for x in returns.tolist()]
    snapshots = Snapshots(
        task=task,
        collector=np.array([collector] * len(steps)),
        seed=np.full(len(steps), seed),
        step=np.array(steps),
        episode_return=np.zeros(len(steps)),
        actor=jax.tree.map(np.asarray, actors),
        settings={f"{collector}/{seed}": settings},
    )
    middles = (0.5 + np.arange(len(returns))) * training.episode_steps * training.num_envs
    behaviour = np.interp(snapshots.step, middles, returns)
    return evaluate(snapshots.take(_candidates(behaviour, config.intrinsic)), seed)


def check_episodes(training: Training) -> None:
    """Raises InputError unless the agent steps make whole lock-step episodes."""
    per_episode = training.num_envs * training.episode_steps
    if training.agent_steps < per_episode or training.agent_steps % per_episode:
        raise InputError(
            f"an agent trains for whole lock-step episodes of {per_episode} agent steps: "
            f"{training.agent_steps} is not a multiple of that"
        )


def _check_snapshots(training: Training) -> None:
    per_chunk = training.num_envs * training.chunk
    if training.snapshot_steps < 1 or training.snapshot_steps % per_chunk:
        raise InputError(
            f"policies are kept at multiples of {per_chunk} agent steps, not every "
            f"{training.snapshot_steps}"
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
