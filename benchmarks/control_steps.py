"""The train steps of the control experiments on random data of a config's sizes."""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.train_step import BY_STEP, TrainStep, placing
from lawm_jax import runner
from lawm_jax.config_checks import check_counts
from lawm_jax.data.normaliser import fit
from lawm_jax.data.transitions import Transitions
from lawm_jax.data.windows import TrajectoryArrays
from lawm_jax.envs.dmc import TaskSpec, task_spec
from lawm_jax.errors import InputError
from lawm_jax.lawm import actor_critic, learner
from lawm_jax.lawm.methods import Program, check_rows, resolve
from lawm_jax.lawm.world_model import State
from lawm_jax.offline import inverse_dynamics, methods, td3_bc

EPISODE_STEPS, STARTS = 500, 20_000


def labelled_count(config: Any) -> int:
    """How many of the config's trajectories have labels.

    Raises:
      InputError: there are no trajectories, or the fraction cannot be.
    """
    check_counts(config, "data", "trajectories")
    fraction = config.data.label_fraction
    if not 0.0 < fraction <= 1.0:
        raise InputError(f"data.label_fraction is {fraction}, which is not in (0, 1]")
    return max(1, round(fraction * config.data.trajectories))


def random_data(program: Program, trajectories: int, labelled: int) -> learner.TrainingData:
    """Trajectories of noise in the sizes of the config.

    Raises:
      InputError: the program learns from trajectories without labels, and there are none.
    """
    rng = np.random.default_rng(0)
    model = program.model

    def arrays(count: int, actions: bool) -> TrajectoryArrays:
        noise = lambda *shape: rng.standard_normal((count, *shape), np.float32)
        return TrajectoryArrays(
            observation=noise(EPISODE_STEPS + 1, model.observation_size),
            action=np.tanh(noise(EPISODE_STEPS, model.action_size)) if actions else None,
            reward=noise(EPISODE_STEPS),
            length=np.full(count, EPISODE_STEPS, np.int32),
        )

    unlabelled = None
    if program.learner.unlabelled_rows:
        if labelled >= trajectories:
            raise InputError(
                f"{labelled} of {trajectories} trajectories are labelled, which leaves none "
                "without labels: lower data.label_fraction, or raise data.trajectories"
            )
        unlabelled = arrays(trajectories - labelled, False)
    return learner.TrainingData(arrays(labelled, True), unlabelled)


def fill(config: Any, count: int) -> Any:
    """The config with batches that `count` devices divide, and trajectories for all of them."""
    labelled_count(config)  # it checks what is rounded here
    config = config.copy_and_resolve_references()
    up = lambda rows: math.ceil(rows / count) * count
    model, agent = config.world_model, config.agent
    model.labelled_rows = up(model.labelled_rows)
    model.unlabelled_rows = up(model.unlabelled_rows)
    agent.start_rows = up(agent.start_rows)
    for section in (config.td3_bc, config.inverse_dynamics):
        section.batch_rows = up(section.batch_rows)
    data = config.data
    data.trajectories = up(max(data.trajectories, 4 * count))
    data.label_fraction = up(data.label_fraction * data.trajectories) / data.trajectories
    return config


def train_steps(
    config: Any, mesh: Mesh, one_row: bool = False, abstract: bool = False, seeds: int = 1
) -> list[TrainStep]:
    """Every train step of the control experiments, in the sizes of a config.

    Where data.on_device is false, the world model's windows are streamed; they are the same on any
    number of devices, and no two of them alike. What the others learn from is always on the
    devices, as in the jobs.

    Args:
      one_row: all transitions that a baseline draws from are one and the same, so that every
        device draws it from its share; the noise on them differs all the same.
      abstract: as in `placing`.
      seeds: more than one adds world model and agent of that many seeds side by side.

    Raises:
      InputError: a size or count that cannot be.
    """
    if seeds > 1 and not config.data.on_device:
        raise InputError("--seeds above 1 needs data.on_device: streamed data is of one seed")
    several = _lawm_steps(config, mesh, abstract, seeds) if seeds > 1 else []
    return [
        *_lawm_steps(config, mesh, abstract),
        *several,
        td3_bc_step(config, mesh, one_row, abstract),
        _inverse_dynamics_step(config, mesh, one_row, abstract),
    ]


def _lawm_steps(config: Any, mesh: Mesh, abstract: bool, seeds: int = 1) -> list[TrainStep]:
    """World model and agent of so many seeds."""
    spec = task_spec(config.task)
    program = resolve(config, spec.observation_size, spec.action_size)
    check_rows(program, mesh)
    model, dtype, steps = program.model, config.world_model.dtype, config.run.steps_per_call
    labelled, count = max(mesh.size, labelled_count(config)), config.data.trajectories
    data = random_data(program, count - count % mesh.size, labelled - labelled % mesh.size)
    optimiser = learner.make_optimiser(program.learner)
    world = learner.init(model, optimiser, learner.fit_normaliser(data), 0)
    params = jax.tree.map(np.asarray, world.params)  # a copy: the train state is donated
    starts = State(
        np.zeros((STARTS - STARTS % mesh.size, model.deterministic), np.float32),
        np.zeros((STARTS - STARTS % mesh.size, model.stochastic), np.float32),
    )
    agent = actor_critic.init(model, program.agent, 0)
    world_step = learner.make_step(model, program.elbo, program.learner, optimiser, mesh.size)
    agent_step = actor_critic.make_step(model, program.agent, mesh.size)

    put, replicated, sharded = placing(mesh, abstract)
    mapped = functools.partial(runner.data_parallel, mesh=mesh, many_seeds=seeds > 1)
    states = lambda tree: put(runner.join_seeds([tree] * seeds), replicated)
    data_of = lambda tree: put(runner.join_seeds([tree] * seeds, axis=1), sharded)
    streamed, name = not config.data.on_device, f", {seeds} seeds" if seeds > 1 else ""
    rows = program.learner.labelled_rows + program.learner.unlabelled_rows
    return [
        TrainStep(
            f"world_model{name}", mapped(world_step, streamed=streamed), states(world), None,
            put(_windows(program, data, steps), BY_STEP) if streamed else data_of(data),
            seeds * rows, steps, seeds, streamed, dtype,
        ),
        TrainStep(
            f"actor_critic{name}", mapped(agent_step), states(agent), states(params),
            data_of(starts), seeds * program.agent.start_rows, steps, seeds, dtype=dtype,
        ),
    ]


def _windows(program: Program, data: learner.TrainingData, steps: int) -> learner.TrainingData:
    """Streamed windows of one dispatch, [steps, rows, ...]."""
    one_device = runner.make_mesh(jax.devices()[:1])  # which gets all rows
    draw = learner.stream_step(data, program.learner, 0, one_device)
    return jax.tree.map(lambda *x: np.stack(x), *map(draw, range(steps)))


def td3_bc_step(
    config: Any, mesh: Mesh, one_row: bool = False, abstract: bool = False
) -> TrainStep:
    """The train step of the baseline TD3+BC on as many transitions as the config's data set has.

    one_row and abstract: as in `train_steps`.
    """
    spec, program = _baseline(config, "td3_bc", mesh)
    count = config.data.trajectories * EPISODE_STEPS
    sizes = (spec.observation_size,), (spec.action_size,), (), (spec.observation_size,)
    data = Transitions(*_noise(count - count % mesh.size, one_row, *sizes))
    data = data._replace(action=np.tanh(data.action))
    state = td3_bc.init(program.policy, fit([data.observation[:1000]]), 0)
    step = td3_bc.make_step(program.policy, mesh.size)
    put, replicated, sharded = placing(mesh, abstract)
    return TrainStep(
        "td3_bc", runner.data_parallel(step, mesh), put(state, replicated), None,
        put(data, sharded), program.policy.batch_rows, config.td3_bc.steps_per_call,
    )


def _inverse_dynamics_step(
    config: Any, mesh: Mesh, one_row: bool, abstract: bool
) -> TrainStep:
    """The train step of IDM-TD3+BC's inverse dynamics on as many steps as have labels."""
    spec, program = _baseline(config, "idm_td3_bc", mesh)
    labeller = program.labeller
    count = labelled_count(config) * EPISODE_STEPS
    validation = round(labeller.validation_fraction * count)
    window = (2 + 2 * labeller.context) * spec.observation_size

    def examples(count: int) -> inverse_dynamics.Examples:
        whole = max(mesh.size, count - count % mesh.size)
        return inverse_dynamics.Examples(*_noise(whole, one_row, (window,), (spec.action_size,)))

    data = inverse_dynamics.LabelledData(examples(count - validation), examples(validation))
    seen = data.training.window[:1000, : spec.observation_size]
    state = inverse_dynamics.init(labeller, fit([seen]), 0)
    step = inverse_dynamics.make_step(labeller, mesh.size)
    put, replicated, sharded = placing(mesh, abstract)
    return TrainStep(
        "inverse_dynamics", runner.data_parallel(step, mesh), put(state, replicated), None,
        put(data, sharded), labeller.batch_rows, config.inverse_dynamics.steps_per_call,
    )


def _baseline(config: Any, method: str, mesh: Mesh) -> tuple[TaskSpec, methods.BaselineProgram]:
    """The task, and a baseline in the sizes of a config of any method."""
    labelled_count(config)  # it checks the sizes
    spec, config = task_spec(config.task), config.copy_and_resolve_references()
    config.method = method
    program = methods.resolve(config, spec.action_size)
    methods.check_rows(program, mesh)
    return spec, program


def _noise(count: int, one_row: bool, *sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Arrays [count, *size] of noise; where one_row, rows that are all the same."""
    rng, drawn = np.random.default_rng(0), 1 if one_row else count
    rows = [rng.standard_normal((drawn, *size), np.float32) for size in sizes]
    return [np.broadcast_to(x, (count, *x.shape[1:])) for x in rows]
