"""Data sets of video frames on disk: TFDS ArrayRecord shards, frames compressed with zstd.

Episodes come one after another, an episode of T transitions as T + 1 rows; the last row holds its
last frame. A record is a chunk of up to CHUNK consecutive rows, which may hold ends and starts of
episodes:

  frames          zstd of observation [n, 64, 64, 3] uint8: neighbouring frames share most pixels
  action          [n] int32 in 0 .. 14, taken at the row's frame; -1 in an episode's last row
  reward          [n] float32, earned by that action; 0 in an episode's last row
  episode         [n] int32, counted from 0 in each split
  value           [n] float32, the behaviour's value of the frame; 0 in an episode's last row
  log_prob        [n] float32, of the action; 0 in an episode's last row
  episode_return  [n] float32, of the row's episode

metadata.json beside the shards holds the caller's metadata and, for each split, the numbers of
frames and episodes, the mean return and the fingerprint of the content.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
import zstandard
from etils import epath

from lawm_jax.data import records
from lawm_jax.data.frames import FrameArrays
from lawm_jax.envs.procgen import FRAME, NUM_ACTIONS
from lawm_jax.errors import InputError

SPLITS = ("train", "test")
CHUNK = 256  # rows a record
RECORDS_PER_SHARD = 256
_FRAME_BYTES = int(np.prod(FRAME))
_ALIGNMENT = 64


class Episode(NamedTuple):
    """One episode, or a piece of one; action[t] leads from observation[t] to observation[t+1].

    Attributes:
        observation: [T+1, 64, 64, 3] uint8.
        action: [T] int, in 0 .. 14.
        reward: [T] float.
        value: [T] float, zeros where the behaviour has none.
        log_prob: [T] float, likewise.
        episode_return: of the whole episode, even where this is a piece of it.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    value: np.ndarray
    log_prob: np.ndarray
    episode_return: float


class Notes(NamedTuple):
    """What else is known of the rows: value, log_prob and episode_return, each [N] float32."""

    value: np.ndarray
    log_prob: np.ndarray
    episode_return: np.ndarray


@dataclass(frozen=True)
class FrameDataset:
    """One split of a data set in memory.

    Attributes:
        name: "GAME/CONFIG".
        split: of SPLITS.
        frames: its rows.
        notes: of the same rows.
        metadata: as the writer gave it.
        statistics: of the whole split: frames, episodes, mean_return, fingerprint (SHA-256).
        fingerprint: of the rows that were read, and of those beside them in the same records.
    """

    name: str
    split: str
    frames: FrameArrays
    notes: Notes
    metadata: dict[str, Any]
    statistics: dict[str, Any]
    fingerprint: str


def write_frames(
    data_dir: epath.PathLike,
    name: str,
    train: Iterable[Episode],
    test: Iterable[Episode],
    metadata: dict[str, Any],
) -> epath.Path:
    """Writes a data set, an episode at a time; it appears under its name only when it is complete.

    Args:
        data_dir: local directory or gs:// address, created where missing.
        name: "GAME/CONFIG", e.g. "miner/scripted_100k".
        train: at least one episode.
        test: likewise, consumed after `train`.
        metadata: must survive JSON. The two iterables may add to it while they are consumed.

    Returns:
        The directory that holds the shards.

    Raises:
        InputError: a data set of that name exists, an episode is wrong, metadata is not JSON.
        TrainingError: the disk is full or cannot be written to.
    """
    records.check_json(metadata, name)
    statistics: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    return records.write_records(
        data_dir,
        name,
        {
            split: _to_records(episodes, statistics[split], f"{name}, {split}")
            for split, episodes in zip(SPLITS, (train, test), strict=True)
        },
        features=_features(),
        description="Frames of episodes one after another: action[t] leads from frame t to frame "
        "t + 1 and earns reward[t]; an episode's last row has the action -1. `frames` is the zstd "
        "compression of uint8 [rows, 64, 64, 3].",
        metadata={"metadata": metadata, "splits": statistics},
        records_per_shard=RECORDS_PER_SHARD,
    )


def read_frames(
    data_dir: epath.PathLike,
    name: str,
    split: str,
    *,
    game: str | None = None,
    max_frames: int | None = None,
) -> FrameDataset:
    """Reads a split into memory, which it takes once: 12,288 bytes a frame and 24 beside.

    A split that is read whole is compared with its fingerprint.

    Args:
        data_dir: where data sets lie.
        name: "GAME/CONFIG".
        split: one of SPLITS.
        game: the game that it must be of.
        max_frames: reads no more rows than that; the episode that is cut there ends there.

    Raises:
        InputError: it does not exist (lists those that do), is of another game, does not fit into
            memory, or a file is missing or damaged (names the file and the record).
    """
    with records.opened(data_dir, name, split) as directory:
        return _read_split(directory, name, split, game, max_frames)


def _read_split(
    directory: epath.Path, name: str, split: str, game: str | None, max_frames: int | None
) -> FrameDataset:
    metadata, splits = records.read_metadata(directory, "metadata", "splits")
    if game is not None and metadata.get("game") != game:
        raise InputError(f"{directory}: is of the game {metadata.get('game')}, not of {game}")
    if split not in splits:
        raise InputError(f"{directory}: has no split '{split}'; it has {', '.join(splits)}")
    statistics = splits[split]
    total = statistics["frames"]
    rows = total if max_frames is None else min(total, max_frames)
    if rows < 1:
        raise InputError(f"max_frames must be at least 1, not {max_frames}")
    _require_memory(rows, directory)
    frames, notes = _empty(rows)
    digest = _Digest()
    at = 0
    for chunk in records.read_records(directory, split, _from_example):
        for whole, part in zip((*frames, *notes), chunk, strict=True):
            whole[at : at + len(part)] = part[: rows - at]
        digest.update(chunk)
        at += len(chunk[0])
        if at >= rows:
            break
    if at < rows or (rows == total and digest.hexdigest() != statistics["fingerprint"]):
        raise records.wrong_content(directory)
    for array, end in ((frames.action, -1), (frames.reward, 0), *((n, 0) for n in notes[:2])):
        array[-1] = end  # where max_frames cut an episode; a whole one ends like this anyway
    return FrameDataset(name, split, frames, notes, metadata, statistics, digest.hexdigest())


def _to_records(
    episodes: Iterable[Episode], statistics: dict[str, Any], where: str
) -> Iterator[dict[str, Any]]:
    """Cuts episodes into records and fills in the statistics of what went by."""
    compressor = zstandard.ZstdCompressor(level=3)
    digest, returns, frames = _Digest(), [], 0
    for chunk in _chunks(_rows(episodes, returns, where)):
        digest.update(chunk)
        frames += len(chunk[0])
        example = dict(zip(FrameArrays._fields + Notes._fields, chunk, strict=True))
        packed = compressor.compress(np.ascontiguousarray(example.pop("observation")))
        yield {"frames": np.frombuffer(packed, np.uint8), **example}
    if not returns:
        raise InputError(f"{where}: holds no episodes")
    statistics.update(
        frames=frames,
        episodes=len(returns),
        mean_return=float(np.mean(returns)),
        fingerprint=digest.hexdigest(),
    )


def _rows(
    episodes: Iterable[Episode], returns: list[float], where: str
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields each episode as its T + 1 rows and notes its return."""
    for index, episode in enumerate(episodes):
        _check(episode, f"{where}: episode {index}")
        returns.append(float(episode.episode_return))
        rows = len(episode.observation)
        yield (
            episode.observation,
            np.append(episode.action, -1).astype(np.int32),
            np.append(episode.reward, 0).astype(np.float32),
            np.full(rows, index, np.int32),
            np.append(episode.value, 0).astype(np.float32),
            np.append(episode.log_prob, 0).astype(np.float32),
            np.full(rows, episode.episode_return, np.float32),
        )


def _chunks(pieces: Iterable[tuple[np.ndarray, ...]]) -> Iterator[tuple[np.ndarray, ...]]:
    """Joins and cuts pieces into chunks of CHUNK rows; the last may be shorter."""
    waiting: list[tuple[np.ndarray, ...]] = []
    rows = 0
    for piece in pieces:
        waiting.append(piece)
        rows += len(piece[0])
        if rows < CHUNK:
            continue
        joined = _join(waiting)
        whole = rows - rows % CHUNK
        for start in range(0, whole, CHUNK):
            yield tuple(array[start : start + CHUNK] for array in joined)
        rows -= whole
        waiting = [tuple(array[whole:] for array in joined)]
    if rows:
        yield _join(waiting)


def _join(pieces: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(arrays) for arrays in zip(*pieces, strict=True))


def _check(episode: Episode, at: str) -> None:
    observation, action = episode.observation, episode.action
    if observation.shape[1:] != FRAME or observation.dtype != np.uint8:
        raise InputError(
            f"{at}: frames must be uint8 [T+1, 64, 64, 3], not {observation.dtype} "
            f"{observation.shape}"
        )
    steps = len(observation) - 1
    if steps < 1:
        raise InputError(f"{at}: has {steps + 1} frames; a transition needs 2")
    for name in ("action", "reward", "value", "log_prob"):
        if np.shape(getattr(episode, name)) != (steps,):
            raise InputError(
                f"{at}: {name} has shape {np.shape(getattr(episode, name))} where {steps + 1} "
                f"frames call for ({steps},)"
            )
    if not np.issubdtype(action.dtype, np.integer) or action.min() < 0 or action.max() >= (
        NUM_ACTIONS
    ):
        raise InputError(f"{at}: actions must be whole numbers in 0 .. {NUM_ACTIONS - 1}")
    for name in ("reward", "value", "log_prob", "episode_return"):
        if not np.isfinite(getattr(episode, name)).all():
            raise InputError(f"{at}: {name} holds NaN or Inf")


def _require_memory(rows: int, directory: epath.Path) -> None:
    """Raises InputError where so many frames do not fit, before the system kills the process."""
    needed, free = rows * _FRAME_BYTES, _free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"{directory}: {rows} frames take {needed / 1e9:.1f} GB of memory, of which "
            f"{free / 1e9:.1f} GB are free; lower --config.data.max_frames"
        )


def _free_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(sizes[0]) if sizes else None


def _empty(rows: int) -> tuple[FrameArrays, Notes]:
    floats = [np.empty(rows, np.float32) for _ in range(4)]
    integers = [np.empty(rows, np.int32) for _ in range(2)]
    # JAX shares aligned memory with a device that is this CPU: no second copy of the frames
    memory = np.empty(rows * _FRAME_BYTES + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    observation = memory[start : start + rows * _FRAME_BYTES].reshape(rows, *FRAME)
    return FrameArrays(observation, integers[0], floats[0], integers[1]), Notes(*floats[1:])


def _features() -> tfds.features.FeaturesDict:
    def column(dtype: type) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=(None,), dtype=dtype, encoding="bytes")

    integers = {name: column(np.int32) for name in ("action", "episode")}
    floats = {name: column(np.float32) for name in ("reward", *Notes._fields)}
    return tfds.features.FeaturesDict({"frames": column(np.uint8), **integers, **floats})


def _from_example(example: dict[str, Any]) -> tuple[np.ndarray, ...]:
    columns = [example[name] for name in FrameArrays._fields[1:] + Notes._fields]
    rows = len(columns[0])
    packed = example["frames"].tobytes()
    raw = zstandard.ZstdDecompressor().decompress(packed, max_output_size=rows * _FRAME_BYTES)
    observation = np.frombuffer(raw, np.uint8).reshape(rows, *FRAME)
    return observation, *columns


class _Digest:
    """SHA-256 of columns of rows, however the rows are cut into chunks."""

    def __init__(self) -> None:
        self._columns = [hashlib.sha256() for _ in FrameArrays._fields + Notes._fields]

    def update(self, chunk: tuple[np.ndarray, ...]) -> None:
        for column, array in zip(self._columns, chunk, strict=True):
            column.update(np.ascontiguousarray(array))

    def hexdigest(self) -> str:
        return hashlib.sha256(b"".join(c.digest() for c in self._columns)).hexdigest()
