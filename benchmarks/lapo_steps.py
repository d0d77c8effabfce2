"""The train steps of LAPO on random frames in a config's sizes."""

import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from benchmarks.train_step import TrainStep, placing
from lawm_jax import runner
from lawm_jax.data.frames import FrameArrays, FrameShards, FrameWindows, shard_frames
from lawm_jax.envs.procgen import FRAME, NUM_ACTIONS
from lawm_jax.lapo import decode, imitation, learner
from lawm_jax.lapo.online import Online
from lawm_jax.lapo.program import TRAININGS, Program, check_rows, resolve
from lawm_jax.online import ppo

FRAMES = 30_000  # on the devices where a step is run and not only compiled: speed is the same
EPISODE = 300
LABELS = 4096


def train_steps(
    config: Any, mesh: Mesh, one_window: bool = False, abstract: bool = False
) -> list[TrainStep]:
    """Stage 1, stage 2, the offline decoder, and PPO from scratch and online.

    Args:
      one_window: all windows are one and the same, so that every device draws it from its share.
      abstract: as in `placing`; the frames are as many as the config's.
    """
    program = program_of(config)
    check_rows(config, mesh)
    put, replicated, sharded = placing(mesh, abstract)
    stage1 = learner.init(program.model, program.latent_action, FRAME, 0)
    frozen = jax.tree.map(np.asarray, {"idm": stage1.params["idm"]})  # the state is donated
    stage2 = imitation.init(program.policy, program.latent_policy, FRAME, 0)
    streamed = not config.data.on_device
    frames = None
    if not streamed:
        count = min(config.data.train_frames, config.data.max_frames)
        held = min(count, max(FRAMES, EPISODE * mesh.size))  # an episode a device at least
        frames = _frames(held, mesh, one_window)
        if abstract:  # as many as the config has, of which there is no need to have any
            frames = jax.tree.map(lambda x: _longer(x, count // held), frames)

    def step(name: str, step: Any, state: Any, shared: Any, rows: int) -> TrainStep:
        mapped = runner.data_parallel(step, mesh, streamed=streamed)
        by_step = PartitionSpec(None, runner.AXIS)
        data = put(_windows(rows), by_step) if streamed else put(frames, sharded)
        return TrainStep(
            name, mapped, put(state, replicated), put(shared, replicated), data, rows,
            dispatched=runner.data_parallel(step, mesh, streamed=streamed, convolves=True),
        )

    loss = imitation.latent_policy_loss(program.policy, program.model)
    return [
        step(
            "lapo_stage1", learner.make_step(program.model, program.latent_action, mesh.size),
            stage1, None, program.latent_action.rows,
        ),
        step(
            "lapo_stage2", imitation.make_step(loss, program.latent_policy, mesh.size),
            stage2, frozen, program.latent_policy.rows,
        ),
        decoder_step(program, mesh, abstract),
        _ppo_step("ppo_update", program.scratch, mesh, abstract),
        _ppo_step("ppo_update, frozen trunk", program.online, mesh, abstract),
    ]  # fmt: skip


def _ppo_step(name: str, online: Online, mesh: Mesh, abstract: bool) -> TrainStep:
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
    dispatched = None
    if not config.frozen_trunk:
        dispatched = runner.data_parallel(step, mesh, convolves=True)
    return TrainStep(
        name, runner.data_parallel(step, mesh), put(state, replicated), None,
        put(samples, sharded), math.prod(shape) / config.update_steps, dispatched=dispatched,
    )


def program_of(config: Any) -> Program:
    """The config's networks and settings."""
    return resolve(config, FRAME, NUM_ACTIONS)


def decoder_step(program: Program, mesh: Mesh, abstract: bool = False) -> TrainStep:
    """The offline decoder's train step."""
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
        put(latents, replicated), None, program.decoding.rows,
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


def _frames(count: int, mesh: Mesh, one_window: bool) -> FrameShards:
    """Random frames; where one_window, episodes of the same three."""
    length = 3 if one_window else EPISODE
    count -= count % (length * mesh.size)
    rng = np.random.default_rng(0)
    # An episode again and again, without a copy: what a step costs does not depend on it.
    episode = rng.integers(0, 256, size=(length, *FRAME), dtype=np.uint8)
    action = rng.integers(NUM_ACTIONS, size=length).astype(np.int32)
    times = count // length
    again = lambda x: np.broadcast_to(x, (times, *x.shape)).reshape(count, *x.shape[1:])
    index = np.repeat(np.arange(times, dtype=np.int32), length)
    frames = FrameArrays(again(episode), again(action), np.zeros(count, np.float32), index)
    return shard_frames(frames, mesh.size)


def _longer(x: np.ndarray, times: int) -> jax.ShapeDtypeStruct:
    """The shape of so many times the rows; the parts' counts stay."""
    scale = max(times, 1) if x.ndim > 1 or len(x) >= FRAMES // 2 else 1
    return jax.ShapeDtypeStruct((scale * x.shape[0], *x.shape[1:]), x.dtype)


def _windows(rows: int) -> FrameWindows:
    """Streamed windows of one step."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, size=(3, 1, rows, *FRAME), dtype=np.uint8)
    action = rng.integers(NUM_ACTIONS, size=(1, rows)).astype(np.int32)
    return FrameWindows(*frames, action)
