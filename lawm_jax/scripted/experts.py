"""The games that have an expert which reads the frame, and how to tell that it is stuck."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lawm_jax.envs.procgen import check_game
from lawm_jax.errors import InputError
from lawm_jax.scripted import bigfish, chaser, heist, maze, miner


class Expert(NamedTuple):
    """A scripted policy.

    Attributes:
        act: maps a frame [64, 64, 3] uint8, the one before it in the episode (at its start: the
            same) and a random generator to an action in 0 .. 14.
        patience: steps without a reward after which it has got stuck.
        version: of what it plays; its data say which one made them.
    """

    act: Callable[[np.ndarray, np.ndarray, np.random.Generator], int]
    patience: int
    version: int = 1


EXPERTS = {
    "bigfish": Expert(bigfish.act, patience=600),
    "chaser": Expert(chaser.act, patience=250, version=2),
    "heist": Expert(heist.act, patience=250),
    "maze": Expert(maze.act, patience=200),
    "miner": Expert(miner.act, patience=60),
}


def expert_for(game: str) -> Expert:
    """Looks up the expert for a game.

    Raises:
        InputError: no such game, or it has no scripted expert; lists those that have.
    """
    if check_game(game) not in EXPERTS:
        raise InputError(f"{game} has no scripted expert, only {', '.join(EXPERTS)}")
    return EXPERTS[game]
