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
import numpy as np
import optax

from lawm_jax.data.frames import FrameArrays
from lawm_jax.lapo.learner import Metrics, Params
from lawm_jax.runner import AXIS, row_keys
from lawm_jax.vision import FrameNetwork, scale

TEMPERATURES = (0.25, 64.0, 65)  # from, to, how many: eight for each doubling


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


def episodes_of(
    observation: np.ndarray, action: np.ndarray, reward: np.ndarray, weight: np.ndarray
) -> FrameArrays:
    """A rollout as frames whose episodes are told apart, environment after environment.

    Args:
      observation: [N, T + 1, H, W, 3] uint8, the last one after the last action.
      action, reward: [N, T].
      weight: [N, T], 0 where the step was a reset: the next frame is of another episode.
    """
    begins = np.ones(observation.shape[:2], bool)  # frame t + 1 begins an episode: reset at t
    begins[:, 1:] = weight == 0
    last = lambda x, value: np.pad(x, ((0, 0), (0, 1)), constant_values=value).reshape(-1)
    return FrameArrays(
        observation.reshape(-1, *observation.shape[2:]),
        last(action, -1).astype(np.int32),
        last(reward, 0).astype(np.float32),
        (np.cumsum(begins) - 1).astype(np.int32),
    )


@functools.partial(jax.jit, donate_argnums=0)
def append(latents: Latents, z: jax.Array, action: jax.Array, count: jax.Array) -> Latents:
    """Adds the first `count` rows of z [M, Z] and action [M], as many as there is room for."""
    capacity, row = latents.z.shape[0], jnp.arange(z.shape[0])
    # Rows without a place go past the end, where `drop` leaves them out.
    place = jnp.where(row < count, latents.count + row, capacity)
    return Latents(
        latents.z.at[place].set(z, mode="drop"),
        latents.action.at[place].set(action, mode="drop"),
        jnp.minimum(latents.count + count, capacity).astype(jnp.int32),
    )


def decoded_logits(
    policy: FrameNetwork, decoder: Decoder, params: dict[str, Params], observation: jax.Array
) -> jax.Array:
    """Action logits [N, A] of d(pi(o)) for frames [N, H, W, 3] uint8 (LAPO section 4.3).

    params: {"policy": of stage 2, "decoder": ...}.
    """
    z = policy.apply({"params": params["policy"]}, scale(observation))
    return decoder.apply({"params": params["decoder"]}, z)


@functools.partial(jax.jit, static_argnums=0)
def calibrate(
    decoder: Decoder, params: Params, guess: jax.Array, action: jax.Array
) -> tuple[Params, jax.Array]:
    """Divides a decoder's logits by the temperature that makes labels likeliest given the policy.

    Temperature scaling (Guo et al., 2017). A decoder of few labels is certain of them, and so of
    what it makes of a latent policy's guesses, which it has not seen: the policy it gives hardly
    draws its actions, and stays in the loops it runs into.

    Args:
      guess: [N, Z] the latent policy's guesses for the labelled transitions.
      action: [N] their true actions.

    Returns:
      Parameters of the same structure, and the temperature, one of TEMPERATURES.
    """
    logits = decoder.apply({"params": params}, guess)
    temperatures = jnp.geomspace(*TEMPERATURES)
    error = jax.vmap(lambda temperature: jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(logits / temperature, action)
    ))(temperatures)
    temperature = temperatures[jnp.argmin(error)]
    last = f"Dense_{len(decoder.units)}"
    return params | {last: jax.tree.map(lambda x: x / temperature, params[last])}, temperature


def choose(logits: jax.Array, key: jax.Array, temperature: float) -> jax.Array:
    """Actions [N] int32 drawn from softmax(logits [N, A] / temperature); the best one at 0."""
    if not temperature:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    return jax.random.categorical(key, logits / temperature).astype(jnp.int32)
