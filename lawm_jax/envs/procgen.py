"""The 16 Procgen games from pixels, vectorised by EnvPool, easy distribution.

EnvPool resets an environment on the step *after* an episode's last one: that step ignores its
action, returns the next episode's first frame and a reward of 0, and is no transition. A `Step`
says so in `valid`; every statistic here leaves such rows out.
"""

import ctypes
import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lawm_jax.errors import InputError

# Game -> mean return of a random policy and of the experts that the LAPO paper trained (appendix).
RETURNS = {
    "bigfish": (0.87, 36.34),
    "bossfight": (0.05, 11.63),
    "caveflyer": (2.60, 9.18),
    "chaser": (0.66, 9.96),
    "climber": (2.22, 10.23),
    "coinrun": (2.70, 9.93),
    "dodgeball": (0.61, 13.49),
    "fruitbot": (-2.53, 29.93),
    "heist": (3.08, 9.69),
    "jumper": (3.41, 8.46),
    "leaper": (2.51, 7.41),
    "maze": (4.27, 9.97),
    "miner": (1.25, 11.89),
    "ninja": (2.56, 9.47),
    "plunder": (4.32, 11.46),
    "starpilot": (1.53, 66.99),
}
GAMES = tuple(RETURNS)
NUM_ACTIONS = 15
ACTION_NAMES = (
    "left down", "left", "left up", "down", "stay", "up", "right down", "right", "right up",
    *(f"key {key}" for key in "DAWSQE"),
)  # fmt: skip
FRAME = (64, 64, 3)
# Actions 0 to 8 are directions on a keypad, 9 to 14 the games' own keys.
LEFT, STAY, RIGHT, DOWN, UP = 1, 4, 7, 3, 5


def check_game(game: str) -> str:
    """Returns the name of a game.

    Raises:
        InputError: no such game; the message has the nearest name and lists the 16.
    """
    if game not in GAMES:
        near = difflib.get_close_matches(str(game), GAMES, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise InputError(f"unknown game '{game}': {hint}choose from {', '.join(GAMES)}")
    return game


def normalise(game: str, episode_return: Any) -> Any:
    """Scales returns so that the published random policy has 0 and the published expert 1."""
    random, expert = RETURNS[check_game(game)]
    return (episode_return - random) / (expert - random)


class Step(NamedTuple):
    """What one step of N environments returned.

    Attributes:
        observation: [N, 64, 64, 3] uint8; where `done`, the episode's last frame.
        reward: [N] float32.
        done: [N] bool, the episode ended with this step, by itself or at the time limit.
        valid: [N] bool; False where the environment was reset: no transition, action ignored.
        episode_return: [N] float64, undiscounted, of the episode so far; where `done`, in all.
        episode_length: [N] int32, transitions of the episode so far; where `done`, in all.
    """

    observation: np.ndarray
    reward: np.ndarray
    done: np.ndarray
    valid: np.ndarray
    episode_return: np.ndarray
    episode_length: np.ndarray


class Procgen:
    """N environments of one game, each going from episode to episode by itself.

    Args:
        game: one of GAMES.
        num_envs: N.
        seed: the same seed gives the same episodes whatever the number of threads.
        num_levels: how many levels there are to draw from; 0 for all.
        start_level: the first of them, where they are limited.
        num_threads: simulator threads; by default min(2, CPUs this process may use).

    Raises:
        InputError: unknown game or negative numbers; the Qt libraries are missing.
    """

    def __init__(
        self,
        game: str,
        num_envs: int,
        seed: int,
        num_levels: int = 0,
        start_level: int = 0,
        num_threads: int | None = None,
    ) -> None:
        self.game = check_game(game)
        if num_envs < 1 or num_levels < 0 or start_level < 0:
            raise InputError(
                f"{game}: needs num_envs >= 1, num_levels >= 0 and start_level >= 0, "
                f"not {num_envs}, {num_levels} and {start_level}"
            )
        self.num_envs = num_envs
        self._env = _envpool().make(
            f"{game.capitalize()}Easy-v0",
            env_type="gymnasium",
            num_envs=num_envs,
            seed=seed % 2**31,
            num_threads=num_threads or min(2, len(os.sched_getaffinity(0))),
            num_levels=num_levels,
            start_level=start_level,
            channel_first=False,
        )
        self._done = None

    def reset(self) -> np.ndarray:
        """Begins a new episode everywhere; returns its first frames [N, 64, 64, 3] uint8."""
        observation, _ = self._env.reset()
        self._done = np.zeros(self.num_envs, bool)
        self._return = np.zeros(self.num_envs)
        self._length = np.zeros(self.num_envs, np.int32)
        return observation

    def step(self, action: np.ndarray) -> Step:
        """Applies actions [N] in 0 .. 14, or resets where the last step ended an episode.

        Raises:
            RuntimeError: `reset` was never called.
        """
        if self._done is None:
            raise RuntimeError("call reset() before step()")
        observation, reward, terminated, truncated, _ = self._env.step(
            np.asarray(action, np.int32)
        )
        valid = ~self._done
        self._done = (terminated | truncated) & valid
        self._return = np.where(valid, self._return + reward, 0.0)
        self._length = np.where(valid, self._length + 1, 0).astype(np.int32)
        return Step(
            observation, reward, self._done.copy(), valid, self._return.copy(), self._length.copy()
        )

    def restart(self, which: np.ndarray) -> np.ndarray:
        """Gives up the episodes of some environments and begins new ones.

        Args:
            which: [K] the environments' numbers, in increasing order.

        Returns:
            The first frames [K, 64, 64, 3] uint8.
        """
        observation, info = self._env.reset(np.asarray(which, np.int32))
        self._done[which], self._return[which], self._length[which] = False, 0.0, 0
        return observation[np.argsort(info["env_id"])]

    def close(self) -> None:
        """Frees the simulators."""
        self._env.close()


def episode_returns(
    env: Procgen,
    act: Callable[[np.ndarray], np.ndarray],
    episodes: int,
    poll: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Plays whole episodes and returns their returns [episodes] float64.

    Every environment contributes the same number of its first episodes (some one more than
    others): taking whichever end first would favour short ones.

    Args:
        env: is reset.
        act: maps frames [N, 64, 64, 3] to actions [N].
        episodes: in all.
        poll: called every step; it may raise to give up.
    """
    share = episodes // env.num_envs + (np.arange(env.num_envs) < episodes % env.num_envs)
    finished = np.zeros(env.num_envs, int)
    returns = []
    observation = env.reset()
    while (finished < share).any():
        poll()
        step = env.step(act(observation))
        returns.extend(step.episode_return[step.done & (finished < share)])
        finished += step.done
        observation = step.observation
    return np.array(returns)


def _envpool() -> Any:
    """EnvPool with its Procgen module, whose Qt libraries come from the wheel PyQt5-Qt5."""
    import envpool

    module = sys.modules["envpool.procgen"]  # `import envpool` tried to load it
    if "ProcgenEnvSpec" not in vars(module):
        _load_qt()
        importlib.reload(module)
    return envpool


def _load_qt() -> None:
    """Loads Qt's shared libraries into the process, where the dynamic linker finds them."""
    spec = importlib.util.find_spec("PyQt5")
    folders = [Path(p) / "Qt5" / "lib" for p in spec.submodule_search_locations] if spec else []
    folder = next((f for f in folders if (f / "libQt5Gui.so.5").exists()), None)
    if folder is None:
        raise InputError(
            "Procgen needs the Qt 5 libraries Core and Gui: pip install PyQt5-Qt5, or the "
            "system's package, e.g. apt install libqt5gui5"
        )
    try:
        for name in ("libicudata", "libicuuc", "libicui18n", "libQt5Core", "libQt5Gui"):
            (path,) = folder.glob(f"{name}.so.[0-9]*")
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except (OSError, ValueError) as error:
        raise InputError(
            f"Procgen's Qt 5 libraries in {folder} cannot be loaded: {error}; they want the "
            "system's OpenGL and GLib, e.g. apt install libgl1 libglib2.0-0"
        ) from error
