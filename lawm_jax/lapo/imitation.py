"""Learning from windows what follows from a frame: latent policy, cloning, supervised IDM.

Stage 2 of LAPO (section 4.2) regresses the latent action that stage 1's frozen inverse dynamics
infers; behaviour cloning and the supervised inverse model, the references, classify true actions.
Distillation, which LAPO does not have, classifies what decoders make of the latent actions. All are
one `FrameNetwork` with one train step; they differ in the loss and in what of the network learns.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax

from lawm_jax.data.frames import FrameShards, FrameWindows
from lawm_jax.lapo import learner
from lawm_jax.lapo.decode import Decoder
from lawm_jax.lapo.idm import stack_frames
from lawm_jax.lapo.learner import LatentActionModel, Metrics, Params
from lawm_jax.lapo.optimiser import TrainingConfig, make_optimiser
from lawm_jax.runner import AXIS
from lawm_jax.vision import FrameNetwork, scale

# (trained parameters, frozen parameters, windows, the same translated) -> loss, metrics
Loss = Callable[[Params, Any, FrameWindows, FrameWindows], tuple[jax.Array, Metrics]]


@flax.struct.dataclass
class ImitationState:
    """Everything that training changes or counts."""

    params: Params
    opt_state: optax.OptState
    seed: jax.Array
    step: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def init(
    network: FrameNetwork, config: TrainingConfig, frame_shape: tuple[int, int, int], seed: int
) -> ImitationState:
    """A fresh train state. frame_shape: [H, W, C] of the input, C = 9 for the inverse model."""
    params = network.init(jax.random.key(seed), jnp.zeros((1, *frame_shape)))["params"]
    return start(params, config, seed)


def start(
    params: Params, config: TrainingConfig, seed: int, many: bool = False
) -> ImitationState:
    """A train state of the given parameters; many: of several networks, see `make_step`."""
    return ImitationState(
        params=params,
        opt_state=_optimiser(config, many).init(params),
        seed=jnp.asarray(seed, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def latent_policy_loss(policy: FrameNetwork, model: LatentActionModel) -> Loss:
    """||pi(o_t) - z_t||^2, averaged over the numbers of z (LAPO section 4.2).

    z_t is the inverse model's continuous output; its parameters, {"idm": ...}, are the frozen ones.
    """

    def loss(
        params: Params, frozen: dict[str, Params], windows: FrameWindows, shifted: FrameWindows
    ) -> tuple[jax.Array, Metrics]:
        z = jax.lax.stop_gradient(learner.infer(model, frozen, windows))
        guess = policy.apply({"params": params}, scale(shifted.current))
        chex.assert_equal_shape([z, guess])
        error = jnp.mean((guess - z) ** 2)
        return error, {"loss": error, "z_mean_square": jnp.mean(z**2)}

    return loss


def cloning_loss(policy: FrameNetwork) -> Loss:
    """Cross-entropy of the true action given o_t: behaviour cloning (LAPO section 3.2)."""

    def loss(
        params: Params, frozen: None, windows: FrameWindows, shifted: FrameWindows
    ) -> tuple[jax.Array, Metrics]:
        del frozen, windows
        return classification(policy.apply({"params": params}, scale(shifted.current)),
                              shifted.action)

    return loss


def distillation_start(
    policy: Params,
    head: Params,
    decoders: int,
    config: TrainingConfig,
    seed: int,
    trunk: bool = False,
) -> ImitationState:
    """One policy of true actions a decoder: the latent policy's `fc` and a new head, [K, ...] each.

    Args:
      policy: the latent policy's parameters.
      head: a linear layer from features to logits.
      decoders: K.
      trunk: every policy learns a trunk of its own, which begins as the latent policy's; else that
        one stays as it is and is not among the parameters.
    """
    own = {"fc": policy["fc"], "head": head} | ({"trunk": policy["trunk"]} if trunk else {})
    repeat = lambda x: jnp.repeat(jnp.asarray(x)[None], decoders, 0)
    return start(jax.tree.map(repeat, own), config, seed, many=True)


def distillation_loss(
    policy: FrameNetwork, model: LatentActionModel, decoder: Decoder
) -> Loss:
    """Cross-entropy of what K decoders make of z_t, given o_t; the sum of K policies' losses.

    A latent policy that regresses z_t tends to the mean of the latents that may follow a frame, and
    what a decoder makes of a mean is not the mean of what it makes of each. Here the decoders come
    first and the mean second: p(a | o_t) = E[d(z_t) | o_t], learned from all frames and from no
    other labels than the decoders'.

    Trained: {"fc", "head"} or {"trunk", "fc", "head"} of `distillation_start`. Frozen: {"idm",
    "decoders"}, the decoders' parameters with a leading axis [K], and "trunk" where it is not
    trained.
    """

    def loss(
        params: Params, frozen: dict[str, Params], windows: FrameWindows, shifted: FrameWindows
    ) -> tuple[jax.Array, Metrics]:
        z = learner.infer(model, frozen, windows)
        decode = lambda one: jax.nn.softmax(decoder.apply({"params": one}, z))
        target = jax.lax.stop_gradient(jax.vmap(decode)(frozen["decoders"]))
        frames = scale(shifted.current)
        if "trunk" in params:
            guess = lambda own: policy.apply({"params": own}, frames)
            logits = _one_by_one(guess, params)
        else:
            trunk = {"trunk": frozen["trunk"]}  # unbatched: the K policies share its features
            logits = jax.vmap(lambda own: policy.apply({"params": own | trunk}, frames))(params)
        chex.assert_equal_shape([target, logits])
        error = optax.softmax_cross_entropy(logits, target).mean(-1)
        return error.sum(), {"loss": error.mean()}

    return loss


def _one_by_one(apply: Callable[[Params], jax.Array], params: Params) -> jax.Array:
    """jax.vmap(apply)(params), which would make grouped convolutions of a network's: slow ones.

    All networks' activations are kept for the gradient.
    """
    networks = range(len(jax.tree.leaves(params)[0]))
    return jnp.stack([apply(jax.tree.map(lambda x, k=k: x[k], params)) for k in networks])


def supervised_idm_loss(network: FrameNetwork, differences: bool) -> Loss:
    """Cross-entropy of the true action given (o_{t-1}, o_t, o_{t+1}): what an IDM could know."""

    def loss(
        params: Params, frozen: None, windows: FrameWindows, shifted: FrameWindows
    ) -> tuple[jax.Array, Metrics]:
        del frozen, windows
        frames = stack_frames(shifted, differences)
        return classification(network.apply({"params": params}, frames), shifted.action)

    return loss


def classification(logits: jax.Array, action: jax.Array) -> tuple[jax.Array, Metrics]:
    """Mean cross-entropy and accuracy of logits [B, A] for actions [B]."""
    chex.assert_equal_shape_prefix([logits, action], 1)
    loss = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, action))
    accuracy = jnp.mean((jnp.argmax(logits, -1) == action).astype(jnp.float32))
    return loss, {"loss": loss, "accuracy": accuracy}


def make_step(
    loss: Loss, config: TrainingConfig, devices: int, many: bool = False
) -> Callable[[ImitationState, Any, FrameShards], tuple[ImitationState, Metrics]]:
    """The per-device train step that `runner.data_parallel` maps.

    Its shared input is the loss's frozen parameters, None where it has none. many: the parameters
    are those of several networks on a leading axis, the loss is the sum of theirs, and the
    gradients of each are clipped by their own norm, so that they learn as each would alone.
    """
    rows, optimiser = config.rows // devices, _optimiser(config, many)

    def step(
        state: ImitationState, frozen: Any, shard: FrameShards
    ) -> tuple[ImitationState, Metrics]:
        windows, shifted = learner.draw(state, shard, rows, config.shift)
        objective = lambda params: loss(params, frozen, windows, shifted)
        grads, metrics = jax.grad(objective, has_aux=True)(state.params)
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


def _optimiser(config: TrainingConfig, many: bool) -> optax.GradientTransformation:
    """The stages' optimiser, or one for each network of a leading axis."""
    one = make_optimiser(config)
    if not many:
        return one
    return optax.GradientTransformation(jax.vmap(one.init), jax.vmap(one.update))
