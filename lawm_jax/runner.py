"""How a train step meets the devices: the one module that knows how many there are.

A step is written for one device, with collectives over the axis `AXIS`. `data_parallel` scans it
and maps it: the train state and shared inputs are replicated, trajectories are sharded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lawm_jax.errors import InputError

AXIS = "data"
PyTree = Any


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over all devices, or those given."""
    return Mesh(np.array(devices if devices is not None else jax.devices()), (AXIS,))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts a copy of every leaf on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard(tree: PyTree, mesh: Mesh) -> PyTree:
    """Divides every leaf's leading axis among the devices."""
    return jax.device_put(tree, NamedSharding(mesh, P(AXIS)))


def rows_per_device(rows: int, mesh: Mesh, name: str) -> int:
    """The share of a global batch size that each device works on.

    Raises:
      InputError: the devices do not divide it.
    """
    if rows % mesh.size:
        raise InputError(f"{name} is {rows}, which {mesh.size} devices do not divide evenly")
    return rows // mesh.size


def global_rows(local_rows: int) -> jax.Array:
    """Inside a mapped step: the global indices [local_rows] of this device's rows."""
    return jax.lax.axis_index(AXIS) * local_rows + jax.numpy.arange(local_rows)


def data_parallel(
    step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    mesh: Mesh,
    many_seeds: bool = False,
) -> Callable[[PyTree, PyTree, PyTree, int], tuple[PyTree, PyTree]]:
    """Maps a one-device step over a mesh and scans it: many steps are one dispatch.

    Args:
      step: (state, shared, local) -> (state, metrics). It must leave state and metrics equal on all
        devices, by `lax.pmean` or `lax.psum` over AXIS.
      mesh: from `make_mesh`.
      many_seeds: states and shared inputs have a leading axis of seeds, which learn side by side
        from the same sharded data; metrics are [steps, seeds]. Small models fill a device so.

    Returns:
      run(state, shared, sharded, steps) -> (state, metrics of every step, leading axis [steps]).
      The state passed in is donated: use the one returned.
    """

    if many_seeds:
        step = jax.vmap(step, in_axes=(0, 0, None))

    def run(state: PyTree, shared: PyTree, sharded: PyTree, steps: int) -> tuple[PyTree, PyTree]:
        def scanned(state: PyTree, shared: PyTree, local: PyTree) -> tuple[PyTree, PyTree]:
            body = lambda state, _: step(state, shared, local)
            return jax.lax.scan(body, state, length=steps)

        # check_vma off: gradients stay local until the step's own pmean, as under jax.pmap.
        mapped = jax.shard_map(
            scanned, mesh=mesh, in_specs=(P(), P(), P(AXIS)), out_specs=(P(), P()), check_vma=False
        )
        return mapped(state, shared, sharded)

    return jax.jit(run, static_argnames="steps", donate_argnums=0)
