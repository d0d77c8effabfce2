"""The latent-action world model: an RSSM whose dynamics labelled and unlabelled windows share.

Notation (LAWM section 3): o observation, a action, s = (h, z) state with h the GRU's deterministic
part and z its Gaussian part, u latent action. The state at t has seen o_t and the action that led
to it; reward[t-1] arrives with the state at t. Time leads: arrays are [L, B, ...].

The modules compute one step; `infer` owns time. C-LAP and a plain Dreamer are configurations:
C-LAP learns the prior of u and sees labelled windows only, Dreamer has no u at all.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lawm_jax.dists import Normal, standard_normal_like
from lawm_jax.nets import MLP, Dense, GRUCell, Hidden, normal_from
from lawm_jax.scan import scan

Params = dict


class State(NamedTuple):
    """An RSSM state: h [..., H] deterministic, z [..., Z] stochastic."""

    h: jax.Array
    z: jax.Array

    @property
    def feature(self) -> jax.Array:
        """What the heads read: [..., H + Z]."""
        return jnp.concatenate([self.h, self.z], -1)


class Embedding(NamedTuple):
    """An observation as the two inference heads read it, each [..., units].

    Both are linear maps of the encoder's output, computed for all steps at once outside the scan.
    """

    posterior: jax.Array
    inverse: jax.Array


class Inference(NamedTuple):
    """What the posterior says about a batch of windows, labelled rows first.

    state [L, B], posterior of z [L, B, Z], embedding [L, B, units], latent_action
    q(u_{t-1} | s_{t-1}, o_t) of the unlabelled rows [L-1, B_unlabelled, U], and action [L-1, B, A],
    the one that drove the dynamics (true where labelled, decoded where not).
    """

    state: State
    posterior: Normal
    embedding: Embedding
    latent_action: Normal
    action: jax.Array


class InferenceNoise(NamedTuple):
    """Standard-normal noise of one inference: z [L, B, Z], u [L-1, B_u, U], a [L-1, B_u, A]."""

    z: jax.Array
    u: jax.Array
    a: jax.Array


class StepInputs(NamedTuple):
    """Inputs of one inference step: embedding of o_t [B], true actions [B_labelled, A], noise."""

    embedding: Embedding
    action: jax.Array
    noise: InferenceNoise  # a is scaled by the std of the decoded actions


class StepOutputs(NamedTuple):
    """Outputs of one inference step, as in Inference."""

    state: State
    posterior: Normal
    latent_action: Normal
    action: jax.Array


class Conditioned(nn.Module):
    """An MLP of (state, embedding) whose embedding part has been projected beforehand."""

    units: int
    layers: int
    out: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, state: jax.Array, projected: jax.Array) -> jax.Array:
        """(state [..., D], projected [..., units]) -> float32 [..., out]."""
        x = Dense(self.units, dtype=self.dtype)(state) + projected
        x = nn.swish(nn.LayerNorm(dtype=self.dtype)(x))
        return MLP(self.units, self.layers - 1, self.out, self.dtype)(x)


class WorldModel(nn.Module):
    """The heads of the model, one step each. Arrays in and out are float32."""

    observation_size: int
    action_size: int
    latent_action_size: int
    units: int
    layers: int
    deterministic: int  # H
    stochastic: int  # Z
    min_std: float
    latent_action: bool  # False: a plain Dreamer, the policy's output is the action
    learned_prior: bool  # p(u | s): True an MLP (C-LAP), False the standard normal (LAWM)
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        """Declares the heads; sizes as in LAWM's Table 2."""
        mlp = {"units": self.units, "layers": self.layers, "dtype": self.dtype}
        self.encoder = MLP(**mlp)
        self.posterior_projection = Dense(self.units, use_bias=False, dtype=self.dtype)
        self.posterior_head = Conditioned(self.units, 1, 2 * self.stochastic, self.dtype)
        self.transition_input = Hidden(self.units, self.dtype)
        self.gru = GRUCell(self.deterministic, self.dtype)
        self.prior_head = MLP(self.units, 1, 2 * self.stochastic, self.dtype)
        self.observation_head = MLP(**mlp, out=self.observation_size)
        self.reward_head = MLP(**mlp, out=1)
        if self.latent_action:
            latent = 2 * self.latent_action_size
            self.inverse_projection = Dense(self.units, use_bias=False, dtype=self.dtype)
            self.inverse_head = Conditioned(self.units, self.layers, latent, self.dtype)
            self.latent_posterior_head = MLP(**mlp, out=latent)
            self.action_head = MLP(**mlp, out=self.action_size)
            if self.learned_prior:
                self.latent_prior_head = MLP(**mlp, out=latent)

    def embed(self, observation: jax.Array) -> Embedding:
        """Normalised observation [..., O] -> its two projections."""
        x = self.encoder(observation)
        inverse = self.inverse_projection(x) if self.latent_action else jnp.zeros_like(x)
        return Embedding(self.posterior_projection(x), inverse)

    def posterior(self, h: jax.Array, projected: jax.Array) -> Normal:
        """q(z_t | h_t, o_t)."""
        return normal_from(self.posterior_head(h, projected), self.min_std)

    def prior(self, h: jax.Array) -> Normal:
        """p(z_t | h_t)."""
        return normal_from(self.prior_head(h), self.min_std)

    def transition(self, state: State, action: jax.Array) -> jax.Array:
        """h_t of (s_{t-1}, a_{t-1})."""
        return self.gru(state.h, self.transition_input(jnp.concatenate([state.z, action], -1)))

    def inverse_dynamics(self, state: State, projected: jax.Array) -> Normal:
        """q(u_{t-1} | s_{t-1}, o_t), from the next observation's inverse embedding."""
        return normal_from(self.inverse_head(state.feature, projected), self.min_std)

    def latent_posterior(self, state: State, action: jax.Array) -> Normal:
        """q(u_t | s_t, a_t)."""
        x = jnp.concatenate([state.feature, action], -1)
        return normal_from(self.latent_posterior_head(x), self.min_std)

    def latent_prior(self, state: State) -> Normal:
        """p(u_t | s_t): learned (C-LAP) or the standard normal (LAWM)."""
        if self.learned_prior:
            return normal_from(self.latent_prior_head(state.feature), self.min_std)
        return standard_normal_like(
            jnp.zeros((*state.h.shape[:-1], self.latent_action_size), jnp.float32)
        )

    def decode_action(self, state: State, u: jax.Array) -> jax.Array:
        """The mean of p(a_t | s_t, u_t), in [-1, 1]."""
        return jnp.tanh(self.action_head(jnp.concatenate([state.feature, u], -1)))

    def decode_observation(self, state: State) -> jax.Array:
        """The mean of p(o_t | s_t), normalised as the input is."""
        return self.observation_head(state.feature)

    def reward(self, state: State) -> jax.Array:
        """The mean of p(r | s_t) [...], in the units of the data."""
        return self.reward_head(state.feature)[..., 0]

    def filter_step(self, state: State, inputs: "StepInputs") -> tuple[State, "StepOutputs"]:
        """One step of inference: from s_{t-1}, the action and o_t to s_t.

        The first rows are labelled, and their true actions drive the dynamics. The rest, as many as
        there is noise for, are not: their action is decoded from the inverse dynamics' u.
        """
        action, labelled = inputs.action, inputs.action.shape[0]
        latent = Normal(inputs.noise.u, inputs.noise.u)  # empty where every row is labelled
        if inputs.noise.u.shape[0]:
            unlabelled = jax.tree.map(lambda x: x[labelled:], state)
            latent = self.inverse_dynamics(unlabelled, inputs.embedding.inverse[labelled:])
            u = latent.sample(inputs.noise.u)
            decoded = self.decode_action(unlabelled, u) + inputs.noise.a
            action = jnp.concatenate([action, jnp.clip(decoded, -1.0, 1.0)], 0)
        h = self.transition(state, action)
        posterior = self.posterior(h, inputs.embedding.posterior)
        state = State(h, posterior.sample(inputs.noise.z))
        return state, StepOutputs(state, posterior, latent, action)

    def __call__(self, observation: jax.Array, action: jax.Array) -> None:
        """Touches every head once, so that `init` makes all parameters."""
        embedding = self.embed(observation)
        rows = observation.shape[:-1]
        state = State(
            jnp.zeros((*rows, self.deterministic)), jnp.zeros((*rows, self.stochastic))
        )
        self.posterior(state.h, embedding.posterior)
        self.prior(self.transition(state, action))
        self.decode_observation(state)
        self.reward(state)
        if self.latent_action:
            u = self.latent_posterior(state, action).mean
            self.inverse_dynamics(state, embedding.inverse)
            self.latent_prior(state)
            self.decode_action(state, u)


@functools.partial(jax.jit, static_argnums=0)
def init_params(model: WorldModel, key: jax.Array) -> Params:
    """The model's parameters, float32."""
    observation = jnp.zeros((1, model.observation_size))
    return model.init(key, observation, jnp.zeros((1, model.action_size)))["params"]


def initial_state(model: WorldModel, params: Params, projected: jax.Array, z: jax.Array) -> tuple:
    """The state of a window's first observation: h = 0, z from its posterior.

    Args:
      projected: [B, units] the observation's posterior embedding.
      z: [B, Z] standard-normal noise.

    Returns:
      (State [B], Normal [B, Z]).
    """
    h = jnp.zeros((projected.shape[0], model.deterministic), jnp.float32)
    posterior = model.apply({"params": params}, h, projected, method="posterior")
    return State(h, posterior.sample(z)), posterior


def infer(
    model: WorldModel,
    params: Params,
    observation: jax.Array,
    action: jax.Array,
    noise: InferenceNoise,
    driving_noise: float = 0.0,
) -> Inference:
    """Filters windows through the posterior (LAWM equations 3 and 6).

    The first rows of the batch are labelled, and their true actions drive the dynamics. The rest
    are not: there the inverse dynamics q(u_{t-1} | s_{t-1}, o_t) gives a latent action, and the
    shared action decoder turns it into the action that drives the dynamics.

    Args:
      observation: [L, B, O] normalised observations.
      action: [L-1, B_labelled, A] the true actions of the first B_labelled rows.
      noise: standard-normal noise.
      driving_noise: std of the noise on decoded actions that drive the dynamics; 0: their mean.

    Returns:
      An Inference.
    """
    embedding = model.apply({"params": params}, observation, method="embed")
    state, first_posterior = initial_state(model, params, embedding.posterior[0], noise.z[0])
    noise = noise._replace(z=noise.z[1:], a=driving_noise * noise.a)
    inputs = StepInputs(jax.tree.map(lambda x: x[1:], embedding), action, noise)

    def cell(variables: Params, state: State, inputs: StepInputs, **kwargs: Any) -> Any:
        return model.apply(variables, state, inputs, method="filter_step", **kwargs)

    _, rest = scan(cell, params, state, inputs)
    prepend = lambda first, rest: jnp.concatenate([first[None], rest], 0)
    return Inference(
        state=jax.tree.map(prepend, state, rest.state),
        posterior=jax.tree.map(prepend, first_posterior, rest.posterior),
        embedding=embedding,
        latent_action=rest.latent_action,
        action=rest.action,
    )
