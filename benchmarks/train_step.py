"""A train step with what it is called on, as the benchmarks pass it around."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lawm_jax import runner


class TrainStep(NamedTuple):
    """A mapped train step with what it is called on."""

    name: str
    step: Callable[..., tuple]
    state: Any
    shared: Any
    sharded: Any
    windows: float  # windows, start states, transitions or frames a step, of all seeds
    seeds: int = 1  # that learn side by side
    dispatched: Callable[..., tuple] | None = None  # as the job runs it, where that is not `step`


def placing(mesh: Mesh, abstract: bool) -> tuple[Callable[[Any, PartitionSpec], Any], Any, Any]:
    """put(tree, spec) and its two specs: replicated, and divided among the devices.

    abstract: put gives jax.ShapeDtypeStruct, for a mesh of devices that are not here.
    """

    def put(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        if not abstract:
            return jax.device_put(tree, sharding)
        struct = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
        return jax.tree.map(lambda x: struct(x.shape, x.dtype), tree)

    return put, PartitionSpec(), PartitionSpec(runner.AXIS)
