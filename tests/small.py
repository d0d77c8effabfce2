"""Small models and batches that the tests of lawm_jax.lawm share."""

import jax
import jax.numpy as jnp
import numpy as np

from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.windows import Windows
from lawm_jax.lawm.elbo import ElboConfig
from lawm_jax.lawm.methods import METHODS
from lawm_jax.lawm.world_model import WorldModel, init_params

OBS, A, U, H, Z = 3, 2, 4, 6, 5  # no two sizes agree, so that a mix-up cannot go unseen


def make_model(method="lawm", **changes):
    """A world model of a method, of tiny sizes."""
    sizes = {
        "observation_size": OBS, "action_size": A, "latent_action_size": U, "units": 8, "layers": 1,
        "deterministic": H, "stochastic": Z, "min_std": 0.1,
        "latent_action": METHODS[method].latent_action,
        "learned_prior": METHODS[method].learned_prior,
    }
    return WorldModel(**(sizes | changes))


def make_params(model, seed=0):
    """Parameters in general position: no bias is zero, no LayerNorm scale is one."""
    params = jax.jit(init_params, static_argnums=0)(model, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape).astype(np.float32), params)


def make_elbo(**changes):
    """A setting in which every weight differs from the others and from one."""
    config = {
        "observation_std": 0.7, "reward_std": 0.4, "action_std": 0.3, "kl_balance": 0.8,
        "free_nats": 0.0, "latent_kl_weight": 0.6, "inverse_on_labelled": 0.0,
        "driving_noise": 0.0,
    }
    return ElboConfig(**(config | changes))


def make_windows(rows, length=4, actions=True, seed=0):
    """Random windows [length, rows]."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    action = jnp.tanh(normal(length - 1, rows, A))
    return Windows(normal(length, rows, OBS), action if actions else None, normal(length - 1, rows))


def make_trajectory(length, seed=0):
    """A random trajectory."""
    rng = np.random.default_rng(seed)
    return Trajectory(
        rng.standard_normal((length + 1, OBS)).astype(np.float32),
        rng.uniform(-1, 1, (length, A)).astype(np.float32),
        rng.standard_normal(length).astype(np.float32),
    )
