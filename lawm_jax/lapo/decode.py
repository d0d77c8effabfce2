"""Stage 3: from latent actions to true ones, by a decoder that labelled transitions teach.

Offline it is trained on N transitions and composed with the frozen latent policy; online it is the
supervised head beside PPO's, trained again and again on what was gathered (LAPO section 4.3).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from lawm_jax.data.frames import FrameWindows
from lawm_jax.lapo import learner
from lawm_jax.lapo.learner import LatentActionModel, Metrics, Params
from lawm_jax.runner import AXIS, row_keys
from lawm_jax.vision import FrameNetwork, scale


class Decoder(nn.Module):
    """ReLU layers from z to action logits: [..., Z] -> [..., actions]; starts uniform."""

    units: tuple[int, ...]
    actions: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Applies the network."""
        for units in self.units:
            z = nn.relu(nn.Dense(units)(z))
        return nn.Dense(self.actions, kernel_init=nn.initializers.zeros)(z)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Settings of a decoder; offline `steps` count, online `epochs`.

    Attributes:
      units: widths of the hidden layers.
      steps: updates of the offline decoder.
      epochs: passes over what was gathered, each time the online decoder is trained.
      rows: of a batch, over all devices.
      learning_rate: Adam's.
      weight_decay: AdamW's; 0 is Adam.
      label_smoothing: share of the target spread over all actions.
    """

    units: tuple[int, ...]
    steps: int
    epochs: int
    rows: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float


class Latents(NamedTuple):
    """Labelled transitions: the first `count` rows of z [M, Z] float32 and action [M] int32."""

    z: jax.Array
    action: jax.Array
    count: jax.Array


@flax.struct.dataclass
class DecoderState:
    """Everything that decoder training changes or counts."""

    params: Params
    opt_state: optax.OptState
    seed: jax.Array
    step: jax.Array


def make_optimiser(config: DecoderConfig) -> optax.GradientTransformation:
    """AdamW at a constant learning rate."""
    return optax.adamw(config.learning_rate, weight_decay=config.weight_decay)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def init(decoder: Decoder, config: DecoderConfig, latent_size: int, seed: int) -> DecoderState:
    """A fresh train state."""
    params = decoder.init(jax.random.key(seed), jnp.zeros((1, latent_size)))["params"]
    return DecoderState(
        params=params,
        opt_state=make_optimiser(config).init(params),
        seed=jnp.asarray(seed, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def decoder_loss(
    decoder: Decoder, params: Params, z: jax.Array, action: jax.Array, smoothing: float
) -> tuple[jax.Array, Metrics]:
    """Cross-entropy of actions [B] given z [B, Z], with smoothed labels."""
    logits = decoder.apply({"params": params}, z)
    target = optax.smooth_labels(jax.nn.one_hot(action, logits.shape[-1]), smoothing)
    loss = jnp.mean(optax.softmax_cross_entropy(logits, target))
    accuracy = jnp.mean((jnp.argmax(logits, -1) == action).astype(jnp.float32))
    return loss, {"loss": loss, "accuracy": accuracy}


def make_step(
    decoder: Decoder, config: DecoderConfig, devices: int
) -> Callable[[DecoderState, Latents, None], tuple[DecoderState, Metrics]]:
    """The per-device train step that `runner.data_parallel` maps; all devices hold all `Latents`.

    One compiled step serves any number of labels: rows beyond `count` are never drawn.
    """
    rows = config.rows // devices

    def step(
        state: DecoderState, latents: Latents, sharded: None
    ) -> tuple[DecoderState, Metrics]:
        del sharded
        keys = row_keys(state.seed, state.step, 0, rows)
        chosen = jax.vmap(lambda key: jax.random.randint(key, (), 0, latents.count))(keys)
        gradient = lambda x: jax.lax.pmean(x, AXIS)
        return _update(decoder, config, state, latents, chosen, gradient)

    return step


@functools.partial(jax.jit, static_argnums=(0, 1))
def fit(
    decoder: Decoder, config: DecoderConfig, latents: Latents, seed: jax.Array
) -> tuple[Params, Metrics]:
    """A decoder trained from scratch for `config.epochs` passes over the latents gathered so far.

    Not mapped over devices: the network is tiny. A pass draws as many rows as there are, with
    replacement, so that one compiled function serves every count.

    Returns:
      Parameters and the last batch's metrics; the untrained decoder where nothing was gathered.
    """
    state = init(decoder, config, latents.z.shape[-1], seed)
    steps = config.epochs * (-(-latents.count // config.rows))

    def body(_: jax.Array, carry: tuple[DecoderState, Metrics]) -> tuple[DecoderState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), carry[0].step)
        chosen = jax.random.randint(key, (config.rows,), 0, latents.count)
        return _update(decoder, config, carry[0], latents, chosen, lambda x: x)

    nothing = {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())}
    state, metrics = jax.lax.fori_loop(0, steps, body, (state, nothing))
    return state.params, metrics


def _update(
    decoder: Decoder,
    config: DecoderConfig,
    state: DecoderState,
    latents: Latents,
    chosen: jax.Array,
    mean: Callable[[Any], Any],
) -> tuple[DecoderState, Metrics]:
    """One update on the chosen rows; `mean` averages over devices."""
    z, action = latents.z[chosen], latents.action[chosen]
    loss = lambda params: decoder_loss(decoder, params, z, action, config.label_smoothing)
    grads, metrics = mean(jax.grad(loss, has_aux=True)(state.params))
    updates, opt_state = make_optimiser(config).update(grads, state.opt_state, state.params)
    state = state.replace(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        step=state.step + 1,
    )
    return state, metrics


def empty_latents(capacity: int, latent_size: int) -> Latents:
    """Room for `capacity` labelled transitions."""
    return Latents(
        jnp.zeros((capacity, latent_size)), jnp.zeros(capacity, jnp.int32), jnp.int32(0)
    )


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def gather(
    model: LatentActionModel,
    params: dict[str, Params],
    latents: Latents,
    observation: jax.Array,
    action: jax.Array,
    done: jax.Array,
    weight: jax.Array,
) -> Latents:
    """Adds the labelled transitions of a rollout, with the z that the frozen IDM infers of them.

    Transitions whose three frames are not of one episode are left out, as are those for which no
    room is left.

    Args:
      params: {"idm": ...} of stage 1.
      observation: [N, T + 1, H, W, 3] uint8, the last one after the last action.
      action: [N, T] int32, done [N, T] bool: the action ended the episode.
      weight: [N, T] float32, 0 where the step carried no transition (a reset), otherwise 1.
    """
    before, at, after = observation[:, :-2], observation[:, 1:-1], observation[:, 2:]
    flat = lambda x: x.reshape(-1, *x.shape[2:])
    z = learner.infer(model, params, FrameWindows(*map(flat, (before, at, after, action[:, 1:]))))
    kept = flat((weight[:, :-1] > 0) & (weight[:, 1:] > 0) & ~done[:, :-1])
    # Rows without a place go past the end, where `drop` leaves them out.
    capacity = latents.z.shape[0]
    place = jnp.where(kept, latents.count + jnp.cumsum(kept) - 1, capacity)
    return Latents(
        latents.z.at[place].set(z, mode="drop"),
        latents.action.at[place].set(flat(action[:, 1:]), mode="drop"),
        jnp.minimum(latents.count + jnp.sum(kept), capacity).astype(jnp.int32),
    )


def decoded_logits(
    policy: FrameNetwork, decoder: Decoder, params: dict[str, Params], observation: jax.Array
) -> jax.Array:
    """Action logits [N, A] of d(pi(o)) for frames [N, H, W, 3] uint8 (LAPO section 4.3).

    params: {"policy": of stage 2, "decoder": ...}.
    """
    z = policy.apply({"params": params["policy"]}, scale(observation))
    return decoder.apply({"params": params["decoder"]}, z)


def choose(logits: jax.Array, key: jax.Array, temperature: float) -> jax.Array:
    """Actions [N] int32 drawn from softmax(logits [N, A] / temperature); the best one at 0."""
    if not temperature:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)
