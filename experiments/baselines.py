"""Offline baselines of LAWM on one control task: data, policy from transitions, evaluation.

    python -m experiments.baselines --config=configs/dmc.py:walker_walk --config.method=td3_bc

Methods: td3_bc and bc (behaviour cloning) learn from the labelled trajectories; idm_td3_bc from
all, with the actions that an inverse dynamics model, learned from the labelled ones, sees in the
rest. --config.data.label_fraction=1 makes td3_bc the oracle that sees all actions.
"""

import contextlib
from collections.abc import Sequence

from jax.sharding import Mesh
from ml_collections import ConfigDict

from experiments import launch, outcome
from experiments.data import load_dataset, split_dataset
from experiments.methods import check_method
from experiments.training import Session, check_schedule
from lawm_jax import plots, runner
from lawm_jax.data.normaliser import Normaliser, fit
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.transitions import transitions
from lawm_jax.data.windows import Split
from lawm_jax.envs.dmc import task_spec
from lawm_jax.envs.evaluation import Evaluation, play
from lawm_jax.errors import InputError
from lawm_jax.metrics import read_metrics
from lawm_jax.offline import inverse_dynamics, td3_bc
from lawm_jax.offline.inverse_dynamics import InverseDynamicsConfig, InverseDynamicsState
from lawm_jax.offline.methods import check_rows, resolve
from lawm_jax.offline.td3_bc import TD3BCConfig, TD3BCState


def main(run: launch.Run) -> None:
    """Runs the whole job, from wherever its last checkpoint stands."""
    config = run.config
    spec = task_spec(config.task)
    check_method(config.method, "baselines")
    if config.num_seeds != 1:
        raise InputError(f"num_seeds is {config.num_seeds}; baselines train one seed a run")
    if config.world_model.pretrained or config.agent.seed != -1:
        raise InputError("world_model.pretrained and agent.seed are for methods with a world model")
    program = resolve(config, spec.action_size)
    policy, labeller = program
    check_schedule(config, "td3_bc")
    check_schedule(config, "inverse_dynamics")
    mesh = runner.make_mesh()
    check_rows(program, mesh)

    dataset = load_dataset(run, spec)
    oracle = "td3_bc" if labeller else None
    parts = split_dataset(config, dataset.trajectories, config.seed, oracle)
    data = Split(*([dataset.trajectories[i] for i in part] for part in parts))
    seen = [*data.labelled, *data.unlabelled] if labeller else data.labelled
    normaliser = fit([t.observation for t in seen], td3_bc.STD_OFFSET)

    state = {}
    if labeller:
        state["inverse_dynamics"] = inverse_dynamics.init(labeller, normaliser, config.seed)
    state["agent"] = td3_bc.init(policy, normaliser, config.seed)
    state = {phase: runner.replicate(part, mesh) for phase, part in state.items()}
    session = Session(run, state, dataset.fingerprint)

    labelled, errors = data.labelled, {}
    if labeller:
        guessed, errors = _label_rest(config, labeller, session, data, normaliser, mesh)
        labelled = [*data.labelled, *guessed]

    actor = td3_bc.make_actor(policy)
    session.train(
        "agent",
        runner.data_parallel(td3_bc.make_step(policy, mesh.size), mesh),
        shared=None,
        sharded=runner.shard(transitions(labelled, normaliser, mesh.size), mesh),
        total=policy.steps,
        evaluate=lambda agent: _play(
            config, policy, actor, agent, config.run.evaluation_episodes
        ).summary(),
        shown=("imitation_error", "critic_loss", "policy_value"),
        schedule="td3_bc",
    )
    agent = runner.local(session.state["agent"])
    session.close()

    def write() -> None:
        final = _play(config, policy, actor, agent, config.run.final_episodes)
        records = read_metrics(run.workdir)
        for phase in session.state:
            plots.losses(run.workdir / "plots" / f"{phase}_losses.png", records, phase)
        outcome.report(run, session, dataset, [outcome.Seed(config.seed, parts, final, errors)])

    act = td3_bc.acting(actor, agent)
    outcome.conclude(run, write, lambda: outcome.render(run, act))


def _label_rest(
    config: ConfigDict,
    labeller: InverseDynamicsConfig,
    session: Session,
    data: Split,
    normaliser: Normaliser,
    mesh: Mesh,
) -> tuple[list[Trajectory], dict[str, float]]:
    """Trains the inverse dynamics model and labels the unlabelled trajectories; its errors."""
    examples = inverse_dynamics.labelled_data(
        labeller, normaliser, data.labelled, config.seed, mesh.size
    )
    session.train(
        "inverse_dynamics",
        runner.data_parallel(inverse_dynamics.make_step(labeller, mesh.size), mesh),
        shared=None,
        sharded=runner.shard(examples, mesh),
        total=labeller.steps,
        evaluate=lambda model: _heldout_error(labeller, model, data.heldout),
        shown=("training_error", "validation_error"),
        schedule="inverse_dynamics",
    )
    model = runner.local(session.state["inverse_dynamics"])
    guessed = inverse_dynamics.label(labeller, model, data.unlabelled)
    errors = _heldout_error(labeller, model, data.heldout)
    error = inverse_dynamics.action_error(guessed, data.unlabelled)
    if error is not None:  # they may really have no actions
        errors["unlabelled_action_error"] = error
    return guessed, errors


def _heldout_error(
    labeller: InverseDynamicsConfig, model: InverseDynamicsState, heldout: Sequence[Trajectory]
) -> dict[str, float]:
    """The error of the actions seen in held-out trajectories, and what guessing would score."""
    guessed = inverse_dynamics.label(labeller, model, heldout)
    return {
        "decoded_action_error": inverse_dynamics.action_error(guessed, heldout),
        "action_variance": inverse_dynamics.action_variance(heldout),
    }


def _play(
    config: ConfigDict, policy: TD3BCConfig, actor: td3_bc.Actor, agent: TD3BCState, episodes: int
) -> Evaluation:
    """Episodes of the deterministic policy in the simulator."""
    expect = None
    if policy.critics:
        expect = lambda first: td3_bc.expected_return(policy, agent, first)
    env = outcome.simulator(config.task, config.seed, episodes, int(agent.step))
    with contextlib.closing(env):
        return play(env, td3_bc.acting(actor, agent), expect, policy.discount)


if __name__ == "__main__":
    launch.run(main)
