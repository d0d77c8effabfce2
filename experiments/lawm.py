"""LAWM on one control task: data, world model, latent-action policy in imagination, evaluation.

    python -m experiments.lawm --config=configs/dmc.py:cheetah_run

C-LAP and Dreamer are the same program: --config.method=c_lap, and --config.data.label_fraction=1
makes it the oracle that sees all actions. With --config.num_seeds=4 four seeds learn side by side.
--config.world_model.pretrained=WORKDIR takes the world model of another run and trains the agent.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import launch, outcome, shared_world
from experiments.data import load_dataset, split_dataset
from experiments.identity import agent_seed
from experiments.methods import check_method
from experiments.training import check_schedule
from lawm_jax import plots, runner
from lawm_jax.data import stream
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.windows import Split, TrajectoryArrays, check_window, stack
from lawm_jax.envs.dmc import task_spec
from lawm_jax.envs.evaluation import Evaluation
from lawm_jax.errors import InputError
from lawm_jax.lawm import actor_critic, evaluate, learner
from lawm_jax.lawm.methods import Program, check_rows, resolve
from lawm_jax.metrics import read_metrics


def main(run: launch.Run) -> None:
    """Runs the whole job, from wherever its last checkpoint stands.

    Everything is of one seed or of several: `join_seeds` and `split_seeds` are where they meet.
    """
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
    training, heldout = zip(
        *(_arrays(program, dataset.trajectories, part, mesh.size) for part in parts), strict=True
    )

    optimiser = learner.make_optimiser(program.learner)
    worlds = [
        learner.init(
            program.model, optimiser,
            learner.fit_normaliser(data, (len(part.labelled), len(part.unlabelled))), seed,
        )
        for seed, data, part in zip(seeds, training, parts, strict=True)
    ]
    agents = [
        actor_critic.init(program.model, program.agent, agent_seed(config, seed)) for seed in seeds
    ]
    state = {
        phase: runner.replicate(runner.join_seeds(states), mesh)
        for phase, states in (("world_model", worlds), ("agent", agents))
    }
    session = shared_world.open_session(run, program, state, dataset.fingerprint)
    of_seeds = lambda tree: runner.split_seeds(tree, len(seeds))
    data_parallel = functools.partial(
        runner.data_parallel, mesh=mesh, many_seeds=len(seeds) > 1
    )

    def errors_of(state: learner.WorldModelState, heldout: TrajectoryArrays) -> dict[str, float]:
        errors = evaluate.prediction_errors(
            program.model, state, heldout, decode=program.method.unlabelled
        )
        return {name: float(x) for name, x in errors.items()}

    world_model_step = learner.make_step(
        program.model, program.elbo, program.learner, optimiser, mesh.size
    )
    resident = config.data.on_device
    joined = runner.join_seeds(training, axis=1)
    session.train(
        "world_model",
        data_parallel(world_model_step, streamed=not resident),
        shared=None,
        sharded=runner.shard(joined, mesh) if resident else _stream(run, program, joined, mesh),
        total=program.learner.steps,
        evaluate=lambda state: outcome.mean_of(list(map(errors_of, of_seeds(state), heldout))),
        shown=("loss", "observation_error", "kl_s", "inverse_action_error"),
    )
    worlds = of_seeds(runner.local(session.state["world_model"]))
    starts = [
        evaluate.start_states(program.model, world, [x for x in data if x is not None], mesh.size)
        for world, data in zip(worlds, training, strict=True)
    ]
    actor = evaluate.make_actor(program.model, program.agent)

    def play(agents: actor_critic.AgentState, episodes: int) -> list[Evaluation]:
        played = []
        for world, agent in zip(worlds, of_seeds(agents), strict=True):
            params = evaluate.policy_params(world, agent)
            with contextlib.closing(
                outcome.simulator(config.task, int(agent.seed), episodes, int(agent.step))
            ) as env:
                played.append(
                    evaluate.evaluate_policy(env, actor, params, program.agent.discount)
                )
        return played

    agent_step = actor_critic.make_step(program.model, program.agent, mesh.size)
    session.train(
        "agent",
        data_parallel(agent_step),
        shared=session.state["world_model"].params,
        sharded=runner.shard(runner.join_seeds(starts, axis=1), mesh),
        total=program.agent.steps,
        evaluate=lambda agents: outcome.mean_of(
            [one.summary() for one in play(agents, config.run.evaluation_episodes)]
        ),
        shown=("imagined_reward", "imagined_return", "value_error"),
    )
    agents = runner.local(session.state["agent"])
    session.close()

    def write() -> None:
        errors = list(map(errors_of, worlds, heldout))
        _plot(run, outcome.mean_of(errors))
        final = play(agents, config.run.final_episodes)
        ends = zip(seeds, parts, final, errors, strict=True)
        outcome.report(
            run, session, dataset, [outcome.Seed(*end) for end in ends],
            {"world_model": shared_world.origin(run, session)},
        )

    first = evaluate.policy_params(worlds[0], of_seeds(agents)[0])
    outcome.conclude(run, write, lambda: outcome.render(run, evaluate.acting(actor, first)))


def _check_seeds(config: ConfigDict) -> None:
    if not 1 <= config.num_seeds <= 2**31 - config.seed:
        raise InputError(f"num_seeds is {config.num_seeds}; it must be >= 1")
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
    run: launch.Run, program: Program, training: learner.TrainingData, mesh: Mesh
) -> Callable[[int], Iterator[learner.TrainingData]]:
    """Step -> the batches of the dispatches from there on, drawn on the host."""
    draw = learner.stream_step(training, program.learner, run.config.seed, mesh)
    steps, each = program.learner.steps, run.config.run.steps_per_call
    return lambda first: stream.batches(draw, first, steps, each, mesh)


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
