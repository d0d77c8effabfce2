"""Stage 1: inverse and forward dynamics learned jointly from frames alone (LAPO section 4.1)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax

from lawm_jax.data.frames import FrameShards, FrameWindows, sample_windows, shift_windows
from lawm_jax.lapo import vq
from lawm_jax.lapo.fdm import FDMConfig, ForwardDynamics
from lawm_jax.lapo.idm import InverseDynamics
from lawm_jax.lapo.optimiser import TrainingConfig, make_optimiser
from lawm_jax.runner import AXIS, row_keys
from lawm_jax.vision import scale

Params = Any
Metrics = dict[str, jax.Array]
WINDOWS, SHIFTS, RESTARTS = range(3)  # tags of a step's keys
COPY_ERROR_DECAY = 0.99


@dataclasses.dataclass(frozen=True)
class LatentActionModel:
    """The networks of stage 1 and how they are trained (hashable: static in jitted functions).

    Attributes:
      idm: inverse dynamics; its `vq` holds the quantiser's settings.
      fdm: sizes of the forward dynamics.
      relative_error: divide the forward model's squared error by that of copying the last frame,
        which brings it to the commitment loss's order of magnitude. Published: False.
    """

    idm: InverseDynamics
    fdm: FDMConfig
    relative_error: bool = False


@flax.struct.dataclass
class LatentActionState:
    """Everything that stage 1 changes or counts."""

    params: dict[str, Params]  # "idm", "fdm"
    batch_stats: Params  # the forward model's running statistics; empty without them
    codebook: vq.Codebook
    copy_error: jax.Array  # [] moving average of the error of copying the last frame
    opt_state: optax.OptState
    seed: jax.Array  # int32; a step's randomness is fold_in(seed, step)
    step: jax.Array  # int32


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def init(
    model: LatentActionModel, config: TrainingConfig, frame_shape: tuple[int, int, int], seed: int
) -> LatentActionState:
    """A fresh train state for frames [H, W, 3]."""
    idm_key, fdm_key, book_key = jax.random.split(jax.random.key(seed), 3)
    frame = jnp.zeros((1, *frame_shape), jnp.uint8)
    windows = FrameWindows(frame, frame, frame, jnp.zeros(1, jnp.int32))
    z = jnp.zeros((1, model.idm.vq.latent_size))
    forward = ForwardDynamics(model.fdm).init(fdm_key, frame, frame, z, train=False)
    params = {"idm": model.idm.init(idm_key, windows)["params"], "fdm": forward["params"]}
    return LatentActionState(
        params=params,
        batch_stats=forward.get("batch_stats", {}),
        codebook=vq.init(model.idm.vq, book_key),
        copy_error=jnp.zeros(()),
        opt_state=make_optimiser(config).init(params),
        seed=jnp.asarray(seed, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def infer(model: LatentActionModel, params: dict[str, Params], windows: FrameWindows) -> jax.Array:
    """Continuous latent actions [B, Z] of windows, before any quantisation."""
    return model.idm.apply({"params": params["idm"]}, windows)


def bottleneck(
    model: LatentActionModel, codebook: vq.Codebook, z: jax.Array
) -> vq.Quantised:
    """What the forward model is given of z: the nearest codes or, without VQ, z itself."""
    quantised = vq.quantize(codebook, z)
    if model.idm.vq.enabled:
        return quantised
    return quantised._replace(z=z, commitment=jnp.zeros(()))


def predict(
    model: LatentActionModel, state: LatentActionState, windows: FrameWindows, z: jax.Array
) -> jax.Array:
    """Predicted next frames [B, H, W, 3], scaled, for latent actions; changes no state."""
    variables = {"params": state.params["fdm"], "batch_stats": state.batch_stats}
    network = ForwardDynamics(model.fdm)
    return network.apply(variables, windows.previous, windows.current, z, train=False)


def latent_action_loss(
    model: LatentActionModel,
    params: dict[str, Params],
    state: LatentActionState,
    windows: FrameWindows,
) -> tuple[jax.Array, tuple[Metrics, dict[str, Any]]]:
    """Error of the predicted next frame plus the commitment of z to its codes.

    To be called inside a mapped step: normalisation is over the global batch.

    Args:
      params: {"idm": ..., "fdm": ...}, differentiated.
      state: the rest of the train state.
      windows: [B] of this device.

    Returns:
      loss, (metrics, {"batch_stats", "copy_error": new state, "z", "indices": of the batch}).
    """
    z = infer(model, params, windows)
    quantised = bottleneck(model, state.codebook, z)
    prediction, updated = ForwardDynamics(model.fdm).apply(
        {"params": params["fdm"], "batch_stats": state.batch_stats},
        windows.previous, windows.current, quantised.z, train=True, mutable=["batch_stats"],
    )
    target, current = scale(windows.next), scale(windows.current)
    chex.assert_equal_shape([prediction, target])
    error = jnp.mean((prediction - target) ** 2)
    copied = jax.lax.pmean(jnp.mean((current - target) ** 2), AXIS)
    decay = jnp.where(state.step == 0, 0.0, COPY_ERROR_DECAY)
    copy_error = decay * state.copy_error + (1.0 - decay) * copied
    unit = jnp.maximum(copy_error, 1e-8) if model.relative_error else 1.0
    loss = error / unit + model.idm.vq.commitment * quantised.commitment
    metrics = {
        "loss": loss,
        "fdm_error": error,
        "copy_last_frame_error": copied,
        "commitment": quantised.commitment,
        "z_mean_square": jnp.mean(z**2),
    }
    return loss, (metrics, {
        "batch_stats": updated.get("batch_stats", {}),
        "copy_error": copy_error,
        "z": z,
        "indices": quantised.indices,
    })


def draw(
    state: Any, data: FrameShards | FrameWindows, rows: int, shift: int
) -> tuple[FrameWindows, FrameWindows]:
    """This device's windows of a train state's step, as they are and randomly translated.

    data: what to draw from; or, where data are streamed, the step's windows themselves.
    """
    if isinstance(data, FrameWindows):
        windows = data
    else:
        windows = sample_windows(data, row_keys(state.seed, state.step, WINDOWS, rows))
    keys = row_keys(state.seed, state.step, SHIFTS, rows)
    return windows, shift_windows(windows, keys, shift)


def make_step(
    model: LatentActionModel, config: TrainingConfig, devices: int
) -> Callable[[LatentActionState, None, FrameShards], tuple[LatentActionState, Metrics]]:
    """The per-device train step that `runner.data_parallel` maps: sample, differentiate, update."""
    rows, settings = config.rows // devices, model.idm.vq
    optimiser = make_optimiser(config)

    def step(
        state: LatentActionState, shared: None, shard: FrameShards
    ) -> tuple[LatentActionState, Metrics]:
        del shared
        _, windows = draw(state, shard, rows, config.shift)
        loss = lambda params: latent_action_loss(model, params, state, windows)
        grads, (metrics, seen) = jax.grad(loss, has_aux=True)(state.params)
        grads, metrics, batch_stats = jax.lax.pmean((grads, metrics, seen["batch_stats"]), AXIS)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.params)
        codebook = state.codebook
        if settings.enabled:
            key = jax.random.fold_in(jax.random.key(state.seed), state.step)
            key = jax.random.fold_in(key, RESTARTS)
            codebook = vq.ema_update(settings, codebook, seen["z"], seen["indices"], AXIS)
            if settings.restart_below:
                codebook, restarted = vq.restart(settings, codebook, seen["z"], key, AXIS)
                metrics["restarted_codes"] = restarted.astype(jnp.float32)
            else:
                metrics["dead_codes"] = vq.dead_codes(codebook.ema_count).astype(jnp.float32)
            used = jax.lax.psum(vq.usage(seen["indices"], settings.embeddings), AXIS)
            metrics["perplexity"] = vq.perplexity(used)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        state = state.replace(
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            codebook=codebook,
            copy_error=seen["copy_error"],
            opt_state=opt_state,
            step=state.step + 1,
        )
        return state, metrics

    return step
