"""LAWM's ELBOs written out: slow and explicit, a window at a time, everything in one loop.

Nothing is shared with lawm_jax.lawm.elbo, infer, scan or dists but the model's heads. The tests
compare the library with it, value and gradients, and `step_time --plain` measures how much faster
the library is than a train step written straight from the equations.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lawm_jax.data.windows import Windows
from lawm_jax.dists import Normal
from lawm_jax.lawm.elbo import ElboConfig, Noise
from lawm_jax.lawm.world_model import Params, State, WorldModel


def log_normal(x: jax.Array, mean: jax.Array, std: float) -> jax.Array:
    """log N(x; mean, std^2) of vectors [D] -> scalar."""
    return jnp.sum(
        -0.5 * jnp.log(2.0 * jnp.pi) - jnp.log(std) - (x - mean) ** 2 / (2.0 * std**2)
    )


def divergence(q: Normal, p: Normal) -> jax.Array:
    """KL[q || p] of diagonal Gaussians over vectors [D] -> scalar."""
    return jnp.sum(
        jnp.log(p.std) - jnp.log(q.std)
        + (q.std**2 + (q.mean - p.mean) ** 2) / (2.0 * p.std**2) - 0.5
    )


def elbo(
    model: WorldModel,
    config: ElboConfig,
    params: Params,
    observation: jax.Array,
    action: jax.Array | None,
    reward: jax.Array,
    noise: dict[str, jax.Array],
) -> jax.Array:
    """The ELBO of one window, in nats, summed over its steps (LAWM appendix B).

    Args:
      observation: [L, O].
      action: [L-1, A], or None: the window is unlabelled.
      reward: [L-1]; reward[t-1] arrives with observation[t].
      noise: standard-normal arrays: z [L, Z], and labelled u [L-1, 2, U], unlabelled
        u [L-1, U] and a [L-1, A].

    Returns:
      A scalar.
    """

    def head(name: str, *args: Any) -> Any:
        return model.apply({"params": params}, *args, method=name)

    def correct(h: jax.Array, observation: jax.Array, z: jax.Array) -> tuple[State, jax.Array]:
        """The state of (h_t, o_t), and how well it explains what was seen."""
        q_s, p_s = head("posterior", h, head("embed", observation).posterior), head("prior", h)
        state = State(h, q_s.mean + q_s.std * z)
        stop = jax.lax.stop_gradient
        kl_s = config.kl_balance * divergence(stop(q_s), p_s)
        kl_s += (1.0 - config.kl_balance) * divergence(q_s, stop(p_s))
        total = -jnp.where(kl_s > config.free_nats, kl_s, config.free_nats)
        total += log_normal(observation, head("decode_observation", state), config.observation_std)
        return state, total

    def step(last: State, inputs: tuple) -> tuple[State, jax.Array]:
        observation, action, reward, noise = inputs
        total = 0.0
        # The action that leads here: true, or decoded from what the two states tell.
        if action is None:
            q_u = head("inverse_dynamics", last, head("embed", observation).inverse)
            driving = head("decode_action", last, q_u.mean + q_u.std * noise["u"])
            driving = jnp.clip(driving + config.driving_noise * noise["a"], -1.0, 1.0)
            total -= config.latent_kl_weight * divergence(q_u, head("latent_prior", last))
        else:
            driving = action
        # The action term of labelled windows: through q(u | s, a), and by the auxiliary term
        # through the inverse dynamics as well.
        if action is not None and model.latent_action:
            paths = [(1.0, head("latent_posterior", last, action))]
            if config.inverse_on_labelled:
                inverse = head("inverse_dynamics", last, head("embed", observation).inverse)
                paths.append((config.inverse_on_labelled, inverse))
            for (weight, q_u), z in zip(paths, noise["u"][: len(paths)], strict=True):
                decoded = head("decode_action", last, q_u.mean + q_u.std * z)
                total += weight * log_normal(action, decoded, config.action_std)
                kl_u = divergence(q_u, head("latent_prior", last))
                total -= weight * config.latent_kl_weight * kl_u
        state, explained = correct(head("transition", last, driving), observation, noise["z"])
        return state, total + explained + log_normal(
            reward, head("reward", state), config.reward_std
        )

    z = noise["z"]
    state, total = correct(jnp.zeros(model.deterministic), observation[0], z[0])
    _, totals = jax.lax.scan(
        step, state, (observation[1:], action, reward, noise | {"z": z[1:]})
    )
    return total + totals.sum()


def loss(
    model: WorldModel,
    config: ElboConfig,
    params: Params,
    labelled: Windows,
    unlabelled: Windows | None,
    noise: Noise,
) -> jax.Array:
    """The negative ELBO a step of a batch; arguments as those of lawm_jax.lawm.elbo.elbo_loss."""
    length, rows = labelled.observation.shape[:2]
    z, u, a = noise.inference
    labelled_u = jnp.moveaxis(noise.labelled_u, 0, 1)

    def one(noise_axes: dict[str, int], windows: Windows, noise: dict[str, jax.Array]) -> jax.Array:
        window: Callable[..., jax.Array] = lambda *args: elbo(model, config, params, *args)
        axes = (1, None if windows.action is None else 1, 1, noise_axes)
        return jnp.sum(jax.vmap(window, axes)(*windows, noise))

    total = one({"z": 1, "u": 2}, labelled, {"z": z[:, :rows], "u": labelled_u})
    if unlabelled is not None:
        total += one({"z": 1, "u": 1, "a": 1}, unlabelled, {"z": z[:, rows:], "u": u, "a": a})
    return -total / (length * z.shape[1])
