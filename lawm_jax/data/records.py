"""Data sets as TFDS ArrayRecord shards, written and read without TensorFlow.

The data set "walker_walk/medium_replay_400" lies in DATA_DIR/walker_walk/medium_replay_400/1.0.0,
where any TFDS program can open it with `tfds.builder_from_directory`. What its records hold is the
business of the callers: shards.py (trajectories of states) and frame_shards.py (video frames).

ArrayRecord writes local files only. A data set of a gs:// DATA_DIR is written to a temporary folder
and uploaded, and downloaded to one to be read.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.utils import incomplete_dir

from lawm_jax import bucket
from lawm_jax.errors import InputError, TrainingError, first_line

VERSION = "1.0.0"
_LAST = "dataset_info.json"  # uploaded last: a data set in a bucket exists where this does
_MEND = "restore it from a copy, or remove the directory and make the data set again"
T = TypeVar("T")


def dataset_directory(data_dir: epath.PathLike, name: str) -> epath.Path:
    """The directory that holds the shards of a data set, whether or not it exists.

    Raises:
        InputError: the name is not "NAME/CONFIG", or data_dir is in a bucket that cannot be used.
    """
    bucket.connect(data_dir)
    if not re.fullmatch(r"[a-z]\w*/\w[\w.-]*", name):
        raise InputError(
            f"data set name '{name}': must look like NAME/CONFIG, "
            "e.g. walker_walk/medium_replay_400"
        )
    return epath.Path(data_dir).expanduser() / name / VERSION


def exists(data_dir: epath.PathLike, name: str) -> bool:
    """Whether a data set of this name lies in the data directory, whole or damaged since."""
    directory = dataset_directory(data_dir, name)
    if bucket.is_address(directory):
        return bucket.exists(f"{directory}/{_LAST}")
    return directory.exists()


@contextlib.contextmanager
def opened(data_dir: epath.PathLike, name: str, split: str) -> Iterator[epath.Path]:
    """A local directory that holds a split of a data set for as long as the context lasts.

    Raises:
        InputError: there is no such data set; the message lists those that there are.
        TrainingError: it cannot be downloaded.
    """
    directory = dataset_directory(data_dir, name)
    if not exists(data_dir, name):
        found = epath.Path(data_dir).expanduser().glob(f"*/*/{VERSION}/dataset_info.json")
        names = sorted("/".join(path.parts[-4:-2]) for path in found)
        listed = f"it has {', '.join(names)}" if names else "it has no data sets"
        raise InputError(f"no data set '{name}' in {data_dir}; {listed}")
    if not bucket.is_address(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="lawm_jax_") as temporary:
        local = epath.Path(temporary)
        for file in bucket.names(str(directory)):
            if ".array_record" not in file or f"-{split}." in file:
                (local / file).write_bytes(bucket.read(f"{directory}/{file}"))
        try:
            yield local
        except InputError as error:  # which names a file that is about to vanish
            raise InputError(str(error).replace(temporary, str(directory))) from error


def refuse_existing(data_dir: epath.PathLike, name: str) -> epath.Path:
    """The same, of a data set that does not exist yet.

    Raises:
        InputError: it does.
    """
    directory = dataset_directory(data_dir, name)
    if exists(data_dir, name):
        raise InputError(f"{directory} exists: choose another name, or remove it to write it again")
    return directory


def check_json(metadata: Any, name: str) -> None:
    """Raises InputError where metadata of the data set `name` would not survive JSON."""
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"metadata of {name} cannot be written as JSON: {error}") from error


def write_records(
    data_dir: epath.PathLike,
    name: str,
    splits: Mapping[str, Iterable[dict[str, Any]]],
    *,
    features: tfds.features.FeaturesDict,
    description: str,
    metadata: dict[str, Any],
    records_per_shard: int,
) -> epath.Path:
    """Writes a data set; it appears under its name only when it is complete.

    What a killed process leaves is a directory "incomplete.*", which nothing reads.

    Args:
        data_dir: local directory or gs:// address, created where missing.
        name: "NAME/CONFIG".
        splits: the records of each split, consumed one split after another.
        features: of a record.
        description: of the data set.
        metadata: JSON values; `splits` may add to the dictionaries in it as they are consumed,
            for it is written last.
        records_per_shard: at most.

    Returns:
        The directory that holds the shards.

    Raises:
        InputError: a data set of that name exists.
        TrainingError: the disk is full or cannot be written to.
    """
    directory = refuse_existing(data_dir, name)
    if bucket.is_address(directory):
        with tempfile.TemporaryDirectory(prefix="lawm_jax_") as temporary:
            local = write_records(
                temporary, name, splits, features=features, description=description,
                metadata=metadata, records_per_shard=records_per_shard,
            )
            for path in sorted(local.iterdir(), key=lambda path: path.name == _LAST):
                bucket.write(f"{directory}/{path.name}", path.read_bytes())
        return directory
    try:
        with incomplete_dir(directory) as temporary:  # renamed at the end
            dataset, config = name.split("/")
            info = tfds.core.DatasetInfo(
                builder=tfds.core.DatasetIdentity(
                    name=dataset,
                    config_name=config,
                    version=tfds.core.Version(VERSION),
                    data_dir=str(temporary),
                    module_name=__name__,
                ),
                description=description,
                features=features,
                metadata=tfds.core.MetadataDict(metadata),
                disable_shuffling=True,
            )
            writer = tfds.core.SequentialWriter(
                info, max_examples_per_shard=records_per_shard, file_format="array_record"
            )
            writer.initialize_splits(list(splits))
            writer.add_examples(dict(splits))
            writer.close_all()
    except TrainingError:  # of the caller's own, while it made the records
        raise
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError where a disk is full
        refuse_existing(data_dir, name)  # another process finished first
        raise TrainingError(f"{name} could not be written to {data_dir}: {error}") from error
    return directory


def read_records(
    directory: epath.Path, split: str, decode: Callable[[dict[str, Any]], T]
) -> Iterator[T]:
    """Yields the decoded records of a split in the order in which they were written.

    Raises:
        InputError: no such split; a file is missing or damaged, or `decode` failed: names the
            file and the record.
    """
    try:
        builder = tfds.builder_from_directory(directory)
        names = list(builder.info.splits)
    except Exception as error:  # TFDS raises whatever its parsers raise
        raise _damaged_description(directory, error) from error
    if split not in names:
        raise InputError(f"{directory}: has no split '{split}'; it has {', '.join(names)}")
    try:
        shards = [epath.Path(path) for path in builder.info.splits[split].filepaths]
        lengths = builder.info.splits[split].shard_lengths
        source = builder.as_data_source(split)
    except Exception as error:
        raise _damaged_description(directory, error) from error
    if missing := [shard.name for shard in shards if not shard.exists()]:
        raise InputError(f"{directory}: missing shard {', '.join(missing)}; {_MEND}")
    index = 0
    for shard, length in zip(shards, lengths, strict=True):
        for record in range(length):
            try:
                decoded = decode(source[index])
            except Exception as error:  # ArrayRecord has no error type of its own
                raise InputError(
                    f"{shard}: record {record} of {length} cannot be read: the file is damaged or "
                    f"truncated ({first_line(error)}); {_MEND}"
                ) from error
            yield decoded
            index += 1


def read_metadata(directory: epath.Path, *keys: str) -> list[Any]:
    """Returns the values of metadata.json under these keys.

    Raises:
        InputError: the file is missing or damaged, or lacks a key.
    """
    try:
        content = dict(json.loads((directory / "metadata.json").read_text()))
        content["metadata"]  # which data sets of every kind have
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{directory}/metadata.json is missing or damaged ({first_line(error)}); {_MEND}"
        ) from error
    if missing := [key for key in keys if key not in content]:
        raise InputError(
            f"{directory}/metadata.json has no '{missing[0]}': the data set is another "
            "experiment's (trajectories are for experiments.lawm and experiments.baselines, frames "
            "for experiments.lapo), or it is damaged: restore it from a copy"
        )
    return [content[key] for key in keys]


def wrong_content(directory: epath.Path) -> InputError:
    """The error for records that can be read but are not those that were written."""
    return InputError(
        f"{directory}: the shards do not hold what was written (fingerprint differs); "
        "remove the directory and make the data set again"
    )


def _damaged_description(directory: epath.Path, error: Exception) -> InputError:
    return InputError(
        f"{directory}: dataset_info.json or features.json is missing or damaged "
        f"({first_line(error)}); {_MEND}"
    )
