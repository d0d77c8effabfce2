"""Training of Dreamer and plan2explore agents in lock-step episodes, and what they gather.

The frame is that of the soft actor-critics (`online/collector.py`): an episode of all environments
together is the unit, and simulators and noise are made anew at every checkpoint. An agent's product
is its replay: unlike a soft actor-critic's policies, a recurrent one is not kept.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lawm_jax import runner
from lawm_jax.checkpoint import Checkpoints
from lawm_jax.data.windows import TrajectoryArrays
from lawm_jax.envs.dmc import ControlSuite, task_spec
from lawm_jax.errors import InputError
from lawm_jax.gathered import DREAMER, PLAN2EXPLORE, Gathered
from lawm_jax.lawm import evaluate
from lawm_jax.online import collector, dreamer
from lawm_jax.online.collector import Training
from lawm_jax.online.dreamer import DreamerConfig, DreamerState

CHECKPOINT_EPISODES = 1  # a lock-step episode takes minutes


@flax.struct.dataclass
class Collection:
    """Everything that an agent's training remembers between two episodes.

    Attributes:
        learner: world model with its normaliser, agent, ensemble, their seeds and steps.
        replay: all experience so far, [E * num_envs] trajectories.
        returns: [E] mean return of each lock-step episode; 0 where still to come.
        episode: [] int32 episodes done.
    """

    learner: DreamerState
    replay: TrajectoryArrays
    returns: jax.Array
    episode: jax.Array


class Functions(NamedTuple):
    """What a training calls, each compiled once."""

    mesh: Mesh
    learn: Callable[..., tuple[DreamerState, Any]]
    act: evaluate.Actor
    append: Callable[..., TrajectoryArrays]


@functools.cache
def make_functions(config: DreamerConfig) -> Functions:
    """The functions of these settings: agents that differ in their seeds share them."""
    mesh = runner.make_mesh(jax.devices()[:1])  # a replay of lock-step episodes does not divide
    return Functions(
        mesh,
        learn=runner.data_parallel(dreamer.make_step(config), mesh),
        act=evaluate.make_actor(config.program.model, config.program.agent),
        append=jax.jit(dreamer.append, donate_argnums=0),
    )


def train_agent(
    task: str,
    seed: int,
    training: Training,
    config: DreamerConfig,
    normaliser_episodes: int,
    log: Callable[[int, dict[str, float]], None] = lambda step, metrics: None,
    stop: Callable[[], bool] = lambda: False,
    checkpoints: Checkpoints | None = None,
) -> Gathered | None:
    """Trains one agent and returns what it gathered.

    It acts by samples of its policy and filters with the actions that it executes. Observations
    are normalised by moments of the replay, fitted at the end of the warm-up and of each of the
    first `normaliser_episodes` lock-step episodes, and frozen from then on: every refit shifts the
    inputs of networks that have learned from earlier ones.

    Args:
        task: a control-suite task.
        seed: of the networks, the environments and the noise.
        training: length and density; `snapshot_steps` is not used.
        config: the learner's settings; `ensemble` makes it an explorer.
        normaliser_episodes: as above, >= 0.
        log: called at every episode's end with (agent steps, metrics).
        stop: polled after every chunk; True gives up.
        checkpoints: where training is saved as it goes, and continued from, bit for bit.

    Returns:
        The replay, or None if stopped.

    Raises:
        InputError: unknown task; steps that do not divide; a damaged checkpoint.
        TrainingError: a metric is NaN or Inf.
    """
    _check(training, config)
    functions = make_functions(config)

    def play(env: ControlSuite, noise: np.random.Generator, state: Collection) -> Any:
        return _run_episode(
            functions, env, noise, state, training, config, normaliser_episodes, stop
        )

    state = collector.run_episodes(
        task, seed, training, _init(task, seed, training, config, functions), play, log,
        checkpoints, CHECKPOINT_EPISODES,
    )
    if state is None:
        return None
    return Gathered(
        task=task,
        collector=PLAN2EXPLORE if config.ensemble else DREAMER,
        seed=seed,
        num_envs=training.num_envs,
        observation=np.asarray(state.replay.observation),
        action=np.asarray(state.replay.action),
        reward=np.asarray(state.replay.reward),
        settings=_settings(training, config, normaliser_episodes),
    )


def _init(
    task: str, seed: int, training: Training, config: DreamerConfig, functions: Functions
) -> Collection:
    spec = task_spec(task)
    replay = dreamer.make_replay(
        training.episodes, training.num_envs, training.episode_steps, spec.observation_size,
        spec.action_size,
    )
    return Collection(
        learner=runner.replicate(dreamer.init(config, seed), functions.mesh),
        replay=runner.shard(replay, functions.mesh),
        returns=jnp.zeros(training.episodes),
        episode=jnp.int32(0),
    )


def _run_episode(
    functions: Functions,
    env: ControlSuite,
    noise: np.random.Generator,
    state: Collection,
    training: Training,
    config: DreamerConfig,
    normaliser_episodes: int,
    stop: Callable[[], bool],
) -> tuple[Collection, dict[str, float]] | None:
    """One lock-step episode, learning after every chunk; None if stopped."""
    learner, replay, episode = state.learner, state.replay, int(state.episode)
    updates = training.chunk * training.num_envs // training.steps_per_update
    observation, last, metrics = env.reset(), None, {}
    returns = np.zeros(training.num_envs)
    shape = (training.num_envs, config.program.agent.policy_size)
    first = episode * training.episode_steps  # vector steps so far
    for t in range(training.chunk, training.episode_steps + 1, training.chunk):
        params = evaluate.policy_params(learner.world, learner.agent)
        observations, actions, rewards = [observation], [], []
        for _ in range(training.chunk):
            z = noise.standard_normal(shape, np.float32)
            last = functions.act(params, last, observation, z)
            actions.append(np.asarray(last.action))
            observation, reward = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
        returns += np.sum(rewards, axis=0)
        chunk = (np.stack(x, 1) for x in (observations, actions, rewards))
        replay = functions.append(replay, *chunk)
        done = first + t
        ends = t == training.episode_steps
        if done == training.warmup or (ends and episode < normaliser_episodes):
            fitted = runner.replicate(dreamer.fit_normaliser(replay), functions.mesh)
            learner = learner.replace(world=learner.world.replace(normaliser=fitted))
        if done >= training.warmup:
            learner, metrics = functions.learn(learner, None, replay, steps=updates)
        if stop():
            return None
    mean = float(returns.mean())
    state = Collection(learner, replay, state.returns.at[episode].set(mean), state.episode + 1)
    return state, {"return": mean, **{name: float(x.mean()) for name, x in metrics.items()}}


def _settings(
    training: Training, config: DreamerConfig, normaliser_episodes: int
) -> dict[str, Any]:
    """What decides the outcome, as JSON values: a replay's description."""
    program = config.program
    sizes = ("deterministic", "stochastic", "units", "layers")
    settings = {
        "training": dataclasses.asdict(training) | {"normaliser_episodes": normaliser_episodes},
        "sizes": {name: getattr(program.model, name) for name in sizes},
        "elbo": dataclasses.asdict(program.elbo),
        "world_model": dataclasses.asdict(program.learner),
        "agent": dataclasses.asdict(program.agent),
        "ensemble": config.ensemble and dataclasses.asdict(config.ensemble),
    }
    # Offline training's lengths, and what only soft actor-critics do, say nothing here.
    del settings["training"]["snapshot_steps"]
    del settings["world_model"]["steps"], settings["agent"]["steps"]
    return settings


def _check(training: Training, config: DreamerConfig) -> None:
    collector.check_episodes(training)
    chunk, window = training.chunk, config.program.learner.window
    if training.episode_steps % chunk or training.warmup % chunk:
        raise InputError(
            f"an episode of {training.episode_steps} agent steps and a warm-up of "
            f"{training.warmup} do not divide into chunks of {chunk}"
        )
    if training.chunk * training.num_envs % training.steps_per_update:
        raise InputError(
            f"a chunk of {chunk} steps of {training.num_envs} environments does not divide into "
            f"updates every {training.steps_per_update} agent steps"
        )
    if not window - 1 <= training.warmup <= training.episode_steps:
        raise InputError(
            f"a window of {window} observations does not fit into the warm-up's "
            f"{training.warmup} steps"
        )
