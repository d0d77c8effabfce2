"""World-model learning: one struct that remembers, one step that updates it."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lawm_jax.data.normaliser import Normaliser, fit
from lawm_jax.data.stream import draw_windows, own_rows
from lawm_jax.data.windows import TrajectoryArrays, Windows, sample_windows
from lawm_jax.lawm.elbo import ElboConfig, Metrics, draw_noise, elbo_loss
from lawm_jax.lawm.world_model import Params, WorldModel, init_params
from lawm_jax.runner import AXIS, row_keys

LABELLED, UNLABELLED, STARTS = range(3)  # tags of a step's keys


@flax.struct.dataclass
class WorldModelState:
    """Everything that world-model training changes or counts."""

    params: Params
    opt_state: optax.OptState
    normaliser: Normaliser
    seed: jax.Array  # int32; a step's randomness is fold_in(seed, step)
    step: jax.Array  # int32


class TrainingData(NamedTuple):
    """What training may see: labelled trajectories; unlabelled ones without actions, or None.

    Where data are streamed, the windows of one step instead, rows leading.
    """

    labelled: TrajectoryArrays | Windows
    unlabelled: TrajectoryArrays | Windows | None


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
    """Sizes of a batch and of an update. Row counts are global, over all devices."""

    steps: int
    labelled_rows: int
    unlabelled_rows: int
    window: int
    learning_rate: float
    learning_rate_end: float  # share of the learning rate that a cosine decay ends at
    warmup_steps: int
    weight_decay: float
    gradient_clip: float


def make_optimiser(config: LearnerConfig) -> optax.GradientTransformation:
    """AdamW with clipped gradients, a linear warm-up and a cosine decay of the learning rate."""
    rate, warmup = config.learning_rate, config.warmup_steps
    schedule = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else rate, rate, warmup, max(config.steps, warmup + 1),
        config.learning_rate_end * rate,
    )
    # One vector instead of a leaf at a time: a few large operations instead of many small ones.
    return optax.flatten(optax.chain(
        optax.clip_by_global_norm(config.gradient_clip),
        optax.adamw(schedule, weight_decay=config.weight_decay),
    ))


def fit_normaliser(data: TrainingData, counts: Sequence[int] = ()) -> Normaliser:
    """Mean and std of all observations that training sees.

    counts: how many trajectories of each part count, where the rest repeat them to fill devices;
      so the result does not depend on the number of devices.
    """
    observations = []
    for arrays, count in itertools.zip_longest(data, counts):
        if arrays is not None:
            observation, length = arrays.observation[:count], arrays.length[:count]
            steps = np.arange(observation.shape[1])
            observations.append(observation[steps <= length[:, None]])
    return fit(observations)


def init(
    model: WorldModel, optimiser: optax.GradientTransformation, normaliser: Normaliser, seed: int
) -> WorldModelState:
    """A fresh train state."""
    params = init_params(model, jax.random.key(seed))
    return WorldModelState(
        params=params,
        opt_state=optimiser.init(params),
        normaliser=normaliser,
        seed=jnp.asarray(seed, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def draw_batch(
    config: LearnerConfig,
    state: WorldModelState,
    data: TrajectoryArrays | Windows,
    tag: int,
    rows: int,
) -> tuple[Windows, jax.Array]:
    """The windows of this step's batch, and keys for the noise on them.

    Args:
      data: this device's trajectories to draw from, or its windows that the host has drawn, rows
        leading.
      tag: LABELLED or UNLABELLED.
      rows: of this device.

    Returns:
      Windows [L, rows] with normalised observations, and [rows] keys.
    """
    keys = row_keys(state.seed, state.step, tag, rows)
    which, noise = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    if isinstance(data, Windows):
        windows = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), data)
    else:
        windows = sample_windows(data, which, config.window)
    return windows._replace(observation=state.normaliser(windows.observation)), noise


def make_step(
    model: WorldModel,
    elbo: ElboConfig,
    config: LearnerConfig,
    optimiser: optax.GradientTransformation,
    devices: int,
) -> Callable[[WorldModelState, None, TrainingData], tuple[WorldModelState, Metrics]]:
    """The per-device train step that `runner.data_parallel` maps: sample, differentiate, update."""
    labelled_rows = config.labelled_rows // devices
    unlabelled_rows = config.unlabelled_rows // devices

    def step(
        state: WorldModelState, shared: None, data: TrainingData
    ) -> tuple[WorldModelState, Metrics]:
        del shared
        draw = functools.partial(draw_batch, config, state)
        labelled, keys = draw(data.labelled, LABELLED, labelled_rows)
        unlabelled: Windows | None = None
        if unlabelled_rows:
            unlabelled, more = draw(data.unlabelled, UNLABELLED, unlabelled_rows)
            keys = jnp.concatenate([keys, more])
        noise = draw_noise(model, keys, config.window, labelled_rows)
        loss = lambda params: elbo_loss(model, elbo, params, labelled, unlabelled, noise)
        grads, metrics = jax.grad(loss, has_aux=True)(state.params)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        state = state.replace(
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            step=state.step + 1,
        )
        return state, metrics

    return step


def stream_step(
    data: TrainingData, config: LearnerConfig, seed: int, mesh: Mesh
) -> Callable[[int], TrainingData]:
    """step -> this process's windows of that step, drawn on the host from numpy arrays."""

    def draw(step: int) -> TrainingData:
        def windows(arrays: TrajectoryArrays | None, tag: int, rows: int) -> Windows | None:
            if arrays is None:
                return None
            return draw_windows(arrays, seed, tag, step, own_rows(rows, mesh), config.window)

        return TrainingData(
            windows(data.labelled, LABELLED, config.labelled_rows),
            windows(data.unlabelled, UNLABELLED, config.unlabelled_rows),
        )

    return draw
