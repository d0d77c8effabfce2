"""Files of network parameters that ship with the package: one npz with a JSON header.

A leaf params["a"]["b"] is the entry "a/b". The bytes of a file depend on its content alone.
"""

import hashlib
import io
import json
import zipfile
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from lawm_jax.errors import InputError


class ParameterFile(NamedTuple):
    """What a file holds.

    Attributes:
        header: JSON values.
        params: nested dictionaries of arrays.
        digest: SHA-256 of the file.
    """

    header: dict[str, Any]
    params: dict[str, Any]
    digest: str


def write_parameters(path: epath.PathLike, header: dict[str, Any], params: dict[str, Any]) -> None:
    """Writes a header of JSON values and nested dictionaries of arrays; replaces what is there."""
    arrays = {
        "/".join(key.key for key in keys): np.asarray(leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
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


def read_parameters(path: epath.PathLike) -> ParameterFile:
    """Reads a file of `write_parameters`; its checksums are verified.

    Raises:
        InputError: the file is damaged, or another program's.
    """
    content = epath.Path(path).read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            leaves = {name: file[name] for name in file.files if name != "header"}
    except Exception as error:
        raise InputError(f"{path} is damaged ({error}): fetch or train it again") from error
    return ParameterFile(header, _nest(leaves), hashlib.sha256(content).hexdigest())


def _nest(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
