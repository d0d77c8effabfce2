"""The train steps of LAPO on random frames in a config's sizes."""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.train_step import BY_STEP, TrainStep, placing, step_by_step
from lawm_jax import runner
from lawm_jax.config_checks import check_counts
from lawm_jax.data.frames import FrameArrays, FrameShards, FrameWindows, shard_frames
from lawm_jax.envs.procgen import FRAME, NUM_ACTIONS
from lawm_jax.lapo import decode, imitation, learner
from lawm_jax.lapo.online import Online
from lawm_jax.lapo.program import TRAININGS, Program, check_rows, distilled, resolve
from lawm_jax.online import ppo

FRAMES = 30_000  # on the devices where a step is run and not only compiled: speed is the same
EPISODE = 300
LABELS = 4096


def train_steps(config: Any, mesh: Mesh, abstract: bool = False) -> list[TrainStep]:
    """Stage 1, what learns from its windows besides, the decoder, PPO from scratch and online.

    A distillation step is that of all decoders that the config distils.

    Streamed windows are the same on any number of devices, and no two of them alike.

    abstract: as in `placing`; the frames are as many as the config's.
    """
    program = program_of(config)
    check_rows(config, mesh)
    check_counts(config, "data", "train_frames", "max_frames")
    steps_per_call = config.run.steps_per_call
    put, replicated, sharded = placing(mesh, abstract)
    stage1 = learner.init(program.model, program.latent_action, FRAME, 0)
    frozen = jax.tree.map(np.asarray, {"idm": stage1.params["idm"]})  # the state is donated
    stage2 = imitation.init(program.policy, program.latent_policy, FRAME, 0)
    fresh, decoded = _distillation(program, jax.tree.map(np.asarray, stage2.params))
    streamed = not config.data.on_device
    frames = None
    if not streamed:
        count = min(config.data.train_frames, config.data.max_frames)
        held = min(count, max(FRAMES, EPISODE * mesh.size))  # an episode a device at least
        frames = _frames(held, mesh)
        if abstract:  # as many as the config has, of which there is no need to have any
            frames = jax.tree.map(lambda x: _longer(x, count // held), frames)

    def step(name: str, step: Any, state: Any, shared: Any, rows: int) -> TrainStep:
        mapped = runner.data_parallel(step, mesh, streamed=streamed)
        data = put(_windows(steps_per_call, rows), BY_STEP) if streamed else put(frames, sharded)
        return TrainStep(
            name, mapped, put(state, replicated), put(shared, replicated), data, rows,
            steps_per_call, streamed=streamed, dtype=config.dtype,
            dispatched=step_by_step(step, mesh, streamed),
        )

    def imitate(name: str, network: Any, loss: Any, settings: Any, channels: int) -> TrainStep:
        state = imitation.init(network, settings, (*FRAME[:2], channels), 0)
        made = imitation.make_step(loss, settings, mesh.size)
        return step(name, made, state, None, settings.rows)

    loss = imitation.latent_policy_loss(program.policy, program.model)
    distil = imitation.distillation_loss(program.cloner, program.model, program.decoder)
    return [
        step(
            "lapo_stage1", learner.make_step(program.model, program.latent_action, mesh.size),
            stage1, None, program.latent_action.rows,
        ),
        step(
            "lapo_stage2", imitation.make_step(loss, program.latent_policy, mesh.size),
            stage2, frozen, program.latent_policy.rows,
        ),
        imitate(
            "lapo_cloning", program.cloner, imitation.cloning_loss(program.cloner),
            program.cloning, FRAME[2],
        ),
        imitate(
            "lapo_supervised_idm", program.inverse,
            imitation.supervised_idm_loss(program.inverse, program.model.idm.differences),
            program.supervised_idm, 3 * FRAME[2],
        ),
        step(
            "lapo_distillation",
            imitation.make_step(distil, program.distillation, mesh.size, many=True),
            fresh, frozen | decoded, program.distillation.rows,
        ),
        decoder_step(config, mesh, abstract),
        *(_ppo_step(f"ppo_update{name}", online, mesh, abstract, config.dtype)
          for name, online in (("", program.scratch), (", frozen trunk", program.online))),
    ]  # fmt: skip


def _distillation(program: Program, policy: Any) -> tuple[Any, dict[str, Any]]:
    """A fresh state of a policy for each decoder that is distilled, and what else is frozen."""
    count = len(program.distilled_labels)
    state = distilled(program, policy, FRAME, 0)
    size = program.model.idm.vq.latent_size
    decoder = decode.init(program.decoder, program.decoding, size, 0).params
    frozen = {"decoders": jax.tree.map(lambda x: np.stack([x] * count), decoder)}
    return state, frozen if program.distilled_trunk else frozen | {"trunk": policy["trunk"]}


def _ppo_step(
    name: str, online: Online, mesh: Mesh, abstract: bool, dtype: str
) -> TrainStep:
    """A minibatch step of PPO; its frames are the rollout's, each counted once for all epochs."""
    put, replicated, sharded = placing(mesh, abstract)
    network, config = online.network, online.ppo
    state = ppo.init(network, config, FRAME, 0)
    shape, rng = (config.envs, config.horizon), np.random.default_rng(0)
    frame = np.zeros((1, *FRAME), np.uint8)
    if config.frozen_trunk:  # what a rollout keeps instead of frames
        apply = functools.partial(network.apply, method="features")
        features = jax.eval_shape(apply, {"params": state.params}, frame).shape[1:]
        inputs = rng.standard_normal((*shape, *features), np.float32)
    else:
        inputs = rng.integers(0, 256, size=(*shape, *FRAME), dtype=np.uint8)
    noise = lambda: rng.standard_normal(shape, np.float32)
    samples = ppo.Samples(
        inputs=inputs, action=rng.integers(NUM_ACTIONS, size=shape).astype(np.int32),
        log_prob=np.full(shape, -np.log(NUM_ACTIONS), np.float32), value=noise(),
        advantage=noise(), weight=np.ones(shape, np.float32),
    )
    step = ppo.make_step(network, config, mesh.size)
    return TrainStep(
        name, runner.data_parallel(step, mesh), put(state, replicated), None,
        put(samples, sharded), math.prod(shape) / config.update_steps, config.update_steps,
        dtype=dtype, dispatched=None if config.frozen_trunk else step_by_step(step, mesh),
    )


def program_of(config: Any) -> Program:
    """The config's networks and settings."""
    return resolve(config, FRAME, NUM_ACTIONS)


def decoder_step(config: Any, mesh: Mesh, abstract: bool = False) -> TrainStep:
    """The offline decoder's train step."""
    program = program_of(config)
    put, replicated, _ = placing(mesh, abstract)
    size = program.model.idm.vq.latent_size
    rng = np.random.default_rng(0)
    latents = decode.Latents(
        rng.standard_normal((LABELS, size), np.float32),
        rng.integers(NUM_ACTIONS, size=LABELS).astype(np.int32), np.int32(LABELS),
    )
    step = decode.make_step(program.decoder, program.decoding, mesh.size)
    return TrainStep(
        "lapo_decoder", runner.data_parallel(step, mesh),
        put(decode.init(program.decoder, program.decoding, size, 0), replicated),
        put(latents, replicated), None, program.decoding.rows, config.run.steps_per_call,
    )


def fill(config: Any, count: int) -> Any:
    """The config with batches that `count` devices divide, and frames for all of them."""
    config = config.copy_and_resolve_references()
    up = lambda rows: math.ceil(rows / count) * count
    for section in (*TRAININGS, "decoder"):
        config[section].rows = up(config[section].rows)
    for section in ("online", "scratch"):
        ppo_config = config[section]
        ppo_config.envs = up(ppo_config.envs)
        ppo_config.frames = max(ppo_config.frames, ppo_config.envs * ppo_config.horizon)
    config.data.train_frames = max(config.data.train_frames, 2 * EPISODE * count)
    return config


def _frames(count: int, mesh: Mesh) -> FrameShards:
    """Random frames, in whole episodes."""
    count -= count % (EPISODE * mesh.size)
    rng = np.random.default_rng(0)
    # An episode again and again, without a copy: what a step costs does not depend on it.
    episode = rng.integers(0, 256, size=(EPISODE, *FRAME), dtype=np.uint8)
    action = rng.integers(NUM_ACTIONS, size=EPISODE).astype(np.int32)
    times = count // EPISODE
    again = lambda x: np.broadcast_to(x, (times, *x.shape)).reshape(count, *x.shape[1:])
    index = np.repeat(np.arange(times, dtype=np.int32), EPISODE)
    frames = FrameArrays(again(episode), again(action), np.zeros(count, np.float32), index)
    return shard_frames(frames, mesh.size)


def _longer(x: np.ndarray, times: int) -> jax.ShapeDtypeStruct:
    """The shape of so many times the rows; the parts' counts stay."""
    scale = max(times, 1) if x.ndim > 1 or len(x) >= FRAMES // 2 else 1
    return jax.ShapeDtypeStruct((scale * x.shape[0], *x.shape[1:]), x.dtype)


def _windows(steps: int, rows: int) -> FrameWindows:
    """Streamed windows of one dispatch."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, size=(3, steps, rows, *FRAME), dtype=np.uint8)
    action = rng.integers(NUM_ACTIONS, size=(steps, rows)).astype(np.int32)
    return FrameWindows(*frames, action)
