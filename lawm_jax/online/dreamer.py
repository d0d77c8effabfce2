"""Dreamer and plan2explore: world model and actor-critic learned from what the agent gathers.

One step of learning is the offline program's steps in a row, on one batch of replayed windows:

    world model on the windows -> posterior states of the windows -> [ensemble on those states] ->
    actor-critic in imagination from those states

Dreamer (Hafner et al., 2020) maximises the reward that the world model predicts, plan2explore
(Sekar et al., 2020) the disagreement of the ensemble. The model is the plain Dreamer of
`lawm.methods`: the true actions drive it, and the policy's output is the action.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.data.normaliser import Normaliser, fit
from lawm_jax.data.windows import TrajectoryArrays, Windows
from lawm_jax.errors import InputError
from lawm_jax.lawm import actor_critic, learner
from lawm_jax.lawm.actor_critic import AgentState
from lawm_jax.lawm.elbo import Metrics, draw_noise
from lawm_jax.lawm.imagination import Rollout
from lawm_jax.lawm.learner import TrainingData, WorldModelState
from lawm_jax.lawm.methods import Program
from lawm_jax.lawm.world_model import Inference, infer
from lawm_jax.online import ensemble as ensembles
from lawm_jax.online.ensemble import Ensemble, EnsembleConfig, EnsembleState

NORMALISER_OFFSET = 0.1  # added to stds: what hardly moved early on may move a lot later


@dataclasses.dataclass(frozen=True)
class DreamerConfig:
    """The program of method "dreamer", and of an explorer also the ensemble."""

    program: Program
    ensemble: EnsembleConfig | None  # None: Dreamer, which learns the task


@flax.struct.dataclass
class DreamerState:
    """Everything that is learned or counted; randomness follows from the seeds and steps within."""

    world: WorldModelState
    agent: AgentState
    ensemble: EnsembleState | None


Step = Callable[[DreamerState, None, TrajectoryArrays], tuple[DreamerState, Metrics]]


def init(config: DreamerConfig, seed: int) -> DreamerState:
    """Untrained networks and, until it is fitted, a normaliser that changes nothing.

    Raises:
        InputError: the program is not a plain Dreamer's.
    """
    program, model = config.program, config.program.model
    if model.latent_action or program.learner.unlabelled_rows:
        raise InputError("online learning is for method 'dreamer': it has no latent actions")
    size = model.observation_size
    nothing = Normaliser(jnp.zeros(size), jnp.ones(size))
    optimiser = learner.make_optimiser(program.learner)
    explorer = None
    if config.ensemble is not None:
        feature_size = model.deterministic + model.stochastic
        explorer = jax.jit(ensembles.init, static_argnums=(0, 1, 2))(
            _ensemble(config), feature_size, model.action_size, seed
        )
    return DreamerState(
        world=learner.init(model, optimiser, nothing, seed),
        agent=actor_critic.init(model, program.agent, seed),
        ensemble=explorer,
    )


def make_step(config: DreamerConfig) -> Step:
    """The train step that `runner.data_parallel` maps, for one device: step(state, None, replay).

    The replay must hold at least one trajectory as long as a window (`make_replay`, `append`).
    """
    program = config.program
    optimiser = learner.make_optimiser(program.learner)
    world_step = learner.make_step(program.model, program.elbo, program.learner, optimiser, 1)
    agent_step = actor_critic.make_step(program.model, program.agent, 1)

    def step(
        state: DreamerState, shared: None, replay: TrajectoryArrays
    ) -> tuple[DreamerState, Metrics]:
        del shared
        world, metrics = world_step(state.world, None, TrainingData(replay, None))
        windows, inference = _replayed(program, state.world, world, replay)
        explorer, reward_of = state.ensemble, None
        if explorer is not None:
            network = _ensemble(config)
            feature = inference.state.feature
            explorer, more = ensembles.step(
                network, explorer, feature[:-1], windows.action, inference.embedding.posterior[1:]
            )
            metrics |= more

            def reward_of(rollout: Rollout) -> jax.Array:
                before = rollout.state.feature[:-1]
                return ensembles.reward(network, explorer, before, rollout.action)

        starts = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), inference.state)
        agent, more = agent_step(state.agent, world.params, starts, reward_of)
        return DreamerState(world, agent, explorer), metrics | more

    return step


def _replayed(
    program: Program, drawn_by: WorldModelState, world: WorldModelState, replay: TrajectoryArrays
) -> tuple[Windows, Inference]:
    """The windows that the world model has just learned from, filtered anew by what it has learned.

    drawn_by: the state before that step, which the windows and their noise follow from.
    """
    rows = program.learner.labelled_rows
    windows, keys = learner.draw_batch(program.learner, drawn_by, replay, learner.LABELLED, rows)
    noise = draw_noise(program.model, keys, program.learner.window, rows).inference
    return windows, infer(program.model, world.params, windows.observation, windows.action, noise)


def _ensemble(config: DreamerConfig) -> Ensemble:
    return Ensemble(config.ensemble, embedding_size=config.program.model.units)


def make_replay(
    episodes: int, num_envs: int, episode_steps: int, observation_size: int, action_size: int
) -> TrajectoryArrays:
    """An empty replay: a trajectory [episodes * num_envs] for each environment's every episode.

    Lengths say how much of each is written; windows are drawn from that alone.
    """
    rows = episodes * num_envs
    return TrajectoryArrays(
        observation=jnp.zeros((rows, episode_steps + 1, observation_size)),
        action=jnp.zeros((rows, episode_steps, action_size)),
        reward=jnp.zeros((rows, episode_steps)),
        length=jnp.zeros(rows, jnp.int32),
    )


def append(
    replay: TrajectoryArrays, observation: jax.Array, action: jax.Array, reward: jax.Array
) -> TrajectoryArrays:
    """Writes K steps of all N environments' current episode behind what there is.

    Args:
        replay: from `make_replay`, with room left.
        observation: [N, K + 1, O], the first of which is the last that was written.
        action: [N, K, A].
        reward: [N, K].
    """
    rows, steps = reward.shape
    episode, t = jnp.divmod(jnp.sum(replay.length) // rows, replay.reward.shape[1])
    at = (episode * rows, t)
    put = jax.lax.dynamic_update_slice
    return TrajectoryArrays(
        observation=put(replay.observation, observation, (*at, 0)),
        action=put(replay.action, action, (*at, 0)),
        reward=put(replay.reward, reward, at),
        length=put(replay.length, jnp.full(rows, t + steps, jnp.int32), at[:1]),
    )


def fit_normaliser(replay: TrajectoryArrays) -> Normaliser:
    """Mean and std of everything gathered so far."""
    observation, length = np.asarray(replay.observation), np.asarray(replay.length)
    written = np.arange(observation.shape[1]) <= length[:, None]
    return fit([observation[written & (length > 0)[:, None]]], NORMALISER_OFFSET)
