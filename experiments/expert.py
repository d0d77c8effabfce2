"""Training of the PPO expert that plays a game's data set, from a config to a snapshot file."""

import contextlib
import functools

from experiments.launch import Run
from experiments.training import Session, check_schedule
from lawm_jax import runner
from lawm_jax.envs.procgen import FRAME, NUM_ACTIONS, Procgen
from lawm_jax.lapo import online
from lawm_jax.lapo.online import OnlineState
from lawm_jax.lapo.program import resolve

PHASE = "expert"


def train_expert(run: Run) -> OnlineState:
    """PPO from frames on the run's game, from wherever its last checkpoint stands.

    Returns:
      The train state at the end of config.expert.frames.

    Raises:
      InputError: a setting that cannot be; a damaged checkpoint.
      Stopped: a signal came; the last checkpoint stands.
      TrainingError: a metric is NaN or infinite.
    """
    config = run.config
    settings = resolve(config, FRAME, NUM_ACTIONS).expert
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
