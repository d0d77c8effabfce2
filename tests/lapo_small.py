"""Small frames, models and settings that the tests of lawm_jax.lapo share."""

import jax
import numpy as np

from lawm_jax import runner
from lawm_jax.data.frames import FrameArrays
from lawm_jax.lapo.decode import DecoderConfig
from lawm_jax.lapo.fdm import FDMConfig
from lawm_jax.lapo.idm import InverseDynamics
from lawm_jax.lapo.learner import LatentActionModel
from lawm_jax.lapo.optimiser import TrainingConfig
from lawm_jax.lapo.vq import VQConfig
from lawm_jax.vision import EncoderConfig

SIDE = 8
MOVES = np.array([[0, 1], [0, -1], [1, 0], [-1, 0]])  # what each action does to the dot
PATCHES = EncoderConfig(channels=(16,), multiplier=1, blocks=(1,), patch=2, features=32)
IMPALA = EncoderConfig(channels=(2, 3), multiplier=1, blocks=(1, 1), patch=0, features=5)
VQ = VQConfig(books=2, codes=3, size=4, embeddings=5)
TRAINING = TrainingConfig(
    steps=20, rows=8, shift=0, learning_rate=1e-3, learning_rate_start=0.1, learning_rate_end=0.01,
    warmup_steps=2, weight_decay=0.01, gradient_clip=2.0,
)
DECODER = DecoderConfig(units=(16,), steps=150, epochs=40, rows=32, learning_rate=1e-2,
                        weight_decay=0.0, label_smoothing=0.0)


def make_model(published=True, **changes):
    """IMPALA and a U-Net with batch normalisation, or patches throughout; tiny."""
    vq = changes.pop("vq", VQ)
    if published:
        idm, fdm = InverseDynamics(IMPALA, vq), FDMConfig(width=4, levels=3)
    else:
        idm = InverseDynamics(PATCHES, vq, differences=True, normalise=True)
        fdm = FDMConfig(width=16, levels=2, patch=2, residual=True)
    return LatentActionModel(idm, fdm, **changes)


def noise_frames(lengths=(5, 2, 7), seed=0):
    """Frames of pure noise; episode e has lengths[e] actions."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths) + len(lengths)
    action = rng.integers(0, 15, rows)
    action[np.cumsum(np.array(lengths) + 1) - 1] = -1
    return FrameArrays(
        rng.integers(0, 256, (rows, SIDE, SIDE, 3)).astype(np.uint8),
        action.astype(np.int32),
        rng.standard_normal(rows).astype(np.float32),
        np.repeat(np.arange(len(lengths)), np.array(lengths) + 1).astype(np.int32),
    )


def moving_dots(dots=1, episodes=40, length=30, seed=0):
    """Dots of 2 x 2 pixels that together move a cell by MOVES[action], round the edges."""
    rng = np.random.default_rng(seed)
    cells = SIDE // 2
    action = rng.integers(0, len(MOVES), (episodes, length))
    start = rng.permuted(np.tile(np.arange(cells**2), (episodes, 1)), axis=1)[:, :dots]
    start = np.stack([start // cells, start % cells], -1)[:, None]
    moves = np.concatenate([np.zeros((episodes, 1, 2), int), MOVES[action].cumsum(1)], 1)
    row, column = np.moveaxis((start + moves[:, :, None]) % cells, -1, 0)
    observation = np.zeros((episodes, length + 1, cells, cells, 3), np.uint8)
    episode, step = np.ogrid[:episodes, : length + 1]
    observation[episode[..., None], step[..., None], row, column] = 255
    observation = observation.repeat(2, 2).repeat(2, 3)
    action = np.concatenate([action, np.full((episodes, 1), -1)], 1)
    return FrameArrays(
        observation.reshape(-1, SIDE, SIDE, 3),
        action.reshape(-1).astype(np.int32),
        np.zeros(episodes * (length + 1), np.float32),
        np.repeat(np.arange(episodes), length + 1).astype(np.int32),
    )


def run(step, state, shared, sharded, steps):
    """Runs so many train steps on one device; returns (state, metrics of the last call)."""
    mesh = runner.make_mesh(jax.devices()[:1])
    state, metrics = runner.data_parallel(step, mesh)(state, shared, sharded, steps=steps)
    return jax.device_get((state, metrics))
