"""The PPO expert that plays a game's data set: trained, frozen, played, saved as a snapshot."""

import contextlib
import dataclasses
import functools

import numpy as np
from etils import epath

from experiments.data import poll_of
from experiments.lapo_job import ACT, LEVELS, seed_of
from experiments.launch import Run
from experiments.training import Session, check_schedule
from lawm_jax import ppo_snapshots, runner
from lawm_jax.envs.evaluation import return_summary
from lawm_jax.envs.procgen import FRAME, NUM_ACTIONS, Procgen, normalise
from lawm_jax.experts import check_temperature
from lawm_jax.lapo import online, play
from lawm_jax.lapo.online import Online, OnlineState
from lawm_jax.lapo.program import resolve
from lawm_jax.ppo_snapshots import PPOSnapshot

PHASE = "expert"


def trained_snapshot(run: Run) -> epath.Path:
    """WORKDIR/snapshot.npz, the expert of the run's game; it is trained where it is not there yet.

    Raises:
      InputError: a setting that cannot be; a damaged checkpoint.
      Stopped: a signal came; the same command continues from the last checkpoint.
      TrainingError: a metric is NaN or infinite.
    """
    path = run.workdir / "snapshot.npz"
    if path.exists():
        return path
    check_temperature(run.config.collect.temperature)
    settings = resolve(run.config, FRAME, NUM_ACTIONS).expert
    snapshot = _frozen(run, settings, _train(run, settings))
    evaluation = _evaluate(run, snapshot)
    ppo_snapshots.save_snapshot(path, dataclasses.replace(snapshot, evaluation=evaluation))
    print(
        f"expert: return {evaluation['return_mean']:.2f} ± {evaluation['return_ci95']:.2f} of "
        f"{evaluation['episodes']} episodes, normalised {evaluation['normalised']:.2f}", flush=True,
    )
    return path


def _train(run: Run, settings: Online) -> OnlineState:
    """PPO from frames, from wherever its last checkpoint stands."""
    config = run.config
    check_schedule(config, "online_run")
    mesh = runner.make_mesh()
    runner.rows_per_device(settings.ppo.envs, mesh, "expert.envs")
    state = runner.replicate(online.init(settings, FRAME, config.seed), mesh)
    # no data goes in: the frames are the game's
    session = Session(run, {PHASE: state}, fingerprint=f"the game {config.task}")
    training = online.Training(
        settings, mesh, functools.partial(Procgen, config.task),
        config.online_run.checkpoint_every,
    )
    with contextlib.closing(session), contextlib.closing(training):
        session.train(
            PHASE,
            training,
            shared=None,
            sharded=None,
            total=settings.ppo.updates,
            evaluate=None,
            shown=("episode_return", "entropy", "value_loss"),
            schedule="online_run",
            anywhere=False,
        )
        return runner.local(session.state[PHASE])


def _frozen(run: Run, settings: Online, state: OnlineState) -> PPOSnapshot:
    """The policy of a train state, not played yet."""
    learner, ppo = state.learner, settings.ppo
    return PPOSnapshot(
        game=run.config.task,
        network=settings.network,
        params=ppo_snapshots.freeze(learner.params),
        frames=int(state.step) * ppo.rollout_frames,
        value_scale=float(np.sqrt(learner.rewards.variance)),
        training={"seed": run.config.seed, "commit": run.commit, **dataclasses.asdict(ppo)},
    )


def _evaluate(run: Run, snapshot: PPOSnapshot) -> dict[str, float]:
    """What the frozen policy earns in fresh episodes on all levels, as it plays for the data."""
    settings, temperature = run.config.evaluation, run.config.collect.temperature
    logits = lambda params, frames: snapshot.network.apply({"params": params}, frames)[0]
    actor, params = play.make_actor(logits, temperature), ppo_snapshots.thaw(snapshot.params)
    envs = min(settings.envs, settings.episodes)
    with contextlib.closing(Procgen(snapshot.game, envs, seed_of(run, LEVELS))) as env:
        returns = play.play(
            env, actor, params, settings.episodes, seed_of(run, ACT), poll_of(run)
        )
    summary = return_summary(returns)
    normalised = float(normalise(snapshot.game, summary["return_mean"]))
    return summary | {"normalised": normalised, "temperature": temperature}
