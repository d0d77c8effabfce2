"""The published LAPO data as our shards: https://github.com/schmidtdominik/LAPO (its README).

A game's folder has train/ and test/ with .npz chunks of consecutive rows, 32,768 or 4,096 each:
obs [N, 64, 64, 3] uint8, ta [N] true actions, done [N], rewards, ep_returns, values [N], and
logprobs [N] where a file has them. An action and a reward stand in the row of the frame that they
were taken at and earned by. `done` marks the same row of an episode throughout a folder.

Procgen's own engine goes straight from an episode's last action to the next episode's first frame.
So the published data has no frame that an episode's last action led to: that action and its reward
are dropped here, the episode's return is kept. Chunks are read each by itself, so that an episode
cut by the end of a chunk becomes two pieces.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from lawm_jax.data import records
from lawm_jax.data.convert import data_files, parse_file
from lawm_jax.data.frame_shards import SPLITS, Episode, write_frames
from lawm_jax.envs.procgen import FRAME, RETURNS, check_game
from lawm_jax.errors import InputError

DONE = ("auto", "last", "first")
_CLEARLY = 1.3  # how much larger the jumps of the frames must be at one side of `done`


def convert_lapo(
    source: epath.PathLike, data_dir: epath.PathLike, name: str, game: str, done: str = "auto"
) -> epath.Path:
    """Writes a game's published chunks as a data set, one chunk in memory at a time.

    Args:
        source: the game's folder, with train/ and test/.
        data_dir: where data sets lie.
        name: "GAME/CONFIG" of the data set.
        game: of the 16.
        done: which row of an episode `done` marks, its "last" or its "first"; "auto" sees where
            the frames jump.

    Returns:
        The directory that holds the shards.

    Raises:
        InputError: the data set exists; files are missing, damaged or hold something else.
        TrainingError: the disk is full or cannot be written to.
    """
    check_game(game)
    records.refuse_existing(data_dir, name)
    source = epath.Path(source).expanduser()
    for split in SPLITS:
        data_files(source / split, ".npz")  # said before the work, not after half of it
    metadata = {
        "game": game,
        "kind": "converted",
        "source": str(source),
        "temperature": None,
        "published_returns": dict(zip(("random", "expert"), RETURNS[game], strict=True)),
    }
    train, test = (read_lapo(source / split, done) for split in SPLITS)
    return write_frames(data_dir, name, train, test, metadata)


def read_lapo(directory: epath.PathLike, done: str = "auto") -> Iterator[Episode]:
    """Yields the episodes, and pieces of episodes, of a folder of chunks, in the chunks' order.

    Raises:
        InputError: no files, a damaged file, missing or misaligned arrays, no way to tell what
            `done` marks, or files that differ in it.
    """
    if done not in DONE:
        raise InputError(f"done: must be one of {', '.join(DONE)}, not '{done}'")
    paths, teller = data_files(directory, ".npz"), None
    if done == "auto":
        done, teller = _settle(paths)
    for path in paths:
        yield from parse_file(path, _episodes, done, teller)


def _settle(paths: Iterable[epath.Path]) -> tuple[str, epath.Path | None]:
    """What `done` marks by the first file that tells, and which that is.

    "either", and none, where no file has marks to tell it from.
    """
    unclear = None
    for path in paths:
        (meaning,) = parse_file(path, lambda arrays, path: [_meaning(*_frames(arrays, path))])
        if meaning in ("last", "first"):
            return meaning, path
        if meaning == "unclear":
            unclear = unclear or path
    if unclear:
        raise InputError(
            f"{unclear}: cannot tell from the frames whether done marks an episode's first or last "
            "row, nor from other files: say which (--done=first or --done=last)"
        )
    return "either", None


def _episodes(
    arrays: Mapping[str, Any], done: str, teller: epath.Path | None, path: epath.Path
) -> list[Episode]:
    observation, marks = _frames(arrays, path)
    rows = len(observation)
    action, reward, value, episode_return = (
        _array(arrays, key, path, rows) for key in ("ta", "rewards", "values", "ep_returns")
    )
    log_prob = _array(arrays, "logprobs", path, rows) if "logprobs" in arrays else np.zeros(rows)
    opposite = {"last": "first", "first": "last"}.get(done)
    if teller and _meaning(observation, marks) == opposite:
        raise InputError(
            f"{path}: done marks an episode's {opposite} row, in {teller} its {done} one; convert "
            "them apart, or say which it is (--done=first or --done=last)"
        )
    cuts = [marks + 1] * (done in ("last", "either")) + [marks] * (done in ("first", "either"))
    starts = np.unique(np.concatenate([[0], *cuts]))
    starts = starts[starts < rows]
    episodes = []
    for start, end in zip(starts, [*starts[1:], rows], strict=True):
        if end - start > 1:  # a single row is what a cut left over: no transition
            steps = slice(start, end - 1)
            total = episode_return[end - 1]
            episodes.append(
                Episode(
                    observation[start:end],
                    action[steps],
                    reward[steps],
                    value[steps],
                    log_prob[steps],
                    float(total if np.isfinite(total) else reward[start:end].sum()),
                )
            )
    return episodes


def _frames(arrays: Mapping[str, Any], path: epath.Path) -> tuple[np.ndarray, np.ndarray]:
    """A chunk's frames and the rows that `done` marks."""
    observation = _array(arrays, "obs", path)
    if observation.shape[1:] != FRAME or observation.dtype != np.uint8:
        raise InputError(
            f"{path}: obs must be uint8 [N, 64, 64, 3], not {observation.dtype} {observation.shape}"
        )
    return observation, np.flatnonzero(_array(arrays, "done", path, len(observation)))


def _meaning(observation: np.ndarray, marks: np.ndarray) -> str:
    """Whether `done` marks rows that are followed ("last") or preceded ("first") by a jump.

    "unclear" where the frames jump at both sides or at none; "either" where all marks are in the
    first or the last row of the chunk, which can be cut at both sides.
    """
    inner = marks[(marks > 0) & (marks < len(observation) - 1)]
    if not len(inner):
        return "either"

    def change(row: np.ndarray) -> float:
        steps = (observation[r].astype(np.int16) - observation[r - 1] for r in row)
        return float(np.mean([np.abs(step).mean() for step in steps]))

    after, before = change(inner + 1), change(inner)
    if max(after, before) <= _CLEARLY * min(after, before):
        return "unclear"
    return "last" if after > before else "first"


def _array(
    arrays: Mapping[str, Any], key: str, path: epath.Path, rows: int | None = None
) -> np.ndarray:
    if key not in arrays:
        raise InputError(f"{path}: has no '{key}'; it has {', '.join(arrays)}")
    array = np.asarray(arrays[key])
    if rows is not None and array.shape != (rows,):
        raise InputError(
            f"{path}: '{key}' has shape {array.shape}; one number for each of {rows} frames is "
            "needed"
        )
    return array
