"""LAWM on one control task: data, world model, latent-action policy in imagination, evaluation.

    python -m experiments.lawm --config=configs/dmc.py:cheetah_run

C-LAP and Dreamer are the same program: --config.method=c_lap, and --config.data.label_fraction=1
makes it the oracle that sees all actions. With --config.num_seeds=4 four seeds learn side by side.
--config.world_model.pretrained=WORKDIR takes the world model of another run and trains the agent.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import launch, outcome, shared_world
from experiments.data import load_dataset, split_dataset
from experiments.identity import agent_seed
from experiments.methods import check_method
from experiments.training import Session, check_schedule
from lawm_jax import plots, runner
from lawm_jax.config_checks import check_seed
from lawm_jax.data import stream
from lawm_jax.data.shards import Dataset
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.windows import Split, TrajectoryArrays, check_window, stack
from lawm_jax.envs.dmc import task_spec
from lawm_jax.envs.evaluation import Evaluation
from lawm_jax.errors import InputError
from lawm_jax.lawm import actor_critic, evaluate, learner
from lawm_jax.lawm.methods import Program, check_rows, resolve
from lawm_jax.lawm.world_model import State
from lawm_jax.metrics import read_metrics


class Job(NamedTuple):
    """What both phases work with. Lists have one item a seed; where the program meets the devices,
    `runner.join_seeds` makes one of them and `runner.split_seeds` parts it again.
    """

    run: launch.Run
    program: Program
    mesh: Mesh
    session: Session
    dataset: Dataset
    seeds: range
    parts: list[Split]  # which trajectories are labelled, unlabelled and held out
    training: list[learner.TrainingData]
    heldout: list[TrajectoryArrays]

    def of_seeds(self, tree: Any) -> list[Any]:
        """A train state of all seeds as one a seed."""
        return runner.split_seeds(tree, len(self.seeds))


def main(run: launch.Run) -> None:
    """Runs the whole job, from wherever its last checkpoint stands."""
    config = run.config
    spec = task_spec(config.task)
    check_method(config.method, "lawm")
    _check_seeds(config)
    program = resolve(config, spec.observation_size, spec.action_size)
    check_schedule(config, "run")
    mesh = runner.make_mesh()
    check_rows(program, mesh)

    dataset = load_dataset(run, spec)
    oracle = "c_lap" if program.learner.unlabelled_rows else None
    seeds = range(config.seed, config.seed + config.num_seeds)
    parts = [split_dataset(config, dataset.trajectories, seed, oracle) for seed in seeds]
    arrays = [_arrays(program, dataset.trajectories, part, mesh.size) for part in parts]
    training, heldout = (list(both) for both in zip(*arrays, strict=True))
    states = _initial_states(config, program, training, parts)
    state = {
        phase: runner.replicate(runner.join_seeds(of_phase), mesh)
        for phase, of_phase in states.items()
    }
    session = shared_world.open_session(run, program, state, dataset.fingerprint)
    job = Job(run, program, mesh, session, dataset, seeds, parts, training, heldout)
    if runner.is_main() and all(part.length.max() < evaluate.PIECE for part in heldout):
        print(
            f"errors of the model are left out: no held-out trajectory has {evaluate.PIECE} steps",
            flush=True,
        )

    _world_model(job)
    worlds = job.of_seeds(runner.local(session.state["world_model"]))
    actor = evaluate.make_actor(program.model, program.agent)
    _agent(job, worlds, actor)
    agents = runner.local(session.state["agent"])
    session.close()
    first = evaluate.policy_params(worlds[0], job.of_seeds(agents)[0])
    outcome.conclude(
        run,
        lambda: _report(job, worlds, agents, actor),
        lambda: outcome.render(run, evaluate.acting(actor, first)),
    )


def _initial_states(
    config: ConfigDict, program: Program, training: list[learner.TrainingData], parts: list[Split]
) -> dict[str, list[Any]]:
    """Fresh train states of each phase, one a seed."""
    optimiser = learner.make_optimiser(program.learner)
    states: dict[str, list[Any]] = {"world_model": [], "agent": []}
    for seed, (data, part) in enumerate(zip(training, parts, strict=True), config.seed):
        counts = len(part.labelled), len(part.unlabelled)
        normaliser = learner.fit_normaliser(data, counts)
        states["world_model"].append(learner.init(program.model, optimiser, normaliser, seed))
        agent = actor_critic.init(program.model, program.agent, agent_seed(config, seed))
        states["agent"].append(agent)
    return states


def _world_model(job: Job) -> None:
    """Learns the world model from labelled and unlabelled trajectories."""
    program, resident = job.program, job.run.config.data.on_device
    step = learner.make_step(
        program.model, program.elbo, program.learner, learner.make_optimiser(program.learner),
        job.mesh.size,
    )
    joined = runner.join_seeds(job.training, axis=1)
    job.session.train(
        "world_model",
        runner.data_parallel(step, job.mesh, len(job.seeds) > 1, streamed=not resident),
        shared=None,
        sharded=runner.shard(joined, job.mesh) if resident else _stream(job, joined),
        total=program.learner.steps,
        evaluate=lambda state: outcome.mean_of(_errors(job, job.of_seeds(state))),
        shown=("loss", "observation_error", "kl_s", "inverse_action_error"),
    )


def _agent(job: Job, worlds: list[learner.WorldModelState], actor: evaluate.Actor) -> None:
    """Learns the latent-action policy in the imagination of the frozen world model."""
    program = job.program
    starts = [
        evaluate.start_states(
            program.model, world, [x for x in data if x is not None], job.mesh.size
        )
        for world, data in zip(worlds, job.training, strict=True)
    ]
    step = actor_critic.make_step(program.model, program.agent, job.mesh.size)
    episodes = job.run.config.run.evaluation_episodes
    job.session.train(
        "agent",
        runner.data_parallel(step, job.mesh, len(job.seeds) > 1),
        shared=job.session.state["world_model"].params,
        sharded=runner.shard(runner.join_seeds(_as_many(starts), axis=1), job.mesh),
        total=program.agent.steps,
        evaluate=lambda agents: outcome.mean_of(
            [one.summary() for one in _play(job, worlds, agents, actor, episodes)]
        ),
        shown=("imagined_reward", "imagined_return", "value_error"),
    )


def _as_many(starts: list[State]) -> list[State]:
    """States of every seed, as many as of the one that has most: those of others repeat.

    Seeds hold out other trajectories, whose lengths may differ.
    """
    most = max(len(one.h) for one in starts)
    fill = lambda one: jax.tree.map(lambda x: x[np.arange(most) % len(x)], one)
    return [one if len(one.h) == most else fill(one) for one in starts]


def _errors(job: Job, worlds: list[learner.WorldModelState]) -> list[dict[str, float]]:
    """Prediction errors of each seed's world model on its held-out trajectories."""
    program, found = job.program, []
    for world, heldout in zip(worlds, job.heldout, strict=True):
        errors = evaluate.prediction_errors(
            program.model, world, heldout, decode=program.method.unlabelled
        )
        found.append({name: float(x) for name, x in errors.items()})
    return found


def _play(
    job: Job, worlds: list[learner.WorldModelState], agents: actor_critic.AgentState,
    actor: evaluate.Actor, episodes: int,
) -> list[Evaluation]:
    """Each seed's agent in the simulator, on the world model that it learned in."""
    task, discount, played = job.run.config.task, job.program.agent.discount, []
    for world, agent in zip(worlds, job.of_seeds(agents), strict=True):
        params = evaluate.policy_params(world, agent)
        env = outcome.simulator(task, int(agent.seed), episodes, int(agent.step))
        with contextlib.closing(env):
            played.append(evaluate.evaluate_policy(env, actor, params, discount))
    return played


def _report(
    job: Job, worlds: list[learner.WorldModelState], agents: actor_critic.AgentState,
    actor: evaluate.Actor,
) -> None:
    """Plays the final episodes; writes plots and results.json."""
    errors = _errors(job, worlds)
    _plot(job.run, outcome.mean_of(errors))
    final = _play(job, worlds, agents, actor, job.run.config.run.final_episodes)
    ends = zip(job.seeds, job.parts, final, errors, strict=True)
    outcome.report(
        job.run, job.session, job.dataset, [outcome.Seed(*end) for end in ends],
        {"world_model": shared_world.origin(job.run, job.session)},
    )


def _check_seeds(config: ConfigDict) -> None:
    check_seed(config)
    if not 1 <= config.num_seeds <= 2**31 - config.seed:
        raise InputError(
            f"num_seeds is {config.num_seeds}; it must be >= 1, and every seed below 2^31"
        )
    if config.num_seeds > 1 and not config.data.on_device:
        raise InputError("num_seeds above 1 needs data.on_device: streamed data is of one seed")
    if not -1 <= config.agent.seed <= 2**31 - config.num_seeds:
        raise InputError(
            f"agent.seed is {config.agent.seed}; it must be -1 (the run's) or at least 0, and "
            "below 2^31"
        )


def _arrays(
    program: Program, trajectories: list[Trajectory], parts: Split, devices: int
) -> tuple[learner.TrainingData, TrajectoryArrays]:
    """What training sees and what it does not, as arrays; unlabelled ones without actions."""
    chosen = Split(*([trajectories[i] for i in part] for part in parts))
    longest = max(trajectory.length for trajectory in trajectories)  # seeds share one shape
    fit = functools.partial(stack, multiple_of=devices, steps=longest)
    labelled, unlabelled = fit(chosen.labelled, actions=True), None
    if program.learner.unlabelled_rows:
        unlabelled = fit(chosen.unlabelled, actions=False)
        check_window(unlabelled, program.learner.window)
    check_window(labelled, program.learner.window)
    return learner.TrainingData(labelled, unlabelled), stack(chosen.heldout, actions=True)


def _stream(
    job: Job, training: learner.TrainingData
) -> Callable[[int], Iterator[learner.TrainingData]]:
    """Step -> the batches of the dispatches from there on, drawn on the host."""
    config, settings = job.run.config, job.program.learner
    draw = learner.stream_step(training, settings, config.seed, job.mesh)
    each = config.run.steps_per_call
    return lambda first: stream.batches(draw, first, settings.steps, each, job.mesh)


def _plot(run: launch.Run, errors: dict[str, float]) -> None:
    directory = run.workdir / "plots"
    if not run.config.world_model.pretrained:
        plots.losses(directory / "model_losses.png", read_metrics(run.workdir), "world_model")
    plots.open_loop(directory / "open_loop.png", {
        k: errors[f"open_loop_error_{k}"] for k in evaluate.OPEN_LOOP_STEPS
        if f"open_loop_error_{k}" in errors
    })


if __name__ == "__main__":
    launch.run(main)
