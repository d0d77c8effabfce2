"""Proximal policy optimisation from frames (Schulman et al., 2017), and LAPO's online decoding.

Pure functions over one struct; the environments are stepped outside. Decoding a latent policy is
the same update on a network with a second, supervised head, whose logits are averaged with those of
PPO (LAPO section 4.3). Which parameters learn, and how fast, is said a group at a time.

Letters of shapes: N environments, T steps a rollout, A actions, F flattened features.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from lawm_jax.lapo.decode import Decoder
from lawm_jax.online.reward_scale import RewardScale, normalise
from lawm_jax.online.reward_scale import init as init_rewards
from lawm_jax.returns import generalised_advantages
from lawm_jax.runner import AXIS, row_keys
from lawm_jax.vision import EncoderConfig, Trunk, scale

Params = dict[str, Any]
Metrics = dict[str, jax.Array]
Points = tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class PPOConfig:
    """Settings of the learner.

    Attributes:
      frames: of the whole training.
      envs: environments N, over all devices.
      horizon: steps T of a rollout; `minibatches` must divide it.
      minibatches: of an epoch; each has T / minibatches steps, drawn anew, of every environment.
      epochs: passes over a rollout.
      discount: gamma.
      lambda_: of the advantages.
      clip: of the probability ratio, and of the change of a value.
      entropy: weight of the entropy.
      value: weight of the value loss.
      gradient_clip: largest global norm.
      reward_clip: largest size of a normalised reward.
      learning_rate: Adam's.
      groups: (group of parameters, ((frames, share of the learning rate), ...)), linear in
        between, constant outside. Groups that are not named are frozen.
    """

    frames: int
    envs: int
    horizon: int
    minibatches: int
    epochs: int
    discount: float
    lambda_: float
    clip: float
    entropy: float
    value: float
    gradient_clip: float
    reward_clip: float
    learning_rate: float
    groups: tuple[tuple[str, Points], ...]

    @property
    def steps(self) -> int:
        """Updates of the whole training, each on one rollout of every environment."""
        return self.frames // (self.envs * self.horizon)


class ActorCritic(nn.Module):
    """Action logits and value of frames; every top-level name is a group of parameters.

    trunk -> fc -> policy, value; and, where latent_size > 0, the supervised branch
    trunk -> latent_fc -> latent -> decoder, whose logits are averaged with the policy's.
    """

    encoder: EncoderConfig
    actions: int
    latent_size: int = 0
    decoder_units: tuple[int, ...] = ()

    def setup(self) -> None:
        """Declares the groups; the policy starts uniform."""
        dense = functools.partial(nn.Dense, dtype=jnp.dtype(self.encoder.dtype))
        self.trunk = Trunk(self.encoder)
        self.fc = dense(self.encoder.features)
        self.policy = nn.Dense(self.actions, kernel_init=nn.initializers.zeros)
        self.value = nn.Dense(1)
        if self.latent_size:
            self.latent_fc = dense(self.encoder.features)
            self.latent = nn.Dense(self.latent_size)
            self.decoder = Decoder(self.decoder_units, self.actions)

    def features(self, observation: jax.Array) -> jax.Array:
        """Frames [B, H, W, 3] uint8 -> the trunk's features [B, F]."""
        return self.trunk(scale(observation))

    def heads(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, F] -> logits [B, A], values [B], float32."""
        x = nn.relu(self.fc(features)).astype(jnp.float32)
        logits, value = self.policy(x), self.value(x)[:, 0]
        if self.latent_size:
            z = self.latent(nn.relu(self.latent_fc(features)).astype(jnp.float32))
            logits = (logits + self.decoder(z)) / 2.0
        return logits, value

    def __call__(self, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Frames [B, H, W, 3] uint8 -> logits [B, A], values [B]."""
        return self.heads(self.features(observation))


class Rollout(NamedTuple):
    """T steps of N environments, environments leading so that devices can divide them.

    observation: [N, T, H, W, 3] uint8, what each action saw.
    action: [N, T] int32; log_prob and value [N, T] float32 as `act` gave them.
    reward: [N, T] float32 of the action; done: [N, T] bool, it ended the episode.
    weight: [N, T] float32, 0 for steps that carry no transition (EnvPool's resets), otherwise 1.
    last_value: [N] float32 of the observation after the last step.
    """

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array
    weight: jax.Array
    last_value: jax.Array


@flax.struct.dataclass
class PPOState:
    """Everything that PPO changes or counts."""

    params: Params
    opt_state: optax.OptState  # of the groups that learn
    rewards: RewardScale
    seed: jax.Array
    step: jax.Array  # updates: step * envs * horizon frames


def init(
    network: ActorCritic, config: PPOConfig, frame_shape: tuple[int, int, int], seed: int,
    **given: Params,
) -> PPOState:
    """A fresh learner for frames [H, W, 3], with the given groups of parameters in place of new.

    Raises:
      ValueError: `config.groups` or `given` names a group that the network does not have.
    """
    params = _init_params(network, frame_shape, seed)
    unknown = {*given, *(name for name, _ in config.groups)} - set(params)
    if unknown:
        raise ValueError(f"no such group of parameters: {', '.join(sorted(unknown))}")
    # Copies: the state is donated, and no buffer may be donated twice or be another state's.
    params |= jax.tree.map(jnp.copy, given)
    return PPOState(
        params=params,
        opt_state=_optimiser(config).init(learning(config, params)),
        rewards=init_rewards(config.envs),
        seed=jnp.asarray(seed, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init_params(network: ActorCritic, frame_shape: tuple[int, int, int], seed: int) -> Params:
    return network.init(jax.random.key(seed), jnp.zeros((1, *frame_shape), jnp.uint8))["params"]


def from_latent_policy(latent_policy: Params) -> Params:
    """Groups for `init` from stage 2's policy: its layers frozen, and a copy of fc to learn with.

    Without the supervised branch (LAPO's "RL, no-SL") only trunk and fc are to be given.
    """
    return {
        "trunk": latent_policy["trunk"],
        "fc": latent_policy["fc"],
        "latent_fc": latent_policy["fc"],
        "latent": latent_policy["head"],
    }


def learning(config: PPOConfig, params: Params) -> Params:
    """The groups of parameters that learn."""
    return {name: params[name] for name, _ in config.groups}


@functools.partial(jax.jit, static_argnums=0)
def act(
    network: ActorCritic, params: Params, observation: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Samples for frames [N, H, W, 3] uint8: actions [N], log-probabilities [N], values [N]."""
    logits, value = network.apply({"params": params}, observation)
    action = jax.random.categorical(key, logits).astype(jnp.int32)
    return action, _log_prob(logits, action), value


class Samples(NamedTuple):
    """What the loss needs of steps [B] (or [N, T]); `inputs` are frames, or features [..., F]."""

    inputs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    weight: jax.Array


def ppo_loss(
    network: ActorCritic, config: PPOConfig, params: Params, batch: Samples
) -> tuple[jax.Array, Metrics]:
    """Clipped surrogate, clipped value error and entropy (Schulman et al., 2017, eq. 7 and 9).

    Means are over the steps of weight 1 of all devices: a device's loss is its share of them times
    the number of devices, so that the mean over devices is the loss. Advantages are normalised so.
    """
    total = lambda x: jax.lax.psum(jnp.sum(batch.weight * x), AXIS)
    count = jnp.maximum(total(jnp.ones_like(batch.weight)), 1.0)
    share = lambda x: jnp.sum(batch.weight * x) / count * jax.lax.axis_size(AXIS)
    mean = total(batch.advantage) / count
    std = jnp.sqrt(total((batch.advantage - mean) ** 2) / count)
    advantage = (batch.advantage - mean) / (std + 1e-8)

    method = None if batch.inputs.dtype == jnp.uint8 else "heads"
    logits, value = network.apply({"params": params}, batch.inputs, method=method)
    log_ratio = _log_prob(logits, batch.action) - batch.log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - config.clip, 1.0 + config.clip)
    chex.assert_equal_shape([ratio, advantage, value, batch.value])
    policy_loss = -share(jnp.minimum(ratio * advantage, clipped * advantage))

    target = batch.value + batch.advantage
    near = batch.value + jnp.clip(value - batch.value, -config.clip, config.clip)
    value_loss = 0.5 * share(jnp.maximum((value - target) ** 2, (near - target) ** 2))
    log_probs = jax.nn.log_softmax(logits)
    entropy = share(-jnp.sum(jnp.exp(log_probs) * log_probs, -1))
    loss = policy_loss + config.value * value_loss - config.entropy * entropy
    return loss, {
        "loss": loss,
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approximate_kl": share(ratio - 1.0 - log_ratio),
        "clipped": share((jnp.abs(ratio - 1.0) > config.clip).astype(jnp.float32)),
    }


def make_update(
    network: ActorCritic, config: PPOConfig, devices: int
) -> Callable[[PPOState, None, Rollout], tuple[PPOState, Metrics]]:
    """The per-device update on one rollout that `runner.data_parallel` maps, to run for one step.

    Where the trunk is frozen its features are computed once, not in every epoch.
    """
    rows = config.envs // devices
    frozen_trunk = "trunk" not in dict(config.groups)
    optimiser = _optimiser(config)

    def one(carry: tuple, batch: Samples, rates: dict[str, jax.Array], frozen: Params) -> tuple:
        trained, opt_state = carry
        loss = lambda trained: ppo_loss(network, config, frozen | trained, batch)
        grads, metrics = jax.grad(loss, has_aux=True)(trained)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        updates, opt_state = optimiser.update(grads, opt_state)
        trained = {
            name: jax.tree.map(lambda p, u, rate=rates[name]: p - rate * u, group, updates[name])
            for name, group in trained.items()
        }
        return (trained, opt_state), metrics | {"gradient_norm": optax.tree.norm(grads)}

    def update(state: PPOState, shared: None, rollout: Rollout) -> tuple[PPOState, Metrics]:
        del shared
        chex.assert_shape(rollout.action, (rows, config.horizon))
        rewards, samples = _prepare(config, state.rewards, rollout)
        frozen = {k: v for k, v in state.params.items() if k not in dict(config.groups)}
        if frozen_trunk:
            samples = samples._replace(inputs=_features(network, state.params, samples.inputs))
        rates = learning_rates(config, state.step)
        order = _order(config, state, rows)

        def body(carry: tuple, order: jax.Array) -> tuple:
            pick = jax.vmap(lambda x, order: x[order])
            flat = lambda x: pick(x, order).reshape(-1, *x.shape[2:])
            return one(carry, jax.tree.map(flat, samples), rates, frozen)

        carry = (learning(config, state.params), state.opt_state)
        (trained, opt_state), metrics = jax.lax.scan(body, carry, order)
        metrics = jax.tree.map(jnp.mean, metrics)
        metrics["reward_deviation"] = jnp.sqrt(rewards.variance)
        state = state.replace(
            params=state.params | trained,
            opt_state=opt_state,
            rewards=rewards,
            step=state.step + 1,
        )
        return state, metrics

    return update


def learning_rates(config: PPOConfig, step: jax.Array) -> dict[str, jax.Array]:
    """The learning rate of each group at an update."""
    frames = (step * (config.envs * config.horizon)).astype(jnp.float32)
    return {
        name: config.learning_rate * jnp.interp(frames, *map(jnp.array, zip(*points, strict=True)))
        for name, points in config.groups
    }


def _prepare(
    config: PPOConfig, rewards: RewardScale, rollout: Rollout
) -> tuple[RewardScale, Samples]:
    """Normalised rewards and advantages of a rollout; samples [N, T]."""
    # A reset's reward is a stale copy of the last one, and it ends nothing.
    real = rollout.weight > 0
    reward, done = jnp.where(real, rollout.reward, 0.0), rollout.done & real
    rewards, reward = normalise(rewards, reward, done, config.discount, config.reward_clip)
    advantage = generalised_advantages(
        reward.T, rollout.value.T, rollout.last_value, 1.0 - done.T.astype(jnp.float32),
        config.discount, config.lambda_,
    ).T
    return rewards, Samples(
        rollout.observation, rollout.action, rollout.log_prob, rollout.value, advantage,
        rollout.weight,
    )


def _features(network: ActorCritic, params: Params, observation: jax.Array) -> jax.Array:
    """The trunk's features [N, T, F], one environment after another: bounds memory."""
    return jax.lax.map(
        lambda x: network.apply({"params": params}, x, method="features"), observation
    )


def _order(config: PPOConfig, state: PPOState, rows: int) -> jax.Array:
    """Steps [epochs * minibatches, N, T / minibatches] of each environment, a fresh order an epoch.

    Keyed by the environment, so that a minibatch is the same whatever the number of devices.
    """

    def one(key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, config.epochs)
        order = jax.vmap(lambda key: jax.random.permutation(key, config.horizon))(keys)
        return order.reshape(config.epochs * config.minibatches, -1)

    return jax.vmap(one, out_axes=1)(row_keys(state.seed, state.step, 0, rows))


def _optimiser(config: PPOConfig) -> optax.GradientTransformation:
    """Adam without its learning rate, which is each group's own."""
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip), optax.scale_by_adam(eps=1e-5)
    )


def _log_prob(logits: jax.Array, action: jax.Array) -> jax.Array:
    """log pi(action) [B] of logits [B, A]."""
    log_probs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_probs, action[:, None], -1)[:, 0]
