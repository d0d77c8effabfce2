"""Data sets on disk: TFDS ArrayRecord shards, written and read without TensorFlow.

The data set "walker_walk/medium_replay_400" lies in DATA_DIR/walker_walk/medium_replay_400/1.0.0,
where any TFDS program can open it with `tfds.builder_from_directory`. A record is a trajectory:

  observation  [T+1, O] float32
  action       [T, A] float32; [0, A] where this trajectory has none; no such feature where none has
  reward       [T] float32
  source       text

metadata.json beside the shards holds the caller's metadata and the fingerprint of the content.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.utils import incomplete_dir

from lawm_jax.data.trajectory import Trajectory, fingerprint, validate
from lawm_jax.errors import InputError, TrainingError

VERSION = "1.0.0"
SHARD_BYTES = 32 << 20  # about the size of a shard
_MEND = "restore it from a copy, or remove the directory and make the data set again"


@dataclass(frozen=True)
class Dataset:
    """A data set in memory; `fingerprint` is the SHA-256 of all its trajectories in order."""

    name: str
    trajectories: list[Trajectory]
    metadata: dict[str, Any]
    fingerprint: str


def dataset_exists(data_dir: epath.PathLike, name: str) -> bool:
    """Whether a data set of this name lies in the data directory, whole or damaged since."""
    return _directory(data_dir, name).exists()


def write_dataset(
    data_dir: epath.PathLike,
    name: str,
    trajectories: Iterable[Trajectory],
    metadata: dict[str, Any],
) -> epath.Path:
    """Writes a data set; it appears under its name only when it is complete.

    What a killed process leaves is a directory "incomplete.*", which nothing reads.

    Args:
        data_dir: local directory or gs:// address, created where missing.
        name: "NAME/CONFIG", e.g. "walker_walk/medium_replay_400".
        trajectories: checked by `validate` before anything is written; stored as float32.
        metadata: must survive JSON.

    Returns:
        The directory that holds the shards.

    Raises:
        InputError: a data set of that name exists, a trajectory is wrong, metadata is not JSON.
        TrainingError: the disk is full or cannot be written to.
    """
    directory = _directory(data_dir, name)
    exists = InputError(f"{directory} exists: choose another name, or remove it to write it again")
    if dataset_exists(data_dir, name):
        raise exists
    trajectories = [_as_float32(trajectory) for trajectory in trajectories]
    validate(trajectories, where=name)
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"metadata of {name} cannot be written as JSON: {error}") from error
    meta = {"metadata": metadata, "fingerprint": fingerprint(trajectories)}
    try:
        with incomplete_dir(directory) as temporary:  # renamed at the end
            _write(epath.Path(temporary), name, trajectories, meta)
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError where a disk is full
        if directory.exists():  # another process finished first
            raise exists from error
        raise TrainingError(f"{name} could not be written to {data_dir}: {error}") from error
    return directory


def read_dataset(data_dir: epath.PathLike, name: str) -> Dataset:
    """Reads a whole data set into memory and compares it with its fingerprint.

    Raises:
        InputError: it does not exist (lists those that do), or a file is missing or damaged
            (names the file and the record).
    """
    directory = _directory(data_dir, name)
    if not dataset_exists(data_dir, name):
        raise InputError(f"no data set '{name}' in {data_dir}; {_available(data_dir)}")
    metadata, expected = _read_metadata(directory)
    trajectories = list(_read_trajectories(directory))
    validate(trajectories, where=str(directory))
    if fingerprint(trajectories) != expected:
        raise InputError(
            f"{directory}: the shards do not hold what was written (fingerprint differs); "
            "remove the directory and make the data set again"
        )
    return Dataset(name, trajectories, metadata, expected)


def _write(directory: epath.Path, name: str, trajectories: list[Trajectory], meta: dict) -> None:
    name, config = name.split("/")
    action_size = _action_size(trajectories)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            config_name=config,
            version=tfds.core.Version(VERSION),
            data_dir=str(directory),
            module_name=__name__,
        ),
        description="Trajectories: action[t] leads from observation[t] to observation[t+1] and "
        "earns reward[t]. An action of no rows stands for actions that are not known.",
        features=_features(trajectories[0].observation.shape[1], action_size),
        metadata=tfds.core.MetadataDict(meta),
        disable_shuffling=True,
    )
    step_bytes = 4 * (trajectories[0].observation.shape[1] + (action_size or 0) + 1)
    record_bytes = step_bytes * max(trajectory.length for trajectory in trajectories)
    writer = tfds.core.SequentialWriter(
        info, max_examples_per_shard=max(1, SHARD_BYTES // record_bytes), file_format="array_record"
    )
    writer.initialize_splits(["train"])
    writer.add_examples({"train": (_to_example(t, action_size) for t in trajectories)})
    writer.close_all()


def _features(observation_size: int, action_size: int | None) -> tfds.features.FeaturesDict:
    def tensor(*shape: int | None) -> tfds.features.Tensor:
        return tfds.features.Tensor(shape=shape, dtype=np.float32, encoding="bytes")

    features = {"observation": tensor(None, observation_size), "reward": tensor(None)}
    if action_size is not None:
        features["action"] = tensor(None, action_size)
    return tfds.features.FeaturesDict({**features, "source": tfds.features.Text()})


def _to_example(trajectory: Trajectory, action_size: int | None) -> dict[str, Any]:
    example = dict(vars(trajectory))
    if action_size is None:
        del example["action"]
    elif trajectory.action is None:
        example["action"] = np.zeros((0, action_size), np.float32)
    return example


def _read_trajectories(directory: epath.Path) -> Iterator[Trajectory]:
    try:
        builder = tfds.builder_from_directory(directory)
        split = builder.info.splits["train"]
        shards = [epath.Path(path) for path in split.filepaths]
        source = builder.as_data_source("train")
    except Exception as error:  # TFDS raises whatever its parsers raise
        raise InputError(
            f"{directory}: dataset_info.json or features.json is missing or damaged "
            f"({_first_line(error)}); {_MEND}"
        ) from error
    if missing := [shard.name for shard in shards if not shard.exists()]:
        raise InputError(f"{directory}: missing shard {', '.join(missing)}; {_MEND}")
    index = 0
    for shard, length in zip(shards, split.shard_lengths, strict=True):
        for record in range(length):
            try:
                trajectory = _from_example(source[index])
            except Exception as error:  # ArrayRecord has no error type of its own
                raise InputError(
                    f"{shard}: record {record} of {length} cannot be read: the file is damaged or "
                    f"truncated ({_first_line(error)}); {_MEND}"
                ) from error
            yield trajectory
            index += 1


def _from_example(example: dict[str, Any]) -> Trajectory:
    action = example.get("action")
    if action is not None and not len(action):
        action = None
    source = example["source"].decode()
    return Trajectory(example["observation"], action, example["reward"], source)


def _read_metadata(directory: epath.Path) -> tuple[dict[str, Any], str]:
    try:
        content = json.loads((directory / "metadata.json").read_text())
        return content["metadata"], content["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{directory}/metadata.json is missing or damaged ({_first_line(error)}); {_MEND}"
        ) from error


def _directory(data_dir: epath.PathLike, name: str) -> epath.Path:
    if not re.fullmatch(r"[a-z]\w*/\w[\w.-]*", name):
        raise InputError(
            f"data set name '{name}': must look like NAME/CONFIG, "
            "e.g. walker_walk/medium_replay_400"
        )
    return epath.Path(data_dir).expanduser() / name / VERSION


def _available(data_dir: epath.PathLike) -> str:
    found = epath.Path(data_dir).expanduser().glob(f"*/*/{VERSION}/dataset_info.json")
    names = sorted("/".join(path.parts[-4:-2]) for path in found)
    return f"it has {', '.join(names)}" if names else "it has no data sets"


def _as_float32(trajectory: Trajectory) -> Trajectory:
    action = trajectory.action
    return Trajectory(
        np.asarray(trajectory.observation, np.float32),
        None if action is None else np.asarray(action, np.float32),
        np.asarray(trajectory.reward, np.float32),
        trajectory.source,
    )


def _action_size(trajectories: list[Trajectory]) -> int | None:
    labelled = (t.action for t in trajectories if t.action is not None)
    return next((action.shape[1] for action in labelled), None)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
