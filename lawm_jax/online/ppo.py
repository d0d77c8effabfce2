"""Proximal policy optimisation from frames (Schulman et al., 2017), and LAPO's online decoding.

Pure functions over one struct; the environments are stepped outside. Decoding a latent policy is
the same update on a network with a second, supervised head, whose logits are averaged with those of
PPO (LAPO section 4.3). Which parameters learn, and how fast, is said a group at a time.

An update is `make_prepare`'s function (rewards and advantages of a rollout), then epochs x
minibatches of `make_step`'s, which the runner loops over: XLA's convolutions are slow inside loops
on CPUs. A trunk that is frozen has run when the policy acted, and does not run again.

Letters of shapes: N environments, T steps a rollout, A actions, F flattened features.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax

from lawm_jax.online.actor_critic import ActorCritic
from lawm_jax.online.reward_scale import RewardScale, normalise
from lawm_jax.online.reward_scale import init as init_rewards
from lawm_jax.returns import generalised_advantages
from lawm_jax.runner import AXIS, row_keys

Params = dict[str, Any]
Metrics = dict[str, jax.Array]
Points = tuple[tuple[float, float], ...]
ORDER, ACT = range(2)  # tags of an update's keys


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
    def updates(self) -> int:
        """Updates of the whole training, each on one rollout of every environment."""
        return self.frames // self.rollout_frames

    @property
    def rollout_frames(self) -> int:
        """Frames of one rollout of every environment."""
        return self.envs * self.horizon

    @property
    def update_steps(self) -> int:
        """Minibatch steps of one update."""
        return self.epochs * self.minibatches

    @property
    def frozen_trunk(self) -> bool:
        """Whether the features of a frame never change."""
        return "trunk" not in dict(self.groups)


class Rollout(NamedTuple):
    """T steps of N environments, environments leading so that devices can divide them.

    inputs: what each action saw: frames [N, T, H, W, 3] uint8 or, where the trunk is frozen, its
      features [N, T, F].
    action: [N, T] int32; log_prob and value [N, T] float32 as `act` gave them.
    reward: [N, T] float32 of the action; done: [N, T] bool, it ended the episode.
    weight: [N, T] float32, 0 for steps that carry no transition (EnvPool's resets), otherwise 1.
    last_value: [N] float32 of the observation after the last step.
    """

    inputs: jax.Array
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
    step: jax.Array  # minibatch steps, `PPOConfig.update_steps` to an update


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


def learning(config: PPOConfig, params: Params) -> Params:
    """The groups of parameters that learn."""
    return {name: params[name] for name, _ in config.groups}


class Acted(NamedTuple):
    """What a policy does about frames [N]: actions, log-probabilities, values [N]; inputs as in
    `Rollout`, [N, ...]."""

    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    inputs: jax.Array


def make_act(
    network: ActorCritic, config: PPOConfig, devices: int
) -> Callable[[tuple[PPOState, jax.Array], jax.Array], tuple[None, Acted]]:
    """The per-device function that `runner.map_rows` maps: samples for frames [N, H, W, 3] uint8.

    It is called with (state, t): step t of the rollout that the state's next update learns from.
    """
    rows = config.envs // devices

    def act(shared: tuple[PPOState, jax.Array], observation: jax.Array) -> tuple[None, Acted]:
        state, t = shared
        # A rollout asks T + 1 times: the last one is for the value only.
        count = (state.step // config.update_steps) * (config.horizon + 1) + t
        keys = row_keys(state.seed, count, ACT, rows)
        apply = functools.partial(network.apply, {"params": state.params})
        features = apply(observation, method="features")
        logits, value = apply(features, method="heads")
        action = jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
        inputs = features if config.frozen_trunk else observation
        return None, Acted(action, _log_prob(logits, action), value, inputs)

    return act


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


def make_prepare(
    config: PPOConfig,
) -> Callable[[PPOState, Rollout], tuple[PPOState, Samples]]:
    """The per-device function that `runner.map_rows` maps: a rollout's samples [N, T].

    The state returned has counted the rollout's rewards.
    """

    def prepare(state: PPOState, rollout: Rollout) -> tuple[PPOState, Samples]:
        # A reset's reward is a stale copy of the last one, and it ends nothing.
        real = rollout.weight > 0
        reward, done = jnp.where(real, rollout.reward, 0.0), rollout.done & real
        rewards, reward = normalise(
            state.rewards, reward, done, rollout.weight, config.discount, config.reward_clip
        )
        advantage = generalised_advantages(
            reward.T, rollout.value.T, rollout.last_value, 1.0 - done.T.astype(jnp.float32),
            config.discount, config.lambda_,
        ).T
        return state.replace(rewards=rewards), Samples(
            rollout.inputs, rollout.action, rollout.log_prob, rollout.value, advantage,
            rollout.weight,
        )

    return prepare


def make_step(
    network: ActorCritic, config: PPOConfig, devices: int
) -> Callable[[PPOState, None, Samples], tuple[PPOState, Metrics]]:
    """The per-device minibatch step that `runner.data_parallel` maps.

    An update is `config.update_steps` of them on the samples [N, T] of one rollout.
    """
    rows = config.envs // devices
    optimiser = _optimiser(config)

    def step(state: PPOState, shared: None, samples: Samples) -> tuple[PPOState, Metrics]:
        del shared
        chex.assert_shape(samples.action, (rows, config.horizon))
        order = _order(config, state, rows)
        pick = jax.vmap(lambda x, order: x[order])
        flat = lambda x: pick(x, order).reshape(-1, *x.shape[2:])
        batch = jax.tree.map(flat, samples)
        trained = learning(config, state.params)
        loss = lambda trained: ppo_loss(network, config, state.params | trained, batch)
        grads, metrics = jax.grad(loss, has_aux=True)(trained)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        updates, opt_state = optimiser.update(grads, state.opt_state)
        rates = learning_rates(config, state.step // config.update_steps)
        trained = {
            name: jax.tree.map(lambda p, u, rate=rates[name]: p - rate * u, group, updates[name])
            for name, group in trained.items()
        }
        metrics["gradient_norm"] = optax.tree.norm(grads)
        metrics["reward_deviation"] = jnp.sqrt(state.rewards.variance)
        state = state.replace(
            params=state.params | trained, opt_state=opt_state, step=state.step + 1
        )
        return state, metrics

    return step


def learning_rates(config: PPOConfig, update: jax.Array) -> dict[str, jax.Array]:
    """The learning rate of each group at an update."""
    frames = (update * config.rollout_frames).astype(jnp.float32)
    return {
        name: config.learning_rate * jnp.interp(frames, *map(jnp.array, zip(*points, strict=True)))
        for name, points in config.groups
    }


def _order(config: PPOConfig, state: PPOState, rows: int) -> jax.Array:
    """Steps [N, T / minibatches] of each environment for one minibatch, a fresh order an epoch.

    Keyed by the environment, so that a minibatch is the same whatever the number of devices.
    """
    update, index = jnp.divmod(state.step, config.update_steps)
    epoch, minibatch = jnp.divmod(index, config.minibatches)
    keys = row_keys(state.seed, update, ORDER, rows)

    def one(key: jax.Array) -> jax.Array:
        order = jax.random.permutation(jax.random.fold_in(key, epoch), config.horizon)
        return order.reshape(config.minibatches, -1)[minibatch]

    return jax.vmap(one)(keys)


def _optimiser(config: PPOConfig) -> optax.GradientTransformation:
    """Adam without its learning rate, which is each group's own."""
    return optax.chain(
        optax.clip_by_global_norm(config.gradient_clip), optax.scale_by_adam(eps=1e-5)
    )


def _log_prob(logits: jax.Array, action: jax.Array) -> jax.Array:
    """log pi(action) [B] of logits [B, A]."""
    log_probs = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(log_probs, action[:, None], -1)[:, 0]
