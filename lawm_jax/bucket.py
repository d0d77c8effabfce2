"""Google Cloud Storage: whole files of a gs:// address, read and written through gcsfs.

Checkpoints are not copied: Orbax writes them to the bucket itself. The libraries use the account
that a VM has or that `gcloud auth application-default login` gave.
"""

import contextlib
import functools
import logging
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lawm_jax.errors import InputError, TrainingError, first_line

if TYPE_CHECKING:
    import gcsfs

SECONDS = 10  # for the first answer


def is_address(path: Any) -> bool:
    """Whether a path is a gs:// address."""
    return str(path).startswith("gs://")


def connect(path: Any) -> None:
    """Checks that the bucket of an address answers; local paths pass.

    Raises:
        InputError: it does not answer or lets this account not in, the library is missing, or the
            address is of another kind.
    """
    scheme, separator, rest = str(path).partition("://")
    if not separator:
        return
    if scheme != "gs":
        raise InputError(f"{path}: of addresses only gs:// is known; otherwise name a folder")
    name = rest.partition("/")[0]
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"{path}: an address looks like gs://BUCKET/FOLDER")
    _connect(name)


@functools.cache
def _connect(name: str) -> None:
    try:
        import fsspec
        import gcsfs  # noqa: F401 - fsspec finds it by name
        from google.cloud import storage
    except ImportError as error:
        raise InputError(
            f"gs://{name}: the library for gs:// addresses is missing ({error}); "
            "install it with pip install -e '.[gcs]'"
        ) from error
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # tracebacks of what it then raises
    # Orbax's arrays, and other hosts, reach the bucket without gcsfs of this process knowing.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        # Orbax asks for this too; where it fails it does so at once, not after retries
        storage.Client().get_bucket(name, timeout=SECONDS, retry=None)
    except Exception as error:  # each of Google's libraries has errors of its own
        raise InputError(
            f"gs://{name} cannot be used: {first_line(error)}; it needs a bucket that exists, "
            "credentials (gcloud auth application-default login) and the right storage.buckets.get"
        ) from error


def names(address: str) -> list[str]:
    """The files below an address, relative to it, sorted. Raises TrainingError."""
    with _one_line(address) as files:
        start = len(address.removeprefix("gs://").rstrip("/")) + 1
        return sorted(path[start:] for path in files.find(address) if not path.endswith("/"))


def read(address: str) -> bytes:
    """The content of a file. Raises FileNotFoundError, or TrainingError for anything else."""
    with _one_line(address) as files:
        return files.cat_file(address)


def write(address: str, content: bytes) -> None:
    """Writes a file, which appears whole. Raises TrainingError."""
    with _one_line(address) as files:
        files.pipe_file(address, content)


def delete(address: str) -> None:
    """Deletes a file, if it is there. Raises TrainingError."""
    with _one_line(address) as files, contextlib.suppress(FileNotFoundError):
        files.rm_file(address)


def exists(address: str) -> bool:
    """Whether a file is there. Raises TrainingError."""
    with _one_line(address) as files:
        return files.isfile(address)


@contextlib.contextmanager
def _one_line(address: str) -> Iterator["gcsfs.GCSFileSystem"]:
    """gcsfs, whose errors become one line."""
    import fsspec

    connect(address)
    try:
        yield fsspec.filesystem("gcs")
    except FileNotFoundError:
        raise
    except Exception as error:  # OSError, and those of gcsfs, aiohttp and google.auth
        raise TrainingError(f"{address} cannot be read or written: {first_line(error)}") from error
