"""The train steps of the control experiments on random data of a config's sizes."""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.train_step import TrainStep, placing
from lawm_jax import runner
from lawm_jax.data.normaliser import fit
from lawm_jax.data.transitions import Transitions
from lawm_jax.data.windows import TrajectoryArrays
from lawm_jax.envs.dmc import task_spec
from lawm_jax.lawm import actor_critic, learner
from lawm_jax.lawm.methods import Program, check_rows, resolve
from lawm_jax.lawm.world_model import State
from lawm_jax.offline import methods, td3_bc

EPISODE_STEPS, STARTS = 500, 20_000


def random_data(
    program: Program, trajectories: int, labelled: int, one_window: bool = False
) -> learner.TrainingData:
    """Trajectories of noise in the sizes of the config.

    one_window: all are one and the same window, so that every device draws the same from its share.
    """
    rng = np.random.default_rng(0)
    model = program.model
    steps = program.learner.window - 1 if one_window else EPISODE_STEPS

    def arrays(count: int, actions: bool) -> TrajectoryArrays:
        def noise(*shape: int) -> np.ndarray:
            if one_window:
                one = rng.standard_normal(shape, np.float32)
                return np.broadcast_to(one, (count, *shape))
            return rng.standard_normal((count, *shape), np.float32)

        return TrajectoryArrays(
            observation=noise(steps + 1, model.observation_size),
            action=np.tanh(noise(steps, model.action_size)) if actions else None,
            reward=noise(steps),
            length=np.full(count, steps, np.int32),
        )

    unlabelled = arrays(trajectories - labelled, False) if program.learner.unlabelled_rows else None
    return learner.TrainingData(arrays(labelled, True), unlabelled)


def fill(config: Any, count: int) -> Any:
    """The config with batches that `count` devices divide, and trajectories for all of them."""
    config = config.copy_and_resolve_references()
    up = lambda rows: math.ceil(rows / count) * count
    model, agent = config.world_model, config.agent
    model.labelled_rows = up(model.labelled_rows)
    model.unlabelled_rows = up(model.unlabelled_rows)
    agent.start_rows = up(agent.start_rows)
    config.td3_bc.batch_rows = up(config.td3_bc.batch_rows)
    data = config.data
    data.trajectories = up(max(data.trajectories, 4 * count))
    data.label_fraction = up(data.label_fraction * data.trajectories) / data.trajectories
    return config


def train_steps(
    config: Any, mesh: Mesh, one_window: bool = False, abstract: bool = False, seeds: int = 1
) -> list[TrainStep]:
    """Every train step of the control experiments, in the sizes of a config.

    Args:
      one_window: as in `random_data`.
      abstract: as in `placing`.
      seeds: more than one adds world model and agent of that many seeds side by side.
    """
    spec = task_spec(config.task)
    program = resolve(config, spec.observation_size, spec.action_size)
    check_rows(program, mesh)
    model, seed, count = program.model, 0, config.data.trajectories
    labelled = max(mesh.size, round(config.data.label_fraction * count))
    data = random_data(
        program, count - count % mesh.size, labelled - labelled % mesh.size, one_window
    )
    optimiser = learner.make_optimiser(program.learner)
    world = learner.init(model, optimiser, learner.fit_normaliser(data), seed)
    params = jax.tree.map(np.asarray, world.params)  # a copy: the train state is donated
    starts = State(
        np.zeros((STARTS - STARTS % mesh.size, model.deterministic), np.float32),
        np.zeros((STARTS - STARTS % mesh.size, model.stochastic), np.float32),
    )
    agent = actor_critic.init(model, program.agent, seed)
    world_step = learner.make_step(model, program.elbo, program.learner, optimiser, mesh.size)
    agent_step = actor_critic.make_step(model, program.agent, mesh.size)

    put, replicated, sharded = placing(mesh, abstract)

    def steps(name: str, seeds: int) -> list[TrainStep]:
        """World model and agent of so many seeds."""
        many = seeds > 1
        mapped = functools.partial(runner.data_parallel, mesh=mesh, many_seeds=many)
        states = lambda tree: runner.join_seeds([tree] * seeds)
        data_of = lambda tree: runner.join_seeds([tree] * seeds, axis=1)
        rows = program.learner.labelled_rows + program.learner.unlabelled_rows
        return [
            TrainStep(
                f"world_model{name}", mapped(world_step), put(states(world), replicated), None,
                put(data_of(data), sharded), seeds * rows, seeds,
            ),
            TrainStep(
                f"actor_critic{name}", mapped(agent_step), put(states(agent), replicated),
                put(states(params), replicated), put(data_of(starts), sharded),
                seeds * program.agent.start_rows, seeds,
            ),
        ]

    several = steps(f", {seeds} seeds", seeds) if seeds > 1 else []
    return [*steps("", 1), *several, td3_bc_step(config, mesh, one_window, abstract)]


def td3_bc_step(
    config: Any, mesh: Mesh, one_window: bool = False, abstract: bool = False
) -> TrainStep:
    """The train step of the baseline TD3+BC on as many transitions as the config's data set has.

    one_window: all are one and the same transition; abstract: as in `train_steps`.
    """
    spec, config = task_spec(config.task), config.copy_and_resolve_references()
    config.method = "td3_bc"
    program = methods.resolve(config, spec.action_size)
    methods.check_rows(program, mesh)
    count = config.data.trajectories * EPISODE_STEPS
    count -= count % mesh.size
    rng = np.random.default_rng(0)

    def noise(*size: int) -> np.ndarray:
        rows = rng.standard_normal((1 if one_window else count, *size), np.float32)
        return np.broadcast_to(rows, (count, *size))

    sizes = (spec.observation_size,), (spec.action_size,), (), (spec.observation_size,)
    data = Transitions(*(noise(*size) for size in sizes))
    data = data._replace(action=np.tanh(data.action))
    state = td3_bc.init(program.policy, fit([data.observation[:1000]]), 0)
    step = td3_bc.make_step(program.policy, mesh.size)
    put, replicated, sharded = placing(mesh, abstract)
    return TrainStep(
        "td3_bc", runner.data_parallel(step, mesh), put(state, replicated), None,
        put(data, sharded), program.policy.batch_rows,
    )
