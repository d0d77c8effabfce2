"""Files of network parameters that ship with the package: one npz with a JSON header.

A leaf params["a"]["b"] is the entry "a/b". The bytes of a file depend on its content alone.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from lawm_jax import npz


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
    npz.write(path, header, {
        "/".join(key.key for key in keys): np.asarray(leaf)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
    })


def read_parameters(path: epath.PathLike) -> ParameterFile:
    """Reads a file of `write_parameters`; its checksums are verified.

    Raises:
        InputError: the file is damaged, or another program's.
    """
    content = npz.read(path)
    return ParameterFile(content.header, _nest(content.arrays), content.digest)


def _nest(leaves: dict[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
