"""An ensemble of one-step predictors whose disagreement is plan2explore's reward.

Sekar et al., 2020, section 3: each member predicts the next observation's embedding from a state of
the world model and an action. Where the data are dense the members agree; where they are not, each
extrapolates in its own way: the variance of their means estimates what is to be learned there.
"""

import dataclasses

import chex
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from lawm_jax.lawm.elbo import Metrics
from lawm_jax.lawm.world_model import Params
from lawm_jax.nets import MLP
from lawm_jax.runner import AXIS

SCALE_RATE = 0.01  # of the running mean that the reward is divided by
SCALE_START = 100  # steps during which that follows the batch at once


@dataclasses.dataclass(frozen=True)
class EnsembleConfig:
    """Sizes and learning rate (Adam's) of the predictors."""

    members: int  # at least 2
    units: int
    layers: int
    learning_rate: float


class Ensemble(nn.Module):
    """M predictors: (state feature [..., D], action [..., A]) -> embeddings [M, ..., E]."""

    config: EnsembleConfig
    embedding_size: int  # E

    @nn.compact
    def __call__(self, feature: jax.Array, action: jax.Array) -> jax.Array:
        """Each member's prediction of the next embedding."""
        members = nn.vmap(
            MLP, in_axes=None, axis_size=self.config.members,
            variable_axes={"params": 0}, split_rngs={"params": True},
        )
        inputs = jnp.concatenate([feature, action], -1)
        return members(self.config.units, self.config.layers, self.embedding_size)(inputs)


@flax.struct.dataclass
class EnsembleState:
    """Everything that the ensemble's training changes or counts.

    scale: [] running mean of the disagreement on replayed steps; step: [] int32.
    """

    params: Params
    opt_state: optax.OptState
    scale: jax.Array
    step: jax.Array


def init(
    ensemble: Ensemble, feature_size: int, action_size: int, seed: int | jax.Array
) -> EnsembleState:
    """A fresh ensemble, whose members start apart."""
    feature, action = jnp.zeros((1, feature_size)), jnp.zeros((1, action_size))
    params = ensemble.init(jax.random.key(seed), feature, action)["params"]
    return EnsembleState(
        params=params,
        opt_state=_optimiser(ensemble.config).init(params),
        scale=jnp.ones(()),
        step=jnp.zeros((), jnp.int32),
    )


def disagreement(prediction: jax.Array) -> jax.Array:
    """Variance over the members, averaged over what they predict: [M, ..., E] -> [...]."""
    return jnp.mean(jnp.var(prediction, axis=0), axis=-1)


def reward(
    ensemble: Ensemble, state: EnsembleState, feature: jax.Array, action: jax.Array
) -> jax.Array:
    """plan2explore's reward [...] of actions [..., A] in states of these features [..., D].

    The disagreement in units of its mean on replayed steps: about 1 where the data are, more off
    them, whatever the scale of embeddings, which changes while they are learned.
    """
    prediction = ensemble.apply({"params": state.params}, feature, action)
    return disagreement(prediction) / jnp.maximum(state.scale, 1e-8)


def step(
    ensemble: Ensemble, state: EnsembleState, feature: jax.Array, action: jax.Array,
    embedding: jax.Array,
) -> tuple[EnsembleState, Metrics]:
    """One gradient step on replayed steps; inside a mapped step, over all devices.

    Args:
      feature: [..., D] of posterior states.
      action: [..., A] taken there.
      embedding: [..., E] of the next observation. No gradient reaches it or the states.
    """

    def loss(params: Params) -> tuple[jax.Array, jax.Array]:
        prediction = ensemble.apply({"params": params}, feature, action)
        chex.assert_equal_shape([prediction[0], embedding])
        error = jnp.mean((prediction - embedding) ** 2, axis=-1)
        return jnp.mean(jnp.sum(error, axis=0)), prediction

    (value, prediction), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    mean = jnp.mean(disagreement(prediction))
    grads, value, mean = jax.lax.pmean((grads, value, mean), AXIS)
    updates, opt_state = _optimiser(ensemble.config).update(grads, state.opt_state)
    rate = jnp.where(state.step < SCALE_START, 1.0, SCALE_RATE)
    state = EnsembleState(
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
        scale=state.scale + rate * (mean - state.scale),
        step=state.step + 1,
    )
    members = ensemble.config.members
    return state, {"ensemble_error": value / members, "disagreement": mean}


def _optimiser(config: EnsembleConfig) -> optax.GradientTransformation:
    return optax.flatten(optax.adam(config.learning_rate))
