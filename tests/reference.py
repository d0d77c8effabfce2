"""The ELBOs of LAWM written out: slow and explicit, a window at a time, a step after the other.

Nothing is shared with lawm_jax.lawm.elbo, infer, scan or dists but the model's heads. The tests
compare the library with it, and the benchmarks take it as the plain form of the world-model loss.
It can be jitted and differentiated; compiling takes long, for the loop over time is unrolled.
"""

import jax
import jax.numpy as jnp

from lawm_jax.lawm.world_model import State


def log_normal(x, mean, std):
    """log N(x; mean, std^2) of vectors."""
    return jnp.sum(
        -0.5 * jnp.log(2.0 * jnp.pi) - jnp.log(std) - (x - mean) ** 2 / (2.0 * std**2)
    )


def divergence(q, p):
    """KL[q || p] of diagonal Gaussians, each with vectors mean and std."""
    return jnp.sum(
        jnp.log(p.std) - jnp.log(q.std)
        + (q.std**2 + (q.mean - p.mean) ** 2) / (2.0 * p.std**2) - 0.5
    )


def elbo(model, config, params, observation, action, reward, noise):
    """The ELBO of one window, in nats, summed over its steps.

    Args:
      observation: [L, O].
      action: [L-1, A], or None: the window is unlabelled.
      reward: [L-1]; reward[t-1] arrives with observation[t].
      noise: dict of standard-normal arrays: z [L, Z], and labelled u [2, L-1, U], unlabelled
        u [L-1, U] and a [L-1, A].

    Returns:
      A scalar.
    """

    def head(name, *args):
        return model.apply({"params": params}, *args, method=name)

    def decode(state, u):
        return head("decode_action", state, u)

    total = 0.0
    state = None
    for t in range(len(observation)):
        embedding = head("embed", observation[t])

        # The action that led here: true, or decoded from what the two states tell.
        if t == 0:
            h = jnp.zeros(model.deterministic)
        elif action is not None:
            h = head("transition", state, action[t - 1])
        else:
            q_u = head("inverse_dynamics", state, embedding.inverse)
            u = q_u.mean + q_u.std * noise["u"][t - 1]
            decoded = decode(state, u)
            if config.sample_driving_action:
                decoded = decoded + config.action_std * noise["a"][t - 1]
            total -= config.latent_kl_weight * divergence(q_u, head("latent_prior", state))
            h = head("transition", state, jnp.clip(decoded, -1.0, 1.0))

        # The state, and how well it explains what was seen.
        q_s = head("posterior", h, embedding.posterior)
        p_s = head("prior", h)
        last, state = state, State(h, q_s.mean + q_s.std * noise["z"][t])
        stop = jax.lax.stop_gradient
        kl_s = config.kl_balance * divergence(stop(q_s), p_s)
        kl_s += (1.0 - config.kl_balance) * divergence(q_s, stop(p_s))
        total -= jnp.where(kl_s > config.free_nats, kl_s, config.free_nats)
        total += log_normal(
            observation[t], head("decode_observation", state), config.observation_std
        )
        if t > 0:
            total += log_normal(reward[t - 1], head("reward", state), config.reward_std)

        # The action that left the last state, of labelled windows.
        if t > 0 and action is not None and model.latent_action:
            p_u = head("latent_prior", last)
            q_u = head("latent_posterior", last, action[t - 1])
            u = q_u.mean + q_u.std * noise["u"][0, t - 1]
            total += log_normal(action[t - 1], decode(last, u), config.action_std)
            total -= config.latent_kl_weight * divergence(q_u, p_u)
            if config.inverse_on_labelled:  # the auxiliary term: the same through the other path
                q_u = head("inverse_dynamics", last, embedding.inverse)
                u = q_u.mean + q_u.std * noise["u"][1, t - 1]
                total += config.inverse_on_labelled * (
                    log_normal(action[t - 1], decode(last, u), config.action_std)
                    - config.latent_kl_weight * divergence(q_u, p_u)
                )
    return total


def loss(model, config, params, labelled, unlabelled, noise):
    """The negative ELBO a step of a batch; arguments as those of lawm_jax.lawm.elbo.elbo_loss."""
    length, rows = labelled.observation.shape[:2]
    z, u, a = noise.inference

    def one(noise_axes, observation, action, reward, noise):
        window = lambda *args: elbo(model, config, params, *args)
        axes = (1, None if action is None else 1, 1, noise_axes)
        return jnp.sum(jax.vmap(window, axes)(observation, action, reward, noise))

    total = one({"z": 1, "u": 2}, *labelled, {"z": z[:, :rows], "u": noise.labelled_u})
    if unlabelled is not None:
        total += one({"z": 1, "u": 1, "a": 1}, *unlabelled, {"z": z[:, rows:], "u": u, "a": a})
    return -total / (length * z.shape[1])
