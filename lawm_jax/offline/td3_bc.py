"""TD3+BC (Fujimoto and Gu, 2021) on transitions that live on the device.

Behaviour cloning is the same without critics: what remains of the actor's loss is its imitation.

Shapes: B batch, O observation, A action, two critics on a leading axis. Observations are normalised
before they come here; the train state keeps how, for acting.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lawm_jax.data.normaliser import Normaliser
from lawm_jax.data.transitions import Transitions
from lawm_jax.runner import AXIS, row_keys

CRITICS = 2
STD_OFFSET = 1e-3  # added to the observations' std (section 5)
TRANSITIONS = 0  # tag of a step's keys

Params = Any
Metrics = dict[str, jax.Array]
# PyTorch's default for linear layers, which the published settings were found with.
KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


@dataclasses.dataclass(frozen=True)
class TD3BCConfig:
    """Settings of the learner; `batch_rows` is global, over all devices."""

    steps: int
    batch_rows: int
    units: int
    layers: int
    learning_rate: float
    discount: float
    target_rate: float
    policy_delay: int  # updates of the critics for one of the actor and the targets
    policy_noise: float  # std of the noise on target actions
    noise_clip: float
    alpha: float  # weight of the value against the imitation
    critic_layer_norm: bool  # LayerNorm in the critics, after every hidden layer
    action_size: int
    critics: bool  # False: behaviour cloning


@flax.struct.dataclass
class TD3BCState:
    """Everything that training changes or counts."""

    params: dict[str, Params]  # "actor" and, unless cloning, "critic" (leading axis: two)
    target: dict[str, Params]  # their slow copies; empty when cloning
    opt_state: dict[str, optax.OptState]  # as params
    actor_metrics: Metrics  # of the actor's latest update, which is not at every step
    normaliser: Normaliser
    seed: jax.Array  # int32; a step's randomness is fold_in(seed, step)
    step: jax.Array  # int32


class ReLUNetwork(nn.Module):
    """Hidden layers with ReLU and a linear output: [..., D] -> [..., out].

    layer_norm: normalise what enters each ReLU, which bounds what the network makes of inputs that
      it never saw (Ball et al., 2023, section 4.2).
    """

    units: int
    layers: int
    out: int
    layer_norm: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the network."""
        for _ in range(self.layers):
            x = nn.Dense(self.units, kernel_init=KERNEL_INIT)(x)
            x = nn.relu(nn.LayerNorm()(x) if self.layer_norm else x)
        return nn.Dense(self.out, kernel_init=KERNEL_INIT)(x)


def actor(config: TD3BCConfig, params: Params, observation: jax.Array) -> jax.Array:
    """The deterministic policy: [..., O] -> [..., A] in [-1, 1]."""
    network = ReLUNetwork(config.units, config.layers, config.action_size)
    return jnp.tanh(network.apply({"params": params}, observation))


def critic(
    config: TD3BCConfig, params: Params, observation: jax.Array, action: jax.Array
) -> jax.Array:
    """One critic's discounted return [...] of actions [..., A] at observations [..., O]."""
    inputs = jnp.concatenate([observation, action], axis=-1)
    return _critic_network(config).apply({"params": params}, inputs)[..., 0]


def twin_critics(
    config: TD3BCConfig, params: Params, observation: jax.Array, action: jax.Array
) -> jax.Array:
    """Both critics' estimates [2, ...]."""
    return jax.vmap(lambda one: critic(config, one, observation, action))(params)


def _critic_network(config: TD3BCConfig) -> ReLUNetwork:
    return ReLUNetwork(config.units, config.layers, 1, config.critic_layer_norm)


def make_optimiser(config: TD3BCConfig) -> optax.GradientTransformation:
    """Adam, for the actor and for the critics apart."""
    return optax.adam(config.learning_rate)


@functools.partial(jax.jit, static_argnums=0)
def init(config: TD3BCConfig, normaliser: Normaliser, seed: int) -> TD3BCState:
    """A fresh train state for observations of the normaliser's size."""
    actor_key, critic_key = jax.random.split(jax.random.key(seed))
    size = normaliser.mean.shape[0]
    network = ReLUNetwork(config.units, config.layers, config.action_size)
    params = {"actor": network.init(actor_key, jnp.zeros(size))["params"]}
    metrics = {"imitation_error": jnp.zeros(())}
    if config.critics:
        inputs = jnp.zeros(size + config.action_size)
        create = lambda key: _critic_network(config).init(key, inputs)["params"]
        params["critic"] = jax.vmap(create)(jax.random.split(critic_key, CRITICS))
        metrics |= {"actor_loss": jnp.zeros(()), "policy_value": jnp.zeros(())}
    optimiser = make_optimiser(config)
    return TD3BCState(
        params=params,
        target=jax.tree.map(jnp.copy, params) if config.critics else {},
        opt_state={name: optimiser.init(part) for name, part in params.items()},
        actor_metrics=metrics,
        normaliser=jax.tree.map(jnp.copy, normaliser),  # the state is donated
        seed=jnp.asarray(seed, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def critic_loss(
    config: TD3BCConfig, params: Params, target: Params, batch: Transitions, noise: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Squared errors of both critics to the smoothed clipped double-Q target (TD3, algorithm 1).

    Args:
      params: of the critics.
      target: {"actor", "critic"}, the slow copies.
      noise: [B, A] standard-normal.
    """
    clipped = jnp.clip(config.policy_noise * noise, -config.noise_clip, config.noise_clip)
    action = actor(config, target["actor"], batch.next_observation) + clipped
    action = jnp.clip(action, -1.0, 1.0)
    value = twin_critics(config, target["critic"], batch.next_observation, action).min(0)
    wanted = batch.reward + config.discount * value
    estimate = twin_critics(config, params, batch.observation, batch.action)
    chex.assert_equal_shape([wanted, estimate[0]])
    loss = jnp.mean(jnp.sum((estimate - jax.lax.stop_gradient(wanted)) ** 2, axis=0))
    return loss, {"critic_loss": loss, "value": estimate.mean()}


def actor_loss(
    config: TD3BCConfig, params: dict[str, Params], batch: Transitions
) -> tuple[jax.Array, Metrics]:
    """-lambda Q(o, pi(o)) + (pi(o) - a)^2, lambda = alpha / mean |Q| (TD3+BC, equations 3 and 5).

    The mean is that of the batch over all devices: call it inside a mapped step.
    """
    action = actor(config, params["actor"], batch.observation)
    chex.assert_equal_shape([action, batch.action])
    imitation = jnp.mean((action - batch.action) ** 2)
    if not config.critics:
        return imitation, {"imitation_error": imitation}
    first = jax.tree.map(lambda x: jax.lax.stop_gradient(x[0]), params["critic"])
    value = critic(config, first, batch.observation, action)
    size = jax.lax.pmean(jnp.mean(jnp.abs(jax.lax.stop_gradient(value))), AXIS)
    loss = imitation - config.alpha / size * value.mean()
    return loss, {
        "imitation_error": imitation, "actor_loss": loss, "policy_value": value.mean()
    }


def update(
    config: TD3BCConfig, state: TD3BCState, batch: Transitions, noise: jax.Array
) -> tuple[TD3BCState, Metrics]:
    """One update of the critics and, every policy_delay-th time, of the actor and the targets.

    Call it inside a mapped step, with this device's share of the batch and of the noise [B, A].
    """
    metrics = {}
    if config.critics:
        loss = lambda critic: critic_loss(config, critic, state.target, batch, noise)
        state, metrics = _descend(config, state, "critic", loss)

    def update_actor(state: TD3BCState) -> TD3BCState:
        loss = lambda actor: actor_loss(config, {**state.params, "actor": actor}, batch)
        state, metrics = _descend(config, state, "actor", loss)
        slowly = lambda new, old: optax.incremental_update(new, old, config.target_rate)
        target = {name: slowly(state.params[name], old) for name, old in state.target.items()}
        return state.replace(target=target, actor_metrics=metrics)

    due = (state.step + 1) % config.policy_delay == 0
    state = jax.lax.cond(due, update_actor, lambda state: state, state)
    return state.replace(step=state.step + 1), metrics | state.actor_metrics


def _descend(
    config: TD3BCConfig,
    state: TD3BCState,
    name: str,
    loss: Callable[[Params], tuple[jax.Array, Metrics]],
) -> tuple[TD3BCState, Metrics]:
    """One step of Adam for state.params[name]."""
    grads, metrics = jax.grad(loss, has_aux=True)(state.params[name])
    grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
    updates, opt_state = make_optimiser(config).update(grads, state.opt_state[name])
    params = optax.apply_updates(state.params[name], updates)
    state = state.replace(
        params={**state.params, name: params}, opt_state={**state.opt_state, name: opt_state}
    )
    return state, metrics


def make_step(
    config: TD3BCConfig, devices: int
) -> Callable[[TD3BCState, None, Transitions], tuple[TD3BCState, Metrics]]:
    """The per-device train step that `runner.data_parallel` maps: sample, update."""
    rows = config.batch_rows // devices

    def draw(key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        which, noise = jax.random.split(key)
        # randint would hash three times as much; the bias is count / 2^32
        index = jax.random.bits(which) % jnp.uint32(count)
        return index, jax.random.normal(noise, (config.action_size,))

    def step(
        state: TD3BCState, shared: None, data: Transitions
    ) -> tuple[TD3BCState, Metrics]:
        del shared
        keys = row_keys(state.seed, state.step, TRANSITIONS, rows)
        index, noise = jax.vmap(draw, (0, None))(keys, data.reward.shape[0])
        return update(config, state, jax.tree.map(lambda x: x[index], data), noise)

    return step


Actor = Callable[[Params, Normaliser, jax.Array], jax.Array]


def make_actor(config: TD3BCConfig) -> Actor:
    """The policy that acts, jitted once: (params, normaliser, raw [N, O]) -> actions [N, A]."""

    @jax.jit
    def act(params: Params, normaliser: Normaliser, observation: jax.Array) -> jax.Array:
        return actor(config, params, normaliser(observation))

    return act


def acting(actor: Actor, state: TD3BCState) -> Callable[..., tuple[np.ndarray, None]]:
    """The policy as `rollout` calls it: act(None, observation, t) -> (action, None)."""
    params, normaliser = state.params["actor"], state.normaliser
    return lambda carry, raw, t: (np.asarray(actor(params, normaliser, raw)), carry)


def expected_return(config: TD3BCConfig, state: TD3BCState, observation: np.ndarray) -> jax.Array:
    """The discounted return [N] that the critics' minimum expects of the policy's actions."""
    normalised = state.normaliser(observation)
    action = actor(config, state.params["actor"], normalised)
    return twin_critics(config, state.params["critic"], normalised, action).min(0)
