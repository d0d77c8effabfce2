"""Data sets of trajectories: TFDS ArrayRecord shards (see records.py). A record is a trajectory:

  observation  [T+1, O] float32
  action       [T, A] float32; [0, A] where this trajectory has none; no such feature where none has
  reward       [T] float32
  source       text

metadata.json beside the shards holds the caller's metadata and the fingerprint of the content.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from lawm_jax.data import records
from lawm_jax.data.trajectory import Trajectory, fingerprint, validate

SHARD_BYTES = 32 << 20  # about the size of a shard


@dataclass(frozen=True)
class Dataset:
    """A data set in memory; `fingerprint` is the SHA-256 of all its trajectories in order."""

    name: str
    trajectories: list[Trajectory]
    metadata: dict[str, Any]
    fingerprint: str


def dataset_exists(data_dir: epath.PathLike, name: str) -> bool:
    """Whether a data set of this name lies in the data directory, whole or damaged since."""
    return records.exists(data_dir, name)


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
    records.refuse_existing(data_dir, name)
    trajectories = [_as_float32(trajectory) for trajectory in trajectories]
    validate(trajectories, where=name)
    records.check_json(metadata, name)
    observation_size = trajectories[0].observation.shape[1]
    action_size = _action_size(trajectories)
    step_bytes = 4 * (observation_size + (action_size or 0) + 1)
    record_bytes = step_bytes * max(trajectory.length for trajectory in trajectories)
    return records.write_records(
        data_dir,
        name,
        {"train": (_to_example(t, action_size) for t in trajectories)},
        features=_features(observation_size, action_size),
        description="Trajectories: action[t] leads from observation[t] to observation[t+1] and "
        "earns reward[t]. An action of no rows stands for actions that are not known.",
        metadata={"metadata": metadata, "fingerprint": fingerprint(trajectories)},
        records_per_shard=max(1, SHARD_BYTES // record_bytes),
    )


def read_dataset(data_dir: epath.PathLike, name: str) -> Dataset:
    """Reads a whole data set into memory and compares it with its fingerprint.

    Raises:
        InputError: it does not exist (lists those that do), or a file is missing or damaged
            (names the file and the record).
    """
    with records.opened(data_dir, name, "train") as directory:
        metadata, expected = records.read_metadata(directory, "metadata", "fingerprint")
        trajectories = list(records.read_records(directory, "train", _from_example))
        validate(trajectories, where=str(directory))
        if fingerprint(trajectories) != expected:
            raise records.wrong_content(directory)
    return Dataset(name, trajectories, metadata, expected)


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


def _from_example(example: dict[str, Any]) -> Trajectory:
    action = example.get("action")
    if action is not None and not len(action):
        action = None
    source = example["source"].decode()
    return Trajectory(example["observation"], action, example["reward"], source)


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
