"""Imagination: the prior's dynamics under a latent-action policy (LAWM section 3, C-LAP)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lawm_jax.lawm.world_model import Params, State, WorldModel
from lawm_jax.scan import scan


class Rollout(NamedTuple):
    """H imagined steps: state [H+1, N] with the start first, action [H, N, A].

    v [H, N, U] is the policy's own output in [-1, 1], before the support map, and log_prob [H, N]
    its log-probability.
    """

    state: State
    action: jax.Array
    v: jax.Array
    log_prob: jax.Array


def to_support(model: WorldModel, params: Params, state: State, v: jax.Array, epsilon: float
               ) -> jax.Array:
    """Maps a policy output v in [-1, 1]^U to an action a [..., A] inside the data's support.

    The latent action u = mu(s) + epsilon * sigma(s) * v stays within epsilon standard deviations of
    its prior (LAWM: u = epsilon * v), and the shared decoder turns it into an action. A plain
    Dreamer has no latent action: v is the action.
    """
    if not model.latent_action:
        return v
    prior = model.apply({"params": params}, state, method="latent_prior")
    u = prior.mean + epsilon * prior.std * v
    return model.apply({"params": params}, state, u, method="decode_action")


def imagine(
    model: WorldModel,
    params: Params,
    policy: nn.Module,
    policy_params: Params,
    start: State,
    noise_z: jax.Array,
    noise_v: jax.Array,
    epsilon: float,
) -> Rollout:
    """Rolls the dynamics prior out from `start`, differentiably in the policy's parameters.

    Not differentiable in the world model's: they are constants of the scanned step, and JAX says so
    where it is tried.

    Args:
      policy: maps (state, standard-normal noise [N, U]) to (v in [-1, 1] [N, U], log_prob [N]).
      start: [N] states.
      noise_z: [H, N, Z] standard-normal noise of the prior.
      noise_v: [H, N, U] standard-normal noise of the policy.
      epsilon: width of the support in standard deviations of the latent-action prior.
    """
    apply = lambda method, *args: model.apply({"params": params}, *args, method=method)

    def cell(variables: Params, state: State, noise: tuple, mutable: list[str]) -> tuple:
        noise_z, noise_v = noise
        (v, log_prob), seen = policy.apply(variables, state, noise_v, mutable=mutable)
        action = to_support(model, params, state, v, epsilon)
        h = apply("transition", state, action)
        state = State(h, apply("prior", h).sample(noise_z))
        return (state, (state, action, v, log_prob)), seen

    _, (states, action, v, log_prob) = scan(cell, policy_params, start, (noise_z, noise_v))
    prepend = lambda first, rest: jnp.concatenate([first[None], rest], 0)
    return Rollout(jax.tree.map(prepend, start, states), action, v, log_prob)
