"""The evidence lower bounds of labelled and unlabelled windows (LAWM appendix B)."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from lawm_jax.data.windows import Windows
from lawm_jax.dists import Normal, balanced_kl, kl, log_prob
from lawm_jax.lawm.world_model import Inference, InferenceNoise, Params, State, WorldModel, infer

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class ElboConfig:
    """Likelihood widths and weights.

    The pure ELBO has latent_kl_weight 1, inverse_on_labelled 0 and driving_noise = action_std.
    """

    observation_std: float  # of normalised observations
    reward_std: float
    action_std: float
    kl_balance: float  # share of KL[s]'s gradient that trains the prior; the value is unchanged
    free_nats: float  # KL[s] below this many nats a step is not pushed further down
    latent_kl_weight: float  # weight of KL[u]
    inverse_on_labelled: float  # weight of the inverse dynamics' own action term on labelled rows
    driving_noise: float  # std of the noise on decoded actions that drive unlabelled dynamics


class Noise(NamedTuple):
    """Standard-normal noise of one loss: inference, and u [2, L-1, B_labelled, U]."""

    inference: InferenceNoise
    labelled_u: jax.Array


def draw_noise(model: WorldModel, keys: jax.Array, window: int, labelled: int) -> Noise:
    """Noise for a batch, each row's from its own key: [B] keys, the first `labelled` labelled.

    Keys follow the global row, so a global batch has the same noise on any number of devices.
    """

    u, a = model.latent_action_size, model.action_size
    width = model.stochastic + max(u + a, 2 * u)
    # One draw for everything a row needs: every separate one is a program of its own to compile.
    draw = jax.vmap(lambda key: jax.random.normal(key, (window, width)), out_axes=1)(keys)
    z, rest = jnp.split(draw, [model.stochastic], axis=-1)
    two_u = rest[1:, :labelled, : 2 * u]
    return Noise(
        InferenceNoise(z=z, u=rest[1:, labelled:, :u], a=rest[1:, labelled:, u : u + a]),
        labelled_u=jnp.stack(jnp.split(two_u, 2, axis=-1)),
    )


def elbo_loss(
    model: WorldModel,
    config: ElboConfig,
    params: Params,
    labelled: Windows,
    unlabelled: Windows | None,
    noise: Noise,
) -> tuple[jax.Array, Metrics]:
    """The negative ELBO per step of a batch (LAWM equations 7 to 11), and its parts.

    Args:
      labelled: windows with actions; observations are normalised.
      unlabelled: windows without, or None (C-LAP, Dreamer).
      noise: as `draw_noise` makes it.

    Returns:
      The scalar loss, and scalar metrics in nats a step (errors: mean squared, of one dimension).
    """
    merged = labelled
    if unlabelled is not None:
        merged = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b], 1),
            labelled._replace(action=None), unlabelled._replace(action=None),
        )
    inference = infer(
        model, params, merged.observation, labelled.action, noise.inference,
        config.driving_noise,
    )
    terms, metrics = _shared_terms(model, config, params, merged, inference)
    if model.latent_action:
        action_terms, action_metrics = _labelled_action_terms(
            model, config, params, labelled.action, inference, noise.labelled_u
        )
        terms |= action_terms
        metrics |= action_metrics
        if unlabelled is not None:
            rows = labelled.action.shape[1]
            before = jax.tree.map(lambda x: x[:-1, rows:], inference.state)
            kl_u = kl(inference.latent_action, _prior(model, params, before))
            terms["kl_u_unlabelled"] = config.latent_kl_weight * kl_u
            metrics["kl_u_unlabelled"] = kl_u.mean()
    steps = merged.observation.shape[0] * merged.observation.shape[1]
    loss = sum(term.sum() for term in terms.values()) / steps
    return loss, metrics | {"loss": loss}


def _shared_terms(
    model: WorldModel, config: ElboConfig, params: Params, windows: Windows, inference: Inference
) -> tuple[Metrics, Metrics]:
    """The terms of every window: observation, reward and KL[q(s) || p(s)]."""
    apply = lambda method, *args: model.apply({"params": params}, *args, method=method)
    observation = apply("decode_observation", inference.state)
    reward = apply("reward", jax.tree.map(lambda x: x[1:], inference.state))
    chex.assert_equal_shape([observation, windows.observation])
    chex.assert_equal_shape([reward, windows.reward])
    kl_s = balanced_kl(
        inference.posterior, apply("prior", inference.state.h), config.kl_balance
    )
    terms = {
        "observation": -fixed_std_log_prob(
            observation, windows.observation, config.observation_std
        ),
        "reward": -fixed_std_log_prob(
            reward[..., None], windows.reward[..., None], config.reward_std
        ),
        "kl_s": jnp.maximum(kl_s, config.free_nats),
    }
    metrics = {
        "observation_error": jnp.mean((observation - windows.observation) ** 2),
        "reward_error": jnp.mean((reward - windows.reward) ** 2),
        "kl_s": kl_s.mean(),
    }
    return terms, metrics


def _labelled_action_terms(
    model: WorldModel, config: ElboConfig, params: Params, action: jax.Array,
    inference: Inference, noise: jax.Array,
) -> tuple[Metrics, Metrics]:
    """The action term and KL[u] of labelled windows, through one or both inference paths."""
    apply = lambda method, *args: model.apply({"params": params}, *args, method=method)
    rows = action.shape[1]
    before = jax.tree.map(lambda x: x[:-1, :rows], inference.state)
    prior = _prior(model, params, before)

    def path(name: str, latent: Normal, noise: jax.Array) -> tuple[jax.Array, Metrics]:
        decoded = apply("decode_action", before, latent.sample(noise))
        kl_u = kl(latent, prior)
        nll = -fixed_std_log_prob(decoded, action, config.action_std)
        error = jnp.mean((decoded - action) ** 2)
        metrics = {f"{name}action_error": error, f"{name}kl_u": kl_u.mean()}
        return nll + config.latent_kl_weight * kl_u, metrics

    term, metrics = path("", apply("latent_posterior", before, action), noise[0])
    terms = {"action": term}
    if config.inverse_on_labelled:
        after = inference.embedding.inverse[1:, :rows]
        latent = apply("inverse_dynamics", before, after)
        term, inverse_metrics = path("inverse_", latent, noise[1])
        terms["inverse_action"] = config.inverse_on_labelled * term
        metrics |= inverse_metrics
    return terms, metrics


def _prior(model: WorldModel, params: Params, state: State) -> Normal:
    return model.apply({"params": params}, state, method="latent_prior")


def fixed_std_log_prob(mean: jax.Array, x: jax.Array, std: float) -> jax.Array:
    """log N(x; mean, std) summed over the last axis."""
    return log_prob(Normal(mean, jnp.full_like(mean, std)), x)
