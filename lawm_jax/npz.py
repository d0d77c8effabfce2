"""Named arrays with a JSON header in one npz file, whose bytes depend on the content alone."""

import hashlib
import io
import json
import zipfile
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from lawm_jax.errors import InputError


class Content(NamedTuple):
    """What `read` returns; digest is the SHA-256 (hex) of the file."""

    header: dict[str, Any]
    arrays: dict[str, np.ndarray]
    digest: str


def write(path: epath.PathLike, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes the file, or replaces it, as a whole.

    header: JSON values; arrays: by any names but "header".
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:  # not np.savez, which writes the time of day
        for name, array in {"header": np.array(json.dumps(header)), **arrays}.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")
            archive.writestr(entry, content.getvalue(), zipfile.ZIP_DEFLATED)
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f"{path.name}.partial"
    partial.write_bytes(file.getvalue())
    partial.replace(path)


def read(path: epath.PathLike) -> Content:
    """Reads a file that `write` wrote; raises InputError where it is damaged."""
    content = epath.Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            arrays = {name: file[name] for name in file.files if name != "header"}
    except Exception as error:
        raise InputError(f"{path} is damaged ({error}): fetch or train it again") from error
    return Content(header, arrays, hashlib.sha256(content).hexdigest())
