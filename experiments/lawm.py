"""LAWM on one control task: data, world model, latent-action policy in imagination, evaluation.

    python -m experiments.lawm --config=configs/dmc.py:cheetah_run

C-LAP and Dreamer are the same program: --config.method=c_lap, and --config.data.label_fraction=1
makes it the oracle that sees all actions.
"""

import contextlib
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import launch
from experiments.data import load_dataset
from experiments.summary import summary
from experiments.training import Session, check_schedule
from lawm_jax import plots, runner
from lawm_jax.checkpoint import state_digest
from lawm_jax.data.shards import Dataset
from lawm_jax.data.trajectory import Trajectory, return_statistics
from lawm_jax.data.windows import Split, TrajectoryArrays, check_window, split, stack
from lawm_jax.envs.dmc import ControlSuite, task_spec
from lawm_jax.errors import InputError
from lawm_jax.lawm import actor_critic, evaluate, learner
from lawm_jax.lawm.methods import Program, check_rows, resolve
from lawm_jax.metrics import read_metrics

FRAMES_PER_SECOND = 20  # of the video


def main(run: launch.Run) -> None:
    """Runs the whole job, from wherever its last checkpoint stands."""
    config = run.config
    spec = task_spec(config.task)
    program = resolve(config, spec.observation_size, spec.action_size)
    check_schedule(config)
    mesh = runner.make_mesh()
    check_rows(program, mesh)

    dataset = load_dataset(run, spec)
    parts = _split(config, program, dataset.trajectories)
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
    session.train(
        "world_model",
        runner.data_parallel(world_model_step, mesh),
        shared=None,
        sharded=runner.shard(training, mesh),
        total=program.learner.steps,
        evaluate=errors_of,
        shown=("loss", "observation_error", "kl_s", "inverse_action_error"),
    )
    world = runner.local(session.state["world_model"])
    seen = [arrays for arrays in training if arrays is not None]
    starts = evaluate.start_states(program.model, world, seen, mesh.size)
    actor = evaluate.make_actor(program.model, program.agent)

    def play(agent: actor_critic.AgentState, episodes: int) -> evaluate.Evaluation:
        params = evaluate.policy_params(world, agent)
        with contextlib.closing(
            ControlSuite(config.task, episodes, seed=_seed(config.seed, int(agent.step)))
        ) as env:
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

    def finish() -> None:
        if not runner.is_main():
            return
        if not (run.workdir / "results.json").exists():
            final = play(agent, config.run.final_episodes)
            errors = {name: float(x) for name, x in errors_of(world).items()}
            _report(run, session, dataset, parts, final, errors)
        if run.render:
            _render(run, evaluate.acting(actor, evaluate.policy_params(world, agent)))

    runner.all_or_none(finish)


def _split(config: ConfigDict, program: Program, trajectories: list[Trajectory]) -> Split:
    """Which trajectories are labelled, unlabelled and held out."""
    data = config.data
    has_action = [trajectory.action is not None for trajectory in trajectories]
    parts = split(has_action, data.label_fraction, data.heldout_fraction, config.seed)
    if program.learner.unlabelled_rows and not len(parts.unlabelled):
        raise InputError(
            f"data.label_fraction {data.label_fraction} leaves no trajectory without labels "
            f"for method '{config.method}'; lower it, or choose method c_lap, the oracle"
        )
    return parts


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


def _render(run: launch.Run, act: Callable[..., Any]) -> None:
    """Writes a video of one episode, or says why there is none."""
    import imageio

    from lawm_jax.envs import reference

    try:
        os.environ["MUJOCO_GL"] = reference.renderer()
    except InputError as error:
        print(f"no video: {error}", flush=True)
        return
    frames, episode_return = reference.render_episode(run.config.task, act, None, run.config.seed)
    path = run.workdir / "policy.mp4"
    imageio.mimwrite(str(path), frames, fps=FRAMES_PER_SECOND, macro_block_size=None)
    print(f"video of an episode with return {episode_return:.0f}: {path}", flush=True)


def _seed(seed: int, step: int) -> int:
    """A simulator seed of its own for every evaluation of a run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0] >> 1)


def _report(
    run: launch.Run,
    session: Session,
    dataset: Dataset,
    parts: Split,
    final: evaluate.Evaluation,
    errors: dict[str, float],
) -> None:
    """Writes plots, then results.json, whose presence marks the run as finished."""
    records = read_metrics(run.workdir)
    statistics = return_statistics(dataset.trajectories)
    evaluation = final.summary()
    last: dict[str, Any] = {}
    for record in records:
        last |= {name: x for name, x in record.items() if name not in ("step", "phase")}
    results = {
        "config": json.loads(run.config.to_json_best_effort()),
        "command": run.command,
        "commit": run.commit,
        "seed": run.config.seed,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "wall_clock_seconds": session.seconds,
        "compile_seconds": session.compile_seconds,
        "dataset": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "trajectories": len(dataset.trajectories),
            "labelled_trajectories": len(parts.labelled),
            "heldout_trajectories": len(parts.heldout),
            "return_statistics": statistics,
        },
        "evaluation": evaluation,
        "metrics": last | errors,
        "state_digest": state_digest(session.state),
    }
    directory = run.workdir / "plots"
    directory.mkdir(exist_ok=True)
    returns = [t.episode_return for t in dataset.trajectories]
    plots.model_losses(directory / "model_losses.png", records)
    plots.learning_curve(directory / "learning_curve.png", records, statistics)
    plots.open_loop(directory / "open_loop.png", {
        k: errors[f"open_loop_error_{k}"] for k in evaluate.OPEN_LOOP_STEPS
        if f"open_loop_error_{k}" in errors
    })
    plots.return_histogram(directory / "returns.png", returns, evaluation["return_mean"])
    part = run.workdir / "results.json.part"
    part.write_text(json.dumps(results, indent=2) + "\n")
    part.replace(run.workdir / "results.json")
    print(f"\n{summary(results)}\n\nresults and plots in {run.workdir}", flush=True)


if __name__ == "__main__":
    launch.run(main)
