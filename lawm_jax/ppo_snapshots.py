"""Policies of Procgen games that PPO trained, frozen, and the files they ship in.

One small npz file a game: float16 parameters and a JSON header that says how the policy came about
and what it earns.
"""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from lawm_jax.checkpoint import state_digest
from lawm_jax.envs.procgen import GAMES, check_game
from lawm_jax.errors import InputError
from lawm_jax.online.actor_critic import ActorCritic
from lawm_jax.parameter_files import read_parameters, write_parameters
from lawm_jax.policies import SHIPPED
from lawm_jax.vision import EncoderConfig

KIND = "Procgen policy by PPO"


@dataclasses.dataclass(frozen=True)
class PPOSnapshot:
    """A frozen policy of one game.

    Attributes:
        game: its name.
        network: what the parameters are of.
        params: every leaf float16.
        frames: of the game that it was trained on.
        value_scale: what the network's values, which are of scaled rewards, are multiplied by to be
            discounted returns.
        evaluation: return statistics (`envs.evaluation.return_summary`), their `temperature` and
            the `normalised` mean return; empty before the policy was played.
        training: how it was trained (JSON values): seed, commit, settings of PPO.
        digest: SHA-256 of the file, "" where there is none.
    """

    game: str
    network: ActorCritic
    params: Any
    frames: int
    value_scale: float
    evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    digest: str = ""


def freeze(params: Any) -> Any:
    """Parameters as a snapshot holds them: float16, on the host."""
    return jax.tree.map(lambda x: np.asarray(x, np.float16), params)


def thaw(params: Any) -> Any:
    """The parameters of a snapshot as the network takes them: float32, on the device."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)


def shipped() -> tuple[str, ...]:
    """The games whose snapshots ship with the package."""
    return tuple(game for game in GAMES if (SHIPPED / f"{game}.npz").exists())


def save_snapshot(path: epath.PathLike, snapshot: PPOSnapshot) -> None:
    """Writes one npz file; the bytes depend on the content alone."""
    network = snapshot.network
    header = {
        "kind": KIND,
        "game": snapshot.game,
        "encoder": dataclasses.asdict(network.encoder),
        "actions": network.actions,
        "frames": snapshot.frames,
        "value_scale": snapshot.value_scale,
        "evaluation": snapshot.evaluation,
        "training": snapshot.training,
    }
    header["sha256"] = _digest(header, snapshot.params)
    write_parameters(path, header, snapshot.params)


def load_snapshot(game: str, path: epath.PathLike | None = None) -> PPOSnapshot:
    """Reads a snapshot file.

    Args:
        game: the game that it must be of.
        path: the file; None takes the one shipped with the package.

    Raises:
        InputError: no such game or file; it is damaged, another program's or of another game.
    """
    check_game(game)
    path = epath.Path(path or SHIPPED / f"{game}.npz")
    if not path.is_file():
        raise InputError(f"no snapshot of a PPO expert for {game} at {path}")
    header, params, digest = read_parameters(path)
    if header.get("kind") != KIND:
        raise InputError(f"{path} is no snapshot of a PPO expert for a Procgen game")
    if _digest(header, params) != header.get("sha256"):
        raise InputError(f"{path} is damaged (its digest differs): fetch or train it again")
    if header["game"] != game:
        raise InputError(f"{path} is of the game {header['game']}, not of {game}")
    encoder = {k: tuple(v) if isinstance(v, list) else v for k, v in header["encoder"].items()}
    return PPOSnapshot(
        game=game,
        network=ActorCritic(EncoderConfig(**encoder), header["actions"]),
        params=params,
        frames=header["frames"],
        value_scale=header["value_scale"],
        evaluation=header["evaluation"],
        training=header["training"],
        digest=digest,
    )


def _digest(header: dict[str, Any], params: Any) -> str:
    """SHA-256 of everything that a file holds, but for the digest itself."""
    rest = {name: value for name, value in header.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True) + state_digest(params)
    return hashlib.sha256(text.encode()).hexdigest()
