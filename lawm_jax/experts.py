"""Who plays the data of a Procgen game: the scripted expert that it has, or a PPO policy.

    choose -> Expert -> collect_procgen.write_expert_dataset

This is the one place that decides which kind of expert a game has.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lawm_jax import ppo_snapshots
from lawm_jax.envs.procgen import NUM_ACTIONS, check_game
from lawm_jax.errors import InputError
from lawm_jax.lapo.decode import choose as draw
from lawm_jax.online.actor_critic import ActorCritic
from lawm_jax.ppo_snapshots import PPOSnapshot
from lawm_jax.scripted.experts import EXPERTS, expert_for

SCRIPTED, PPO = "scripted", "ppo"  # kinds of experts, and what their data sets are named after

# Maps frames [N, 64, 64, 3] uint8 and those before them (at an episode's start: the same) to
# actions [N] int, values [N] and log-probabilities [N] float32.
Act = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Expert:
    """Who plays a data set.

    Attributes:
        game: the game.
        kind: SCRIPTED or PPO.
        about: what else the metadata of its data say of it (JSON values).
        make_act: maps a seed to the behaviour.
        patience: steps without a reward after which it has got stuck; None: it never does.
    """

    game: str
    kind: str
    about: dict[str, Any]
    make_act: Callable[[int], Act]
    patience: int | None = None


def kind_of(game: str, prefer_ppo: bool = False) -> str:
    """The kind of expert that plays a game's data: SCRIPTED where it has one, otherwise PPO.

    prefer_ppo: for any game.
    """
    return PPO if prefer_ppo or check_game(game) not in EXPERTS else SCRIPTED


def choose(
    game: str,
    *,
    random_actions: float,
    temperature: float,
    snapshot: epath.PathLike | None = None,
) -> Expert:
    """The expert that plays a game's data.

    Args:
        game: one of the 16.
        random_actions: of a scripted expert.
        temperature: of a PPO expert.
        snapshot: a file of a PPO expert, to be taken for any game; None: the scripted expert or,
            where there is none, the snapshot that ships with the package.

    Raises:
        InputError: no such game, or neither is there; the snapshot is damaged or of another game; a
            share or temperature that cannot be.
    """
    if kind_of(game, snapshot is not None) == SCRIPTED:
        return scripted(game, random_actions)
    if snapshot is None and game not in ppo_snapshots.shipped():
        raise InputError(
            f"{game} has no expert that ships with the package, only "
            f"{', '.join(sorted({*EXPERTS, *ppo_snapshots.shipped()}))}: {_own_data(game)}"
        )
    return trained(ppo_snapshots.load_snapshot(game, snapshot), temperature)


def _own_data(game: str) -> str:
    """How to come by data for a game without an expert."""
    return (
        "train one, python -m experiments.collect "
        f"--config=configs/procgen.py:{game},small --config.collect.from_snapshots=false, or bring "
        f"data of your own, python -m experiments.convert --format=lapo --task={game} "
        f"--name={game}/NAME --source=FOLDER, and use it with --config.data.name={game}/NAME"
    )


def scripted(game: str, random_actions: float) -> Expert:
    """The scripted expert of a game, with a share of uniformly random actions.

    Raises:
        InputError: the game has none; the share is not in 0 .. 1.
    """
    expert = expert_for(game)
    if not 0 <= random_actions <= 1:
        raise InputError(f"random_actions is a share in 0 .. 1, not {random_actions}")

    def make_act(seed: int) -> Act:
        rng = np.random.default_rng(seed)

        def act(
            observation: np.ndarray, before: np.ndarray
        ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            chosen = [expert.act(*frames, rng) for frames in zip(observation, before, strict=True)]
            size = len(chosen)
            action = np.where(
                rng.random(size) < random_actions, rng.integers(0, NUM_ACTIONS, size), chosen
            )
            probability = random_actions / NUM_ACTIONS + (1 - random_actions) * (action == chosen)
            return action, np.zeros(size, np.float32), np.log(probability)

        return act

    about = {
        "temperature": None, "random_actions": random_actions, "expert_version": expert.version,
    }
    return Expert(game, SCRIPTED, about, make_act, expert.patience)


def trained(snapshot: PPOSnapshot, temperature: float) -> Expert:
    """The policy of a snapshot, which samples softmax(logits / temperature).

    Its values are those of the policy at temperature 1, as training left them.

    Raises:
        InputError: the temperature is not positive.
    """
    check_temperature(temperature)

    def make_act(seed: int) -> Act:
        params, step = ppo_snapshots.thaw(snapshot.params), itertools.count()

        def act(
            observation: np.ndarray, before: np.ndarray
        ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            del before
            acted = _act(snapshot.network, params, observation, seed, next(step), temperature)
            action, value, log_prob = jax.device_get(acted)
            return action, value * np.float32(snapshot.value_scale), log_prob

        return act

    about = {
        "temperature": temperature,
        "random_actions": None,
        "snapshot_sha256": snapshot.digest,
        "trained_frames": snapshot.frames,
        "snapshot_evaluation": snapshot.evaluation,
    }
    return Expert(snapshot.game, PPO, about, make_act)


def check_temperature(temperature: float) -> None:
    """Raises InputError unless a policy can sample at it, with probabilities to note."""
    if not 0 < temperature < math.inf:
        raise InputError(f"collect.temperature is {temperature}; it must be positive and finite")


@functools.partial(jax.jit, static_argnums=0)
def _act(
    network: ActorCritic, params: Any, frames: jax.Array, seed: int, step: int, temperature: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Actions, values and log-probabilities [N] for frames [N, H, W, 3] uint8."""
    logits, value = network.apply({"params": params}, frames)
    logits = logits / temperature
    action = draw(logits, jax.random.fold_in(jax.random.key(seed), step), 1.0)
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], -1)[:, 0]
    return action, value, log_prob
