"""LAWM on one control task: data, world model, latent-action policy in imagination, evaluation.

    python -m experiments.lawm --config=configs/dmc.py:cheetah_run

C-LAP and Dreamer are the same program: --config.method=c_lap, and --config.data.label_fraction=1
makes it the oracle that sees all actions.
"""

import contextlib
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from experiments import launch, outcome
from experiments.data import load_dataset, split_dataset
from experiments.methods import check_method
from experiments.training import Session, check_schedule
from lawm_jax import plots, runner
from lawm_jax.data import stream
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.windows import Split, TrajectoryArrays, check_window, stack
from lawm_jax.envs.dmc import task_spec
from lawm_jax.envs.evaluation import Evaluation
from lawm_jax.lawm import actor_critic, evaluate, learner
from lawm_jax.lawm.methods import Program, check_rows, resolve
from lawm_jax.metrics import read_metrics


def main(run: launch.Run) -> None:
    """Runs the whole job, from wherever its last checkpoint stands."""
    config = run.config
    spec = task_spec(config.task)
    check_method(config.method, "lawm")
    program = resolve(config, spec.observation_size, spec.action_size)
    check_schedule(config, "run")
    mesh = runner.make_mesh()
    check_rows(program, mesh)

    dataset = load_dataset(run, spec)
    oracle = "c_lap" if program.learner.unlabelled_rows else None
    parts = split_dataset(config, dataset.trajectories, oracle)
    training, heldout = _arrays(program, dataset.trajectories, parts, mesh.size)

    optimiser = learner.make_optimiser(program.learner)
    state = {
        "world_model": learner.init(
            program.model, optimiser, learner.fit_normaliser(training), config.seed
        ),
        "agent": actor_critic.init(program.model, program.agent, config.seed),
    }
    state = {phase: runner.replicate(part, mesh) for phase, part in state.items()}
    session = Session(run, state, dataset.fingerprint)

    def errors_of(state: learner.WorldModelState) -> dict[str, jax.Array]:
        return evaluate.prediction_errors(
            program.model, state, heldout, decode=program.method.unlabelled
        )

    world_model_step = learner.make_step(
        program.model, program.elbo, program.learner, optimiser, mesh.size
    )
    resident = config.data.on_device
    session.train(
        "world_model",
        runner.data_parallel(world_model_step, mesh, streamed=not resident),
        shared=None,
        sharded=runner.shard(training, mesh) if resident else _stream(run, program, training, mesh),
        total=program.learner.steps,
        evaluate=errors_of,
        shown=("loss", "observation_error", "kl_s", "inverse_action_error"),
    )
    world = runner.local(session.state["world_model"])
    seen = [arrays for arrays in training if arrays is not None]
    starts = evaluate.start_states(program.model, world, seen, mesh.size)
    actor = evaluate.make_actor(program.model, program.agent)

    def play(agent: actor_critic.AgentState, episodes: int) -> Evaluation:
        params = evaluate.policy_params(world, agent)
        with contextlib.closing(outcome.simulator(config, episodes, int(agent.step))) as env:
            return evaluate.evaluate_policy(env, actor, params, program.agent.discount)

    agent_step = actor_critic.make_step(program.model, program.agent, mesh.size)
    session.train(
        "agent",
        runner.data_parallel(agent_step, mesh),
        shared=session.state["world_model"].params,
        sharded=runner.shard(starts, mesh),
        total=program.agent.steps,
        evaluate=lambda agent: play(agent, config.run.evaluation_episodes).summary(),
        shown=("imagined_reward", "imagined_return", "value_error"),
    )
    agent = runner.local(session.state["agent"])
    session.close()

    def write() -> None:
        final = play(agent, config.run.final_episodes)
        errors = {name: float(x) for name, x in errors_of(world).items()}
        _plot(run, errors)
        outcome.report(run, session, dataset, parts, final, errors)

    act = evaluate.acting(actor, evaluate.policy_params(world, agent))
    outcome.conclude(run, write, lambda: outcome.render(run, act))


def _arrays(
    program: Program, trajectories: list[Trajectory], parts: Split, devices: int
) -> tuple[learner.TrainingData, TrajectoryArrays]:
    """What training sees and what it does not, as arrays; unlabelled ones without actions."""
    chosen = Split(*([trajectories[i] for i in part] for part in parts))
    labelled = stack(chosen.labelled, actions=True, multiple_of=devices)
    unlabelled = None
    if program.learner.unlabelled_rows:
        unlabelled = stack(chosen.unlabelled, actions=False, multiple_of=devices)
        check_window(unlabelled, program.learner.window)
    check_window(labelled, program.learner.window)
    return learner.TrainingData(labelled, unlabelled), stack(chosen.heldout, actions=True)


def _stream(
    run: launch.Run, program: Program, training: learner.TrainingData, mesh: Mesh
) -> Callable[[int], Iterator[learner.TrainingData]]:
    """Step -> the batches of the dispatches from there on, drawn on the host."""
    draw = learner.stream_step(training, program.learner, run.config.seed, mesh)
    steps, each = program.learner.steps, run.config.run.steps_per_call
    return lambda first: stream.batches(draw, first, steps, each, mesh)


def _plot(run: launch.Run, errors: dict[str, float]) -> None:
    directory = run.workdir / "plots"
    plots.losses(directory / "model_losses.png", read_metrics(run.workdir), "world_model")
    plots.open_loop(directory / "open_loop.png", {
        k: errors[f"open_loop_error_{k}"] for k in evaluate.OPEN_LOOP_STEPS
        if f"open_loop_error_{k}" in errors
    })


if __name__ == "__main__":
    launch.run(main)
