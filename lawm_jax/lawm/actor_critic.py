"""The latent-action policy and its critic, learned in imagination (LAWM section 3, appendix C).

Values are learned as average rewards a step, (1 - discount) times the discounted return: of the
rewards' order of magnitude whatever the discount, which small networks reach soon.
"""

import dataclasses
import functools
from collections.abc import Callable

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from lawm_jax.dists import tanh_normal_log_prob
from lawm_jax.lawm.elbo import Metrics
from lawm_jax.lawm.imagination import Rollout, imagine
from lawm_jax.lawm.learner import STARTS
from lawm_jax.lawm.world_model import Params, State, WorldModel
from lawm_jax.nets import MLP, normal_from
from lawm_jax.returns import lambda_returns
from lawm_jax.runner import AXIS, row_keys

POLICY_MIN_STD = 0.1
SMALLEST_VARIANCE = 1e-12  # of values: rewards a step

Reward = Callable[[Rollout], jax.Array]  # of H imagined steps, [H, N]


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """Settings of policy learning; `start_rows` is global, over all devices."""

    steps: int
    start_rows: int
    horizon: int
    epsilon: float  # the support: standard deviations of the latent-action prior
    discount: float
    lambda_: float
    entropy: float  # weight of the policy's entropy, in reward a step
    prior: float  # weight of the latent-action prior's log-probability; as large as entropy: KL
    disagreement: float  # weight of the values' standard deviation, taken off the reward
    target_rate: float
    units: int
    layers: int
    value_networks: int  # their minimum is the critic
    policy_size: int  # U, or A for a plain Dreamer
    learning_rate: float
    gradient_clip: float


@flax.struct.dataclass
class AgentState:
    """Everything that policy learning changes or counts."""

    policy: Params
    value: Params  # leading axis: the ensemble
    target: Params  # the slow copy of value
    opt_state: optax.OptState  # of (policy, value)
    seed: jax.Array
    step: jax.Array


class Policy(nn.Module):
    """The tanh-Gaussian latent-action policy pi(v | s)."""

    size: int  # U, or A for a plain Dreamer
    units: int
    layers: int

    @nn.compact
    def __call__(self, state: State, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(state, standard-normal noise [..., U]) -> (v [..., U] in [-1, 1], its log-prob [...]).

        Zero noise gives the mode.
        """
        raw = MLP(self.units, self.layers, 2 * self.size)(state.feature)
        gaussian = normal_from(raw, POLICY_MIN_STD)
        pre_tanh = gaussian.sample(noise)
        return jnp.tanh(pre_tanh), tanh_normal_log_prob(gaussian, pre_tanh)


class Critic(nn.Module):
    """An ensemble of values: state -> [K, ...] estimates of the average reward from there on."""

    networks: int  # K
    units: int
    layers: int

    @nn.compact
    def __call__(self, state: State) -> jax.Array:
        """Each network's estimate; all start at zero."""
        ensemble = nn.vmap(
            MLP, in_axes=None, axis_size=self.networks,
            variable_axes={"params": 0}, split_rngs={"params": True},
        )
        return ensemble(self.units, self.layers, 1, zero_init=True)(state.feature)[..., 0]


def make_policy(config: AgentConfig) -> Policy:
    """The policy network of a config."""
    return Policy(config.policy_size, config.units, config.layers)


def critic(config: AgentConfig, params: Params, state: State) -> jax.Array:
    """Each value network's estimate [K, ...] of the average reward a step from here on."""
    networks = Critic(config.value_networks, config.units, config.layers)
    return networks.apply({"params": params}, state)


def make_optimiser(config: AgentConfig) -> optax.GradientTransformation:
    """Adam with clipped gradients, for policy and value apart."""
    one = optax.flatten(optax.chain(
        optax.clip_by_global_norm(config.gradient_clip), optax.adam(config.learning_rate)
    ))
    return optax.multi_transform(
        {"policy": one, "value": one}, {"policy": "policy", "value": "value"}
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(model: WorldModel, config: AgentConfig, seed: int) -> AgentState:
    """A fresh agent for a world model's states."""
    policy_key, value_key = jax.random.split(jax.random.key(seed))
    state = State(jnp.zeros((1, model.deterministic)), jnp.zeros((1, model.stochastic)))
    noise = jnp.zeros((1, config.policy_size))
    policy = make_policy(config).init(policy_key, state, noise)["params"]
    networks = Critic(config.value_networks, config.units, config.layers)
    value = networks.init(value_key, state)["params"]
    return AgentState(
        policy=policy,
        value=value,
        target=jax.tree.map(jnp.copy, value),
        opt_state=make_optimiser(config).init({"policy": policy, "value": value}),
        seed=jnp.asarray(seed, jnp.int32),
        step=jnp.zeros((), jnp.int32),
    )


def agent_loss(
    model: WorldModel,
    config: AgentConfig,
    trained: dict[str, Params],
    target: Params,
    world: Params,
    start: State,
    noise: tuple[jax.Array, jax.Array],
    reward_of: Reward | None = None,
) -> tuple[jax.Array, Metrics]:
    """Policy and value losses on one imagined rollout.

    The policy maximises the lambda-returns, differentiated through the dynamics, its entropy, and
    its outputs' likelihood under the latent-action prior; the values regress on the same returns,
    which bootstrap from the slow target's minimum. The two sets of parameters do not touch each
    other's loss, so one gradient serves both. With a weight for disagreement, every reward is
    lowered by that times the standard deviation of the slow targets at the state arrived at.

    Args:
      trained: {"policy": ..., "value": ...}.
      target: the slow value parameters.
      world: the world model's parameters, which are not trained here.
      start: [N] states.
      noise: standard-normal, z [H, N, Z] and v [H, N, U].
      reward_of: the reward that is maximised, differentiable; None takes the world model's.
    """
    rollout = imagine(
        model, world, make_policy(config), trained["policy"], start, *noise, config.epsilon
    )
    after = jax.tree.map(lambda x: x[1:], rollout.state)
    before = jax.lax.stop_gradient(jax.tree.map(lambda x: x[:-1], rollout.state))

    scale = 1.0 - config.discount
    if reward_of is None:
        reward = model.apply({"params": world}, after, method="reward")
    else:
        reward = reward_of(rollout)
    values = critic(config, target, after)
    bootstrap = values.min(0)
    earned = reward
    if config.disagreement:
        earned = reward - config.disagreement * _spread(values)
    returns = lambda_returns(scale * earned, bootstrap, config.discount, config.lambda_)
    chex.assert_equal_shape([returns, rollout.log_prob])
    # log p(u | s) of the latent-action prior, up to a constant: u is epsilon v std from its mean.
    prior_log_prob = -0.5 * jnp.sum((config.epsilon * rollout.v) ** 2, axis=-1)
    regulariser = config.entropy * rollout.log_prob - config.prior * prior_log_prob
    policy_loss = jnp.mean(scale * regulariser - returns)

    estimate = critic(config, trained["value"], before)
    value_error = estimate - jax.lax.stop_gradient(returns)
    value_loss = 0.5 * jnp.mean(jnp.sum(value_error**2, axis=0))
    metrics = {
        "imagined_reward": reward.mean(),
        "imagined_return": returns.mean() / scale,
        "value_disagreement": jnp.std(estimate, axis=0).mean() / scale,
        "value_error": jnp.mean((value_error / scale) ** 2),  # its root is taken over all devices
        "policy_log_prob": rollout.log_prob.mean(),
        "policy_saturation": jnp.mean(rollout.v**2),
        "policy_loss": policy_loss,
        "value_loss": value_loss,
    }
    return policy_loss + value_loss, metrics


def _spread(values: jax.Array) -> jax.Array:
    """Standard deviation over an ensemble's estimates: [K, ...] -> [...].

    It has a floor, for the root has no gradient at zero, where all networks start.
    """
    return jnp.sqrt(jnp.maximum(jnp.var(values, axis=0), SMALLEST_VARIANCE))


def make_step(
    model: WorldModel, config: AgentConfig, devices: int
) -> Callable[..., tuple[AgentState, Metrics]]:
    """The per-device train step that `runner.data_parallel` maps.

    It takes the world model's parameters as its shared input and this device's start states [M];
    a step of which it is a part may give it another reward to imagine, as `agent_loss` says.
    """
    rows = config.start_rows // devices
    optimiser = make_optimiser(config)

    def draw(key: jax.Array, starts: State) -> tuple[State, jax.Array, jax.Array]:
        which, key_z, key_v = jax.random.split(key, 3)
        index = jax.random.randint(which, (), 0, starts.h.shape[0])
        return (
            jax.tree.map(lambda x: x[index], starts),
            jax.random.normal(key_z, (config.horizon, model.stochastic)),
            jax.random.normal(key_v, (config.horizon, config.policy_size)),
        )

    def step(
        state: AgentState, world: Params, starts: State, reward_of: Reward | None = None
    ) -> tuple[AgentState, Metrics]:
        keys = row_keys(state.seed, state.step, STARTS, rows)
        start, noise_z, noise_v = jax.vmap(draw, (0, None), (0, 1, 1))(keys, starts)
        trained = {"policy": state.policy, "value": state.value}
        loss = lambda trained: agent_loss(
            model, config, trained, state.target, world, start, (noise_z, noise_v), reward_of
        )
        grads, metrics = jax.grad(loss, has_aux=True)(trained)
        grads, metrics = jax.lax.pmean((grads, metrics), AXIS)
        updates, opt_state = optimiser.update(grads, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        metrics["value_error"] = jnp.sqrt(metrics["value_error"])
        metrics["policy_gradient_norm"] = optax.tree.norm(grads["policy"])
        metrics["value_gradient_norm"] = optax.tree.norm(grads["value"])
        state = state.replace(
            policy=trained["policy"],
            value=trained["value"],
            target=optax.incremental_update(trained["value"], state.target, config.target_rate),
            opt_state=opt_state,
            step=state.step + 1,
        )
        return state, metrics

    return step
