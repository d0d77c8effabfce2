"""Readers of other programs' trajectories.

Both formats store what arrived together: row t holds observation[t] and the action and reward that
led to it, so that our action[t] and reward[t] are rows t + 1 of theirs. Row 0 of the two is filler.

  aime    One .npz a trajectory, with the parts of the observation by name, `reward` and
          `pre_action` (zeros in row 0), as https://github.com/argmax-ai/aime publishes them.
  vd4rl   Dreamer's .npz, one episode a file, or .hdf5 of many episodes end to end, with `action`,
          `reward` and `is_first`, `step_type` (0 opens an episode), `is_last` or `discount` (0 ends
          one), as https://github.com/conglu1997/v-d4rl has them. The published files hold pixels
          only; here the observation is `observation` [rows, O] or parts by name.

Files without actions become unlabelled trajectories. Whether an episode ended in a terminal state
is not kept: the control suite has none.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath

from lawm_jax.data.trajectory import Trajectory
from lawm_jax.errors import InputError

T = TypeVar("T")


def read_aime(directory: epath.PathLike, keys: Sequence[str]) -> Iterator[Trajectory]:
    """Reads a folder of AIME's .npz files in the order of their numbers.

    Args:
        directory: local path or gs:// address.
        keys: parts of the observation in the order in which to concatenate them; where a file
            lacks them it may hold the whole as `observation`.

    Yields:
        One trajectory a file; `source` is the file's name.

    Raises:
        InputError: no files, a damaged file, missing or misaligned arrays, pixels only.
    """
    for path in data_files(directory, ".npz"):
        yield from parse_file(path, _aime_trajectory, keys)


def read_vd4rl(directory: epath.PathLike, keys: Sequence[str]) -> Iterator[Trajectory]:
    """Reads a folder of Dreamer's .npz or V-D4RL's .hdf5 files in the order of their names.

    Args:
        directory: local path or gs:// address.
        keys: as in `read_aime`.

    Yields:
        One trajectory an episode; `source` is the file's name, with ":row" of its first row where
        a file holds several. An episode cut by the end of a file yields its two pieces.

    Raises:
        InputError: as `read_aime`, and for .hdf5 where h5py is not installed.
    """
    for path in data_files(directory, ".npz", ".hdf5", ".h5"):
        yield from parse_file(path, _vd4rl_trajectories, keys)


READERS: dict[str, Callable[[epath.PathLike, Sequence[str]], Iterator[Trajectory]]] = {
    "aime": read_aime,
    "vd4rl": read_vd4rl,
}


def _aime_trajectory(
    arrays: Mapping[str, Any], keys: Sequence[str], path: epath.Path
) -> list[Trajectory]:
    observation, action, reward = _columns(arrays, keys, "pre_action", path)
    if action is not None and np.any(action[0]):
        raise InputError(
            f"{path}: pre_action must be the action that led to its row, zero in the first; "
            f"here the first is {action[0]}"
        )
    action = None if action is None else action[1:]
    return [Trajectory(observation, action, reward[1:], path.name)]


def _vd4rl_trajectories(
    arrays: Mapping[str, Any], keys: Sequence[str], path: epath.Path
) -> list[Trajectory]:
    observation, action, reward = _columns(arrays, keys, "action", path)
    starts = _episode_starts(arrays, len(reward), path)
    if len(starts) == 1:
        action = None if action is None else action[1:]
        return [Trajectory(observation, action, reward[1:], path.name)]
    trajectories = []
    for start, end in zip(starts, [*starts[1:], len(reward)], strict=True):
        if end - start > 1:  # a single row is what a cut left over: no transition
            led_to = slice(start + 1, end)
            labels = None if action is None else action[led_to]
            source = f"{path.name}:{start}"
            trajectories.append(Trajectory(observation[start:end], labels, reward[led_to], source))
    return trajectories


def _episode_starts(arrays: Mapping[str, Any], rows: int, path: epath.Path) -> list[int]:
    first = np.zeros(rows, bool)
    if "is_first" in arrays:
        first = _rows(arrays, "is_first", rows, path)[:, 0] > 0
    elif "step_type" in arrays:
        first = _rows(arrays, "step_type", rows, path)[:, 0] == 0
    elif "is_last" in arrays:
        first[1:] = _rows(arrays, "is_last", rows, path)[:-1, 0] > 0
    elif "discount" in arrays:
        ends = _rows(arrays, "discount", rows, path)[:, 0] == 0
        if path.suffix != ".npz" and not ends.any():
            # Episodes that end by a time limit have a discount of 1 throughout.
            raise InputError(
                f"{path}: its discount is nowhere 0, which does not tell episodes apart; it needs "
                "is_first, step_type or is_last"
            )
        first[1:] = ends[:-1]
    elif path.suffix != ".npz":
        raise InputError(
            f"{path}: needs one of is_first, step_type, is_last, discount to tell episodes apart; "
            f"it has {', '.join(arrays)}"
        )
    first[0] = True
    return np.flatnonzero(first).tolist()


def _columns(
    arrays: Mapping[str, Any], keys: Sequence[str], action_key: str, path: epath.Path
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Returns observation [rows, O], action [rows, A] or None, reward [rows], all float32."""
    if "reward" not in arrays:
        raise InputError(f"{path}: has no 'reward'; it has {', '.join(arrays)}")
    rows = len(arrays["reward"])
    if rows < 2:
        raise InputError(f"{path}: has {rows} rows; a trajectory needs at least 2")
    keys = _observation_keys(arrays, keys, path)
    observation = np.concatenate([_rows(arrays, key, rows, path) for key in keys], axis=1)
    action = _rows(arrays, action_key, rows, path) if action_key in arrays else None
    return observation, action, _rows(arrays, "reward", rows, path)[:, 0]


def _observation_keys(
    arrays: Mapping[str, Any], keys: Sequence[str], path: epath.Path
) -> Sequence[str]:
    missing = [key for key in keys if key not in arrays]
    if keys and not missing:
        return keys
    if "observation" in arrays and np.ndim(arrays["observation"]) <= 2:
        return ["observation"]
    if "image" in arrays or "observation" in arrays:
        raise InputError(
            f"{path}: holds pixels only ({', '.join(arrays)}), and learning is from state: "
            f"needs {', '.join(keys) or 'observation'}"
        )
    raise InputError(
        f"{path}: lacks {', '.join(missing) or 'observation'}; it has {', '.join(arrays)} "
        "(--keys names the parts of the observation)"
    )


def _rows(arrays: Mapping[str, Any], key: str, rows: int, path: epath.Path) -> np.ndarray:
    """Returns a per-step array as [rows, size] float32."""
    array = np.asarray(arrays[key])
    if array.ndim not in (1, 2) or len(array) != rows:
        raise InputError(
            f"{path}: '{key}' has shape {array.shape}; one row for each of {rows} rewards is needed"
        )
    return array.reshape(rows, -1).astype(np.float32)


def data_files(directory: epath.PathLike, *suffixes: str) -> list[epath.Path]:
    """Returns the files of a folder with these suffixes, 9.npz before 10.npz.

    Raises:
        InputError: no such folder, or no such files in it.
    """
    directory = epath.Path(directory).expanduser()
    if not directory.is_dir():
        raise InputError(f"no directory {directory}")
    found = [path for path in directory.iterdir() if path.suffix in suffixes]
    if not found:
        raise InputError(f"{directory}: no {' or '.join(suffixes)} files in it")
    return sorted(found, key=lambda path: _natural(path.name))


def _natural(name: str) -> list[Any]:
    """Orders 9.npz before 10.npz."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def parse_file(path: epath.Path, parse: Callable[..., list[T]], *arguments: Any) -> list[T]:
    """Returns parse(arrays, *arguments, path); only the arrays that it asks for are loaded.

    Raises:
        InputError: the file cannot be read, or `parse` says that it is wrong.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".npz":
                return parse(np.load(file), *arguments, path)
            with _h5py().File(file) as arrays:
                return parse(arrays, *arguments, path)
    except InputError:
        raise
    except Exception as error:  # zipfile, zlib, numpy and h5py each have their own
        raise InputError(f"{path}: cannot be read ({error}); is it damaged?") from error


def _h5py() -> Any:
    try:
        import h5py
    except ImportError:
        raise InputError(
            "reading .hdf5 needs h5py, the extra 'hdf5': pip install 'lawm_jax[hdf5]'"
        ) from None
    return h5py
