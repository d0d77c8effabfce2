"""What LAPO's models make of held-out frames: prediction errors, codes, probes of the latents.

Everything is computed from windows given by their steps; true actions serve as the reference only.
Metrics whose names end in `_changed` are over the windows whose frame changes alone: they are left
out where none does.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lawm_jax.data.frames import FrameArrays, FrameWindows, windows_at
from lawm_jax.lapo import learner, vq
from lawm_jax.lapo.idm import stack_frames
from lawm_jax.lapo.learner import LatentActionModel, LatentActionState, Params
from lawm_jax.vision import FrameNetwork, scale

CHUNK = 256  # windows that a network sees at once: bounds memory
PROBE_STEPS, PROBE_RATE, PROBE_DECAY = 300, 0.05, 1e-4


class Description(NamedTuple):
    """What stage 1's models make of M windows, on the host.

    z, quantised: [M, Z] float32, before and after the bottleneck.
    indices: [M, K, C] int32 codes.
    fdm_error, copy_error: [M] mean squared error of the prediction and of the last frame.
    changed: [M] bool, the next frame differs from the current one.
    action: [M] int32 true actions.
    """

    z: np.ndarray
    quantised: np.ndarray
    indices: np.ndarray
    fdm_error: np.ndarray
    copy_error: np.ndarray
    changed: np.ndarray
    action: np.ndarray


def describe(
    model: LatentActionModel, state: LatentActionState, frames: FrameArrays, steps: np.ndarray
) -> Description:
    """Describes the windows of the given steps. A state fresh from `init` is the untrained IDM."""
    return in_chunks(functools.partial(_describe, model, state), frames, steps)


def latents(
    model: LatentActionModel, params: dict[str, Params], frames: FrameArrays, steps: np.ndarray
) -> np.ndarray:
    """Continuous latents [M, Z] that the inverse model infers of the windows of the given steps."""
    return in_chunks(functools.partial(_infer, model, params), frames, steps)


def in_chunks(
    function: Callable[[FrameWindows], Any], frames: FrameArrays, steps: np.ndarray
) -> Any:
    """function(windows) -> arrays [B, ...], for all steps [M], CHUNK at a time, on the host."""
    parts = []
    for first in range(0, len(steps), CHUNK):
        part = np.resize(steps[first : first + CHUNK], CHUNK)  # filled up: one shape to compile
        parts.append(jax.device_get(function(windows_at(frames, part))))
    return jax.tree.map(lambda *x: np.concatenate(x)[: len(steps)], *parts)


_infer = jax.jit(learner.infer, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _describe(
    model: LatentActionModel, state: LatentActionState, windows: FrameWindows
) -> Description:
    z = learner.infer(model, state.params, windows)
    quantised = learner.bottleneck(model, state.codebook, z)
    prediction = learner.predict(model, state, windows, quantised.z)
    current, following = scale(windows.current), scale(windows.next)
    error = lambda x: jnp.mean((x - following) ** 2, (1, 2, 3))
    changed = jnp.any(windows.current != windows.next, (1, 2, 3))
    return Description(
        z, quantised.z, quantised.indices, error(prediction), error(current), changed,
        windows.action,
    )


def predicted_frames(
    model: LatentActionModel,
    state: LatentActionState,
    frames: FrameArrays,
    steps: np.ndarray,
    z: np.ndarray,
) -> np.ndarray:
    """Predicted next frames [M, H, W, 3] uint8 of the windows of the given steps, for z [M, Z].

    z: after the bottleneck, that of the window itself (`Description.quantised`) or any other.
    """
    return np.asarray(_predict(model, state, windows_at(frames, steps), z))


@functools.partial(jax.jit, static_argnums=0)
def _predict(
    model: LatentActionModel, state: LatentActionState, windows: FrameWindows, z: jax.Array
) -> jax.Array:
    prediction = learner.predict(model, state, windows, z)
    return jnp.round(jnp.clip(prediction + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def examples(seen: Description, count: int = 8) -> list[int]:
    """The first window of each of the commonest latents, all their codes taken together.

    Of the windows whose frame changes, or of all where none does. Returns indices into M, those of
    the commonest latent first.
    """
    among = np.flatnonzero(seen.changed) if seen.changed.any() else np.arange(len(seen.changed))
    codes = seen.indices[among].reshape(len(among), -1)
    _, first, uses = np.unique(codes, axis=0, return_index=True, return_counts=True)
    return among[first[np.argsort(-uses, kind="stable")[:count]]].tolist()


def prediction_metrics(model: LatentActionModel, seen: Description) -> dict[str, float]:
    """Next-frame error beside that of copying the last frame, and the use of the codes.

    `relative` is the error in units of the copy's.
    """
    metrics = {
        "fdm_error": seen.fdm_error.mean(),
        "copy_last_frame_error": seen.copy_error.mean(),
        "changed_frames": seen.changed.mean(),
    }
    if seen.changed.any():
        error, copied = seen.fdm_error[seen.changed], seen.copy_error[seen.changed]
        metrics["fdm_error_changed"] = error.mean()
        metrics["copy_last_frame_error_changed"] = copied.mean()
        metrics["fdm_error_relative"] = seen.fdm_error.mean() / seen.copy_error.mean()
    if model.idm.vq.enabled:
        for suffix, indices in (("", seen.indices), ("_changed", seen.indices[seen.changed])):
            if len(indices):
                used = vq.usage(indices, model.idm.vq.embeddings)
                metrics[f"codebook_perplexity{suffix}"] = vq.perplexity(used)
                metrics[f"dead_codes{suffix}"] = np.sum(np.asarray(used) == 0)
    return {name: float(value) for name, value in metrics.items()}


def action_metrics(
    train: Description, test: Description, actions: int, merge: Sequence[int] | None = None
) -> dict[str, float]:
    """How well the latents tell the true action: linear probes of `train`, scored on `test`.

    merge: [actions] class of each action, where several do the same; adds the same metrics with
      `_merged` for these classes.
    """
    metrics = _action_metrics(train, test, actions, merge)
    moving = [jax.tree.map(lambda x, part=part: x[part.changed], part) for part in (train, test)]
    if all(len(part.z) for part in moving):
        of_changed = _action_metrics(*moving, actions, merge)
        metrics |= {f"{name}_changed": value for name, value in of_changed.items()}
    return metrics


def _action_metrics(
    train: Description, test: Description, actions: int, merge: Sequence[int] | None
) -> dict[str, float]:
    classes = {"": np.arange(actions)}
    if merge is not None:
        classes["_merged"] = np.asarray(merge)
    metrics = {}
    for suffix, class_of in classes.items():
        labels, truth = class_of[train.action], class_of[test.action]
        metrics[f"majority_accuracy{suffix}"] = majority_accuracy(labels, truth)
        for name, inputs, scored in (
            ("probe_accuracy", train.z, test.z),
            ("probe_accuracy_quantised", train.quantised, test.quantised),
        ):
            metrics[name + suffix] = probe_accuracy(inputs, labels, scored, truth)
    return metrics


def majority_accuracy(labels: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy on `truth` of always guessing the commonest of `labels`."""
    return float(np.mean(truth == np.bincount(labels).argmax()))


def probe_accuracy(
    inputs: np.ndarray, labels: np.ndarray, scored: np.ndarray, truth: np.ndarray
) -> float:
    """Accuracy on (scored [M', Z], truth [M']) of a linear classifier fitted to (inputs, labels).

    Multinomial logistic regression on standardised inputs, full batch, slightly regularised.
    """
    mean, std = inputs.mean(0), inputs.std(0)
    unit = lambda x: (x - mean) / np.maximum(std, 1e-6)
    classes = int(max(labels.max(), truth.max())) + 1
    predicted = _probe(unit(inputs), labels, unit(scored), classes)
    return float(np.mean(np.asarray(predicted) == truth))


@functools.partial(jax.jit, static_argnums=3)
def _probe(inputs: jax.Array, labels: jax.Array, scored: jax.Array, classes: int) -> jax.Array:
    optimiser = optax.adam(optax.linear_schedule(PROBE_RATE, 0.0, PROBE_STEPS))
    params = {"kernel": jnp.zeros((inputs.shape[-1], classes)), "bias": jnp.zeros(classes)}

    def loss(params: Params) -> jax.Array:
        logits = inputs @ params["kernel"] + params["bias"]
        error = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(error) + PROBE_DECAY * jnp.sum(params["kernel"] ** 2)

    def body(carry: tuple[Params, Any], _: None) -> tuple[tuple[Params, Any], None]:
        params, opt_state = carry
        updates, opt_state = optimiser.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(body, (params, optimiser.init(params)), length=PROBE_STEPS)
    return jnp.argmax(scored @ params["kernel"] + params["bias"], -1)


def guesses(
    policy: FrameNetwork, params: Params, frames: FrameArrays, steps: np.ndarray
) -> np.ndarray:
    """What a policy's network says of the current frames of the windows of the given steps."""
    return in_chunks(functools.partial(_policy, policy, params), frames, steps)


def latent_policy_metrics(
    policy: FrameNetwork, params: Params, frames: FrameArrays, steps: np.ndarray, z: np.ndarray
) -> dict[str, float]:
    """Error of the latent policy's guess of z [M, Z], and the share of z's variance it explains."""
    guess, metrics = guesses(policy, params, frames, steps), {}
    for suffix, rows in _all_and_changed(frames, steps):
        error, variance = np.mean((guess - z)[rows] ** 2), np.mean(z[rows].var(0))
        metrics[f"latent_policy_error{suffix}"] = float(error)
        metrics[f"latent_policy_explained{suffix}"] = float(1.0 - error / max(variance, 1e-12))
    return metrics


def _all_and_changed(frames: FrameArrays, steps: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(suffix of a metric's name, [M] which windows it is over), the second if there are any."""
    changed = np.any(frames.observation[steps] != frames.observation[steps + 1], (1, 2, 3))
    everything = ("", np.ones(len(steps), bool))
    return [everything, ("_changed", changed)] if changed.any() else [everything]


def cloning_accuracy(
    policy: FrameNetwork, params: Params, frames: FrameArrays, steps: np.ndarray,
    merge: Sequence[int] | None = None,
) -> dict[str, float]:
    """How often behaviour cloning's best action is the true one."""
    logits = guesses(policy, params, frames, steps)
    return _accuracy("cloning", logits, frames, steps, merge)


def supervised_idm_accuracy(
    network: FrameNetwork, differences: bool, params: Params, frames: FrameArrays,
    steps: np.ndarray, merge: Sequence[int] | None = None,
) -> dict[str, float]:
    """How often the inverse model trained on true actions finds the true one."""
    logits = in_chunks(functools.partial(_inverse, network, differences, params), frames, steps)
    return _accuracy("supervised_idm", logits, frames, steps, merge)


@functools.partial(jax.jit, static_argnums=0)
def _policy(policy: FrameNetwork, params: Params, windows: FrameWindows) -> jax.Array:
    return policy.apply({"params": params}, scale(windows.current))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _inverse(
    network: FrameNetwork, differences: bool, params: Params, windows: FrameWindows
) -> jax.Array:
    return network.apply({"params": params}, stack_frames(windows, differences))


def _accuracy(
    name: str, logits: np.ndarray, frames: FrameArrays, steps: np.ndarray,
    merge: Sequence[int] | None,
) -> dict[str, float]:
    classes = {"": np.arange(logits.shape[-1])}
    if merge is not None:
        classes["_merged"] = np.asarray(merge)
    guess, action = logits.argmax(-1), frames.action[steps]
    parts = _all_and_changed(frames, steps)
    return {
        f"{name}_accuracy{merged}{suffix}": float(np.mean(class_of[guess] == class_of[action],
                                                          where=rows))
        for merged, class_of in classes.items()
        for suffix, rows in parts
    }
