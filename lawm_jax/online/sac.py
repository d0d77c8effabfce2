"""Soft actor-critic (Haarnoja et al., 2018, temperature tuned), replay buffer on the device.

Pure functions over two pytrees: `SACState` holds everything that is trained or counted, `Replay`
the experience. One call of `learn` writes a chunk of new experience and scans many updates.

Differences from the paper: critics with LayerNorm, n-step returns, and an option `intrinsic` that
replaces the task's reward by the disagreement of an ensemble of one-step predictors (the reward of
plan2explore, Sekar et al., 2020, eq. 1, without its world model).

Shapes: B batch, N environments, T steps an episode, O observation, A action, M ensemble members.
"""

import dataclasses
import functools
from typing import Any

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lawm_jax.dists import Normal, tanh_normal_log_prob
from lawm_jax.online.ensemble import disagreement
from lawm_jax.online.replay import Batch, Replay, append, sample

LOG_STD_MIN, LOG_STD_MAX = -5.0, 1.0


@dataclasses.dataclass(frozen=True)
class SACConfig:
    """Settings of the learner (hashable: the jitted functions take it as a static argument).

    Attributes:
        actor_units: width of the actor's two hidden layers.
        critic_units: width of each critic's two hidden layers.
        learning_rate: Adam's, for every network and the temperature.
        batch_size: transitions an update.
        discount: per agent step.
        n_step: length of the returns, at least 1. Must be 1 where `intrinsic` is set.
        target_rate: rate of the critics' moving average.
        target_entropy: wanted entropy of the policy in nats per action dimension.
        intrinsic: learn to explore: the reward is the ensemble's disagreement.
        members: members M of the ensemble.
        ensemble_units: width of a member's two hidden layers.
    """

    actor_units: int = 192
    critic_units: int = 192
    learning_rate: float = 1e-3
    batch_size: int = 128
    discount: float = 0.99
    n_step: int = 3
    target_rate: float = 0.01
    target_entropy: float = -1.0
    intrinsic: bool = False
    members: int = 5
    ensemble_units: int = 128


@flax.struct.dataclass
class SACState:
    """Parameters, optimiser states and counters.

    Attributes:
        params: dict with "actor", "critic", "log_alpha" and, where `intrinsic`, "ensemble".
        target_critic: moving average of params["critic"].
        optimizer: optax state over params.
        observation_mean: [O] running mean of the replay buffer's observations.
        observation_std: [O] their standard deviation; every network sees (o - mean) / std.
        disagreement_scale: [] running mean of the disagreement, which scales the reward to about 1.
        seed: [] the seed; random numbers are fold_in(seed, step).
        step: [] updates done.
    """

    params: dict[str, Any]
    target_critic: Any
    optimizer: Any
    observation_mean: jax.Array
    observation_std: jax.Array
    disagreement_scale: jax.Array
    seed: jax.Array
    step: jax.Array


class Actor(nn.Module):
    """Observation [..., O] -> the Gaussian before tanh, mean and std [..., A]."""

    units: int
    action_size: int

    @nn.compact
    def __call__(self, observation: jax.Array) -> Normal:
        """Applies the network; log std is squashed into [LOG_STD_MIN, LOG_STD_MAX]."""
        x = nn.relu(nn.Dense(self.units)(observation))
        x = nn.relu(nn.Dense(self.units)(x))
        mean, raw = jnp.split(nn.Dense(2 * self.action_size)(x), 2, axis=-1)
        # softsign's shift makes a raw output of 0 a std of 1: the untrained policy acts broadly.
        middle = -LOG_STD_MIN / (LOG_STD_MAX - LOG_STD_MIN)
        shift = jnp.log(middle / (1.0 - middle))
        log_std = LOG_STD_MIN + (LOG_STD_MAX - LOG_STD_MIN) * nn.sigmoid(raw + shift)
        return Normal(mean, jnp.exp(log_std))


class TwinCritic(nn.Module):
    """Two independent value networks: ([..., O], [..., A]) -> [..., 2]."""

    units: int

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        """Applies both networks."""
        inputs = jnp.concatenate([observation, action], axis=-1)
        values = []
        for _ in range(2):
            x = nn.relu(nn.LayerNorm()(nn.Dense(self.units)(inputs)))
            x = nn.relu(nn.LayerNorm()(nn.Dense(self.units)(x)))
            values.append(nn.Dense(1)(x))
        return jnp.concatenate(values, axis=-1)


class Ensemble(nn.Module):
    """M predictors of the next normalised observation: ([..., O], [..., A]) -> [M, ..., O]."""

    units: int
    members: int

    @nn.compact
    def __call__(self, observation: jax.Array, action: jax.Array) -> jax.Array:
        """Applies every member; each predicts the change and adds it to the observation."""
        inputs = jnp.concatenate([observation, action], axis=-1)
        predictions = []
        for _ in range(self.members):
            x = nn.relu(nn.Dense(self.units)(inputs))
            x = nn.relu(nn.Dense(self.units)(x))
            predictions.append(observation + nn.Dense(observation.shape[-1])(x))
        return jnp.stack(predictions)


def init(seed: int, observation_size: int, action_size: int, config: SACConfig) -> SACState:
    """A fresh learner."""
    if config.intrinsic and config.n_step != 1:
        raise ValueError("the intrinsic reward is computed for one-step transitions: n_step=1")
    key = jax.random.key(seed)
    observation, action = jnp.zeros((1, observation_size)), jnp.zeros((1, action_size))
    keys = jax.random.split(key, 3)
    critic = _critic(config).init(keys[1], observation, action)
    params = {
        "actor": Actor(config.actor_units, action_size).init(keys[0], observation),
        "critic": critic,
        "log_alpha": jnp.log(jnp.float32(0.1)),
    }
    if config.intrinsic:
        params["ensemble"] = _ensemble(config).init(keys[2], observation, action)
    return SACState(
        params=params,
        # A copy: the state is donated, and no buffer may be donated twice.
        target_critic=jax.tree.map(jnp.copy, critic),
        optimizer=_optimizer(config).init(params),
        observation_mean=jnp.zeros(observation_size),
        observation_std=jnp.ones(observation_size),
        disagreement_scale=jnp.float32(1.0),
        seed=jnp.int32(seed),
        step=jnp.int32(0),
    )


@jax.jit
def acting_params(state: SACState) -> Any:
    """Parameters of an actor that takes raw observations: the normalisation moves into layer 1."""
    params = dict(state.params["actor"]["params"])
    kernel = params["Dense_0"]["kernel"] / state.observation_std[:, None]
    bias = params["Dense_0"]["bias"] - state.observation_mean @ kernel
    return {"params": {**params, "Dense_0": {"kernel": kernel, "bias": bias}}}


@functools.partial(jax.jit, static_argnames=("units",))
def act(actor_params: Any, observation: jax.Array, noise: jax.Array, units: int) -> jax.Array:
    """Actions [N, A] of the stochastic policy for observations [N, O] and normal noise [N, A].

    The parameters are those of `acting_params`, the observations raw.
    The noise comes from outside, since drawing it costs more than the rest where N is small.
    """
    policy = Actor(units, noise.shape[-1]).apply(actor_params, observation)
    return jnp.tanh(policy.sample(noise))


@functools.partial(jax.jit, static_argnames=("updates", "config"), donate_argnums=(0, 1))
def learn(
    state: SACState,
    replay: Replay,
    observation: jax.Array,
    action: jax.Array,
    reward: jax.Array,
    updates: int,
    config: SACConfig,
) -> tuple[SACState, Replay, dict[str, jax.Array]]:
    """Appends K steps of experience (see `append`), then does `updates` updates.

    Returns:
        The new state and buffer and the metrics' means over the updates (none for 0 updates).
    """
    replay = append(replay, observation, action, reward)
    state = update_observation_statistics(state, replay, observation)
    if updates == 0:  # the warm-up: nothing to compile
        return state, replay, {}

    def body(state: SACState, _: None) -> tuple[SACState, dict[str, jax.Array]]:
        rng = jax.random.fold_in(jax.random.key(state.seed), state.step)
        sample_rng, update_rng = jax.random.split(rng)
        batch = sample(replay, sample_rng, config.batch_size, config.n_step, config.discount)
        batch = batch._replace(
            observation=(batch.observation - state.observation_mean) / state.observation_std,
            next_observation=(batch.next_observation - state.observation_mean)
            / state.observation_std,
        )
        return update(state, batch, update_rng, config)

    state, metrics = jax.lax.scan(body, state, None, length=updates)
    return state, replay, jax.tree.map(jnp.mean, metrics)


def update(
    state: SACState, batch: Batch, rng: jax.Array, config: SACConfig
) -> tuple[SACState, dict[str, jax.Array]]:
    """One gradient step of critics, actor, temperature and, where `intrinsic`, the ensemble.

    Args:
        state: its observation statistics are not used: `batch` holds normalised observations.
        batch: transitions.
        rng: key of the policies' noise.
        config: settings.
    """
    critic_rng, actor_rng = jax.random.split(rng)
    metrics = {}
    grads = {}
    scale = state.disagreement_scale
    if config.intrinsic:
        loss = functools.partial(ensemble_loss, batch=batch, config=config)
        (_, more), grads["ensemble"] = jax.value_and_grad(loss, has_aux=True)(
            state.params["ensemble"]
        )
        disagreement_b = more.pop("disagreement_b")
        scale = scale + 0.01 * (jnp.mean(disagreement_b) - scale)
        # Early on the running mean starts at 1, far from the truth: follow the batch at once.
        scale = jnp.where(state.step < 100, jnp.mean(disagreement_b), scale)
        batch = batch._replace(reward=disagreement_b / jnp.maximum(scale, 1e-8))
        metrics |= more

    loss = functools.partial(critic_loss, state=state, batch=batch, rng=critic_rng, config=config)
    (_, more), grads["critic"] = jax.value_and_grad(loss, has_aux=True)(state.params["critic"])
    metrics |= more

    loss = functools.partial(actor_loss, state=state, batch=batch, rng=actor_rng, config=config)
    (_, more), grads["actor"] = jax.value_and_grad(loss, has_aux=True)(state.params["actor"])
    metrics |= more

    entropy = metrics["entropy"]
    target = config.target_entropy * batch.action.shape[-1]
    # d/d log_alpha of alpha * (entropy - target), with the entropy held fixed.
    grads["log_alpha"] = jnp.exp(state.params["log_alpha"]) * (entropy - target)
    metrics["alpha"] = jnp.exp(state.params["log_alpha"])

    updates, optimizer = _optimizer(config).update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(
        params=params,
        target_critic=optax.incremental_update(
            params["critic"], state.target_critic, config.target_rate
        ),
        optimizer=optimizer,
        disagreement_scale=scale,
        step=state.step + 1,
    )
    return state, metrics


def critic_loss(
    params: Any, state: SACState, batch: Batch, rng: jax.Array, config: SACConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Squared error to the soft n-step target (SAC v2, eq. 5-6), entropy at its last step."""
    policy = _policy(state.params["actor"], batch.next_observation, batch, config)
    pre_tanh = policy.sample(jax.random.normal(rng, policy.mean.shape))
    log_prob_b = tanh_normal_log_prob(policy, pre_tanh)
    next_q_b2 = _critic(config).apply(
        state.target_critic, batch.next_observation, jnp.tanh(pre_tanh)
    )
    alpha = jnp.exp(state.params["log_alpha"])
    next_value_b = jnp.min(next_q_b2, axis=-1) - alpha * log_prob_b
    target_b = jax.lax.stop_gradient(batch.reward + batch.discount * next_value_b)
    q_b2 = _critic(config).apply(params, batch.observation, batch.action)
    chex.assert_equal_shape([target_b, q_b2[:, 0]])
    loss = jnp.mean(jnp.sum((q_b2 - target_b[:, None]) ** 2, axis=-1))
    return loss, {"critic_loss": loss, "q": jnp.mean(q_b2), "reward": jnp.mean(batch.reward)}


def actor_loss(
    params: Any, state: SACState, batch: Batch, rng: jax.Array, config: SACConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """alpha log pi - min Q of a reparameterised action (SAC v2, eq. 9)."""
    policy = _policy(params, batch.observation, batch, config)
    pre_tanh = policy.sample(jax.random.normal(rng, policy.mean.shape))
    log_prob_b = tanh_normal_log_prob(policy, pre_tanh)
    q_b2 = _critic(config).apply(state.params["critic"], batch.observation, jnp.tanh(pre_tanh))
    alpha = jnp.exp(state.params["log_alpha"])
    chex.assert_equal_shape([log_prob_b, q_b2[:, 0]])
    loss = jnp.mean(alpha * log_prob_b - jnp.min(q_b2, axis=-1))
    return loss, {"actor_loss": loss, "entropy": -jnp.mean(log_prob_b)}


def ensemble_loss(
    params: Any, batch: Batch, config: SACConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Squared error of every member's prediction; the metrics carry the disagreement [B]."""
    prediction_mbo = _ensemble(config).apply(params, batch.observation, batch.action)
    error_mb = jnp.mean((prediction_mbo - batch.next_observation) ** 2, axis=-1)
    loss = jnp.mean(jnp.sum(error_mb, axis=0))
    disagreement_b = disagreement(jax.lax.stop_gradient(prediction_mbo))
    return loss, {
        "ensemble_loss": loss,
        "disagreement": jnp.mean(disagreement_b),
        "disagreement_b": disagreement_b,
    }


def update_observation_statistics(
    state: SACState, replay: Replay, observation: jax.Array
) -> SACState:
    """Folds a chunk [K + 1, N, O] into the mean and deviation of everything seen so far."""
    chunk = observation[1:].reshape(-1, observation.shape[-1])
    share = (observation.shape[0] - 1) / replay.steps
    mean = state.observation_mean + share * (jnp.mean(chunk, 0) - state.observation_mean)
    second = state.observation_std**2 + state.observation_mean**2
    second = second + share * (jnp.mean(chunk**2, 0) - second)
    # The floor keeps a coordinate that hardly moves from dominating.
    std = jnp.sqrt(jnp.maximum(second - mean**2, 0.01))
    return state.replace(observation_mean=mean, observation_std=std)


def _policy(params: Any, observation: jax.Array, batch: Batch, config: SACConfig) -> Normal:
    return Actor(config.actor_units, batch.action.shape[-1]).apply(params, observation)


def _critic(config: SACConfig) -> TwinCritic:
    return TwinCritic(config.critic_units)


def _ensemble(config: SACConfig) -> Ensemble:
    return Ensemble(config.ensemble_units, config.members)


def _optimizer(config: SACConfig) -> optax.GradientTransformation:
    return optax.adam(config.learning_rate)
