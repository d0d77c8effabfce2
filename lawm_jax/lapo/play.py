"""What policies that read frames earn in the games."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lawm_jax.envs.procgen import NUM_ACTIONS, Procgen, episode_returns
from lawm_jax.lapo.decode import choose

Params = Any
# (params, frames [N, H, W, 3] uint8, seed, step) -> actions [N] int32
Actor = Callable[[Params, jax.Array, int, int], jax.Array]


def make_actor(logits: Callable[[Params, jax.Array], jax.Array], temperature: float) -> Actor:
    """Jits the policy that samples softmax(logits / temperature), or takes the best action at 0.

    logits: (params, frames [N, H, W, 3] uint8) -> [N, A].
    """

    @jax.jit
    def act(params: Params, observation: jax.Array, seed: int, step: int) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed), step)
        return choose(logits(params, observation), key, temperature)

    return act


def play(
    env: Procgen,
    actor: Actor,
    params: Params,
    episodes: int,
    seed: int,
    poll: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Returns [episodes] of a policy; the same seed and environments give the same.

    poll: called every step; it may raise to give up.
    """
    step = itertools.count()
    act = lambda observation: np.asarray(actor(params, observation, seed, next(step)))
    return episode_returns(env, act, episodes, poll)


def play_at_random(
    env: Procgen, episodes: int, seed: int, poll: Callable[[], None] = lambda: None
) -> np.ndarray:
    """Returns [episodes] of the policy that draws its actions uniformly."""
    rng = np.random.default_rng(seed)
    act = lambda observation: rng.integers(0, NUM_ACTIONS, len(observation))
    return episode_returns(env, act, episodes, poll)
