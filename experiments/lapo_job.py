"""What LAPO's stages work with, how their policies play and how their latents are probed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from experiments.data import poll_of
from experiments.launch import Run
from experiments.training import Session
from lawm_jax import runner, seeds
from lawm_jax.data import stream
from lawm_jax.data.frames import (
    FrameArrays,
    FrameShards,
    FrameWindows,
    draw_steps,
    stream_windows,
    window_steps,
)
from lawm_jax.envs.evaluation import return_summary
from lawm_jax.envs.procgen import NUM_ACTIONS, Procgen
from lawm_jax.lapo import decode, evaluate, learner, play
from lawm_jax.lapo.evaluate import Description
from lawm_jax.lapo.optimiser import TrainingConfig
from lawm_jax.lapo.program import Program
from lawm_jax.online.actor_critic import ActorCritic
from lawm_jax.vision import scale

TRAIN, TEST, LEVELS, ACT = range(4)  # tags of what the run's seed draws
Metrics = dict[str, float]


class Job(NamedTuple):
    """What every stage works with."""

    run: Run
    program: Program
    mesh: Mesh
    session: Session
    train: FrameArrays  # all, or beside `shards` the rows of `seen` and `labelled`
    test: FrameArrays  # the rows of `unseen`
    shards: FrameShards | None  # the training frames on the devices; None where they are streamed
    seen: np.ndarray  # windows of the training frames that probes learn from
    unseen: np.ndarray  # windows of held-out frames that everything is measured on
    labelled: np.ndarray  # windows whose actions decoders may see, as many as the largest needs


def draw_windows(run: Run, frames: FrameArrays, tag: int) -> np.ndarray:
    """The steps of evaluation.windows random windows, or of all where there are fewer."""
    count = min(run.config.evaluation.windows, len(window_steps(frames.episode)))
    return draw_steps(frames, count, seed_of(run, tag))


def seed_of(run: Run, tag: int) -> int:
    """A seed of its own for each thing that a run draws."""
    return seeds.derive(run.config.seed, tag)


def data_parallel(job: Job, step: Callable) -> Callable:
    """A train step on the training frames, mapped over the devices."""
    streamed = job.shards is None
    return runner.data_parallel(step, job.mesh, streamed=streamed, convolves=True)


def batches(
    job: Job, settings: TrainingConfig
) -> FrameShards | Callable[[int], Iterator[FrameWindows]]:
    """What the mapped step of a stage is fed: see `experiments.training.Session.train`."""
    if job.shards is not None:
        return job.shards
    rows = stream.own_rows(settings.rows, job.mesh)
    draw = stream_windows(job.train, job.run.config.seed, rows, settings.rows)
    each = job.run.config.run.steps_per_call
    return lambda first: stream.batches(draw, first, settings.steps, each, job.mesh)


def describe(job: Job, state: learner.LatentActionState) -> tuple[Description, Description]:
    """What stage 1's models make of training and of held-out windows."""
    model = job.program.model
    return (
        evaluate.describe(model, state, job.train, job.seen),
        evaluate.describe(model, state, job.test, job.unseen),
    )


def probe(job: Job, seen: Description, unseen: Description) -> Metrics:
    """How well the latents tell the true actions."""
    return evaluate.action_metrics(seen, unseen, NUM_ACTIONS, classes(job))


def classes(job: Job) -> tuple[int, ...] | None:
    """The class of each action; None where each has its own."""
    merge = tuple(job.run.config.evaluation.merge)
    return None if merge == tuple(range(NUM_ACTIONS)) else merge


def cloning_actor(job: Job) -> play.Actor:
    """The cloned policy; its parameters are the network's."""
    network = job.program.cloner
    logits = lambda params, frames: network.apply({"params": params}, scale(frames))
    return play.make_actor(logits, job.run.config.evaluation.temperature)


def decoded_actor(job: Job) -> play.Actor:
    """The latent policy with a decoder; its parameters are {"policy": ..., "decoder": ...}."""
    policy, decoder = job.program.policy, job.program.decoder
    logits = lambda params, frames: decode.decoded_logits(policy, decoder, params, frames)
    return play.make_actor(logits, job.run.config.evaluation.temperature)


def decoding(
    job: Job, decoder: Any, count: int
) -> tuple[dict[str, Any], Metrics]:
    """Parameters of `decoded_actor` for the decoder of so many labels, calibrated if asked for."""
    policy = runner.local(job.session.state["latent_policy"]).params
    if not job.run.config.decoder.calibrate:
        return {"policy": policy, "decoder": decoder}, {}
    labelled = job.labelled[:count]
    guess = evaluate.guesses(job.program.policy, policy, job.train, labelled)
    decoder, temperature = decode.calibrate(
        job.program.decoder, decoder, guess, job.train.action[labelled]
    )
    return {"policy": policy, "decoder": decoder}, {"temperature": float(temperature)}


def online_actor(job: Job, network: ActorCritic) -> play.Actor:
    """The policy that PPO trained, with its supervised head if it has one."""
    logits = lambda params, frames: network.apply({"params": params}, frames)[0]
    return play.make_actor(logits, job.run.config.evaluation.temperature)


def returns_of(job: Job, actor: play.Actor | None, params: Any) -> Metrics:
    """Return statistics of a policy, the random one without an actor: all play the same levels."""
    settings = job.run.config.evaluation
    episodes, envs = settings.episodes, min(settings.envs, settings.episodes)
    seed, poll = seed_of(job.run, ACT), poll_of(job.run)
    with contextlib.closing(Procgen(job.run.config.task, envs, seed_of(job.run, LEVELS))) as env:
        if actor is None:
            return return_summary(play.play_at_random(env, episodes, seed, poll))
        return return_summary(play.play(env, actor, params, episodes, seed, poll))
