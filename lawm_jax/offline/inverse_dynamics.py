"""An inverse dynamics model: which action led from o_t to o_{t+1}, learned where actions are known.

Its answers label the trajectories that have no actions (the baseline IDM-TD3+BC of LAWM). A part of
the labelled steps is kept for validation: the parameters that did best on it are the ones used.

Shapes: B batch, W = 2 + 2 context observations of a window, O observation, A action, L layers.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lawm_jax.data.normaliser import Normaliser
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.transitions import fill, window_rows
from lawm_jax.errors import InputError
from lawm_jax.nets import Dense, Hidden
from lawm_jax.runner import AXIS, row_keys

WINDOWS = 0  # tag of a step's keys
CHUNK = 8192  # windows labelled at once: bounds memory

Params = Any
Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class InverseDynamicsConfig:
    """Settings of the model and its learning; `batch_rows` is global, over all devices."""

    steps: int
    batch_rows: int
    context: int  # observations before o_t, and as many after o_{t+1}
    units: int
    layers: int
    dropout: float  # share of the units dropped after every hidden layer
    learning_rate: float
    weight_decay: float
    validate_every: int
    validation_fraction: float  # share of the labelled steps
    validation_piece: int  # consecutive steps that are kept for validation together
    action_size: int


class Examples(NamedTuple):
    """M windows of normalised observations [M, W * O] and the actions [M, A] in their middle."""

    window: jax.Array
    action: jax.Array


class LabelledData(NamedTuple):
    """What is learned from, and what decides when it was learned best."""

    training: Examples
    validation: Examples


@flax.struct.dataclass
class InverseDynamicsState:
    """Everything that training changes or counts."""

    params: Params
    opt_state: optax.OptState
    best: Params  # those of the lowest validation error so far
    best_error: jax.Array
    validation_error: jax.Array  # the latest
    normaliser: Normaliser
    seed: jax.Array  # int32; a step's randomness is fold_in(seed, step)
    step: jax.Array  # int32


class InverseDynamics(nn.Module):
    """An MLP with LayerNorm, Swish and dropout whose output is the mean action in (-1, 1)."""

    units: int
    layers: int
    action_size: int

    @nn.compact
    def __call__(self, window: jax.Array, scale: jax.Array | None = None) -> jax.Array:
        """window [B, W * O] and each unit's scale [B, L, units] (None: no dropout) -> [B, A]."""
        x = window
        for layer in range(self.layers):
            x = Hidden(self.units)(x)
            if scale is not None:
                x *= scale[:, layer]
        return jnp.tanh(Dense(self.action_size)(x))


def labelled_data(
    config: InverseDynamicsConfig,
    normaliser: Normaliser,
    trajectories: Sequence[Trajectory],
    seed: int,
    multiple_of: int = 1,
) -> LabelledData:
    """Windows of trajectories with actions, whole pieces of them kept for validation by seed.

    Each trajectory is cut into pieces of `validation_piece` steps, the last one as long as it comes
    out. At least one is kept and at least one is learned from, halves where there is one only.

    Raises:
      InputError: there is a single labelled step.
    """
    lengths = [t.length for t in trajectories]
    if sum(lengths) < 2:
        raise InputError(
            "the inverse dynamics model needs two labelled steps at least, one to learn from and "
            "one to validate on: raise data.label_fraction"
        )
    observation = _observations(normaliser, trajectories)
    everything = Examples(
        window=_windows(observation, window_rows(lengths, config.context)),
        action=np.concatenate([t.action for t in trajectories]),
    )
    size = min(config.validation_piece, -(-sum(lengths) // 2))
    pieces = np.concatenate([n * max(lengths) + np.arange(length) // size
                             for n, length in enumerate(lengths)])
    names = np.random.default_rng(seed).permutation(np.unique(pieces))
    kept = min(max(1, round(config.validation_fraction * len(names))), len(names) - 1)
    validation = np.isin(pieces, names[:kept])
    take = lambda chosen: fill(jax.tree.map(lambda x: x[chosen], everything), multiple_of)
    return LabelledData(take(~validation), take(validation))


def _observations(normaliser: Normaliser, trajectories: Sequence[Trajectory]) -> np.ndarray:
    """All normalised observations, one trajectory after another."""
    return np.asarray(normaliser(np.concatenate([t.observation for t in trajectories])))


def _windows(observation: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Windows as the network takes them: rows [M, W] -> [M, W * O]."""
    return observation[rows].reshape(len(rows), -1)


def _network(config: InverseDynamicsConfig) -> InverseDynamics:
    return InverseDynamics(config.units, config.layers, config.action_size)


def _make_optimiser(config: InverseDynamicsConfig) -> optax.GradientTransformation:
    """AdamW with a cosine decay of the learning rate to zero."""
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    return optax.flatten(optax.adamw(schedule, weight_decay=config.weight_decay))


@functools.partial(jax.jit, static_argnums=0)
def init(config: InverseDynamicsConfig, normaliser: Normaliser, seed: int) -> InverseDynamicsState:
    """A fresh train state for observations of the normaliser's size."""
    size = (2 + 2 * config.context) * normaliser.mean.shape[0]
    params = _network(config).init(jax.random.key(seed), jnp.zeros((1, size)))["params"]
    return InverseDynamicsState(
        params=params,
        opt_state=_make_optimiser(config).init(params),
        best=jax.tree.map(jnp.copy, params),  # no buffer may be donated twice
        best_error=jnp.asarray(jnp.inf, jnp.float32),
        validation_error=jnp.asarray(jnp.inf, jnp.float32),
        normaliser=jax.tree.map(jnp.copy, normaliser),  # the state is donated
        seed=jnp.asarray(seed, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def squared_error(
    config: InverseDynamicsConfig, params: Params, examples: Examples, scale: jax.Array | None
) -> jax.Array:
    """Mean squared error of one dimension of the actions."""
    action = _network(config).apply({"params": params}, examples.window, scale)
    chex.assert_equal_shape([action, examples.action])
    return jnp.mean((action - examples.action) ** 2)


def keep_best(
    state: InverseDynamicsState, params: Params, error: jax.Array
) -> InverseDynamicsState:
    """Notes a validation error; parameters that do better than all before become the best."""
    better = error < state.best_error
    return state.replace(
        best=jax.tree.map(lambda new, old: jnp.where(better, new, old), params, state.best),
        best_error=jnp.minimum(error, state.best_error),
        validation_error=error,
    )


def make_step(
    config: InverseDynamicsConfig, devices: int
) -> Callable[[InverseDynamicsState, None, LabelledData], tuple[InverseDynamicsState, Metrics]]:
    """The per-device train step that `runner.data_parallel` maps.

    It validates after its first update and after every validate_every-th.
    """
    rows = config.batch_rows // devices
    optimiser = _make_optimiser(config)

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        which, noise = jax.random.split(key)
        kept = jax.random.bernoulli(noise, 1.0 - config.dropout, (config.layers, config.units))
        return jax.random.randint(which, (), 0, count), kept / (1.0 - config.dropout)

    def step(
        state: InverseDynamicsState, shared: None, data: LabelledData
    ) -> tuple[InverseDynamicsState, Metrics]:
        del shared
        keys = row_keys(state.seed, state.step, WINDOWS, rows)
        index, scale = jax.vmap(draw, (0, None))(keys, data.training.action.shape[0])
        batch = jax.tree.map(lambda x: x[index], data.training)
        loss = lambda params: squared_error(config, params, batch, scale)
        error, grads = jax.lax.pmean(jax.value_and_grad(loss)(state.params), AXIS)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        def validate(state: InverseDynamicsState) -> InverseDynamicsState:
            error = squared_error(config, params, data.validation, None)
            return keep_best(state, params, jax.lax.pmean(error, AXIS))

        due = (state.step == 0) | ((state.step + 1) % config.validate_every == 0)
        state = jax.lax.cond(due, validate, lambda state: state, state)
        state = state.replace(params=params, opt_state=opt_state, step=state.step + 1)
        return state, {
            "training_error": error,
            "validation_error": state.validation_error,
            "best_validation_error": state.best_error,
        }

    return step


@functools.partial(jax.jit, static_argnums=0)
def _predict(config: InverseDynamicsConfig, params: Params, window: jax.Array) -> jax.Array:
    return _network(config).apply({"params": params}, window)


def label(
    config: InverseDynamicsConfig,
    state: InverseDynamicsState,
    trajectories: Sequence[Trajectory],
) -> list[Trajectory]:
    """The trajectories with the actions that the best parameters see in their observations.

    Actions that the trajectories may have are not looked at.
    """
    lengths = [t.length for t in trajectories]
    observation = _observations(state.normaliser, trajectories)
    rows = window_rows(lengths, config.context)
    actions = []
    for first in range(0, len(rows), CHUNK):
        part = rows[first : first + CHUNK]
        filled = np.resize(part, (CHUNK, part.shape[1]))  # one shape, one compilation
        action = _predict(config, state.best, _windows(observation, filled))
        actions.append(np.asarray(action)[: len(part)])
    split = np.split(np.concatenate(actions), np.cumsum(lengths)[:-1])
    return [
        dataclasses.replace(trajectory, action=action)
        for trajectory, action in zip(trajectories, split, strict=True)
    ]


def action_error(labelled: Sequence[Trajectory], true: Sequence[Trajectory]) -> float | None:
    """Mean squared error of one dimension of the actions; None where no true ones are known."""
    errors = [
        np.square(ours.action - theirs.action, dtype=np.float64)
        for ours, theirs in zip(labelled, true, strict=True)
        if theirs.action is not None
    ]
    return float(np.mean(np.concatenate(errors))) if errors else None


def action_variance(trajectories: Sequence[Trajectory]) -> float:
    """What always guessing the mean action would score."""
    everything = np.concatenate([t.action for t in trajectories])
    return float(np.mean(np.var(everything, axis=0, dtype=np.float64)))
