"""A train step with what it is called on, as the benchmarks pass it around."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks import flops
from lawm_jax import runner

BY_STEP = PartitionSpec(None, runner.AXIS)  # of streamed data, [steps, rows, ...]


class TrainStep(NamedTuple):
    """A mapped train step with what it is called on."""

    name: str
    step: Callable[..., tuple]
    state: Any
    shared: Any
    sharded: Any
    windows: float  # windows, start states, transitions or frames a step, of all seeds
    steps_per_call: int  # of a dispatch, as the job that the step is of has them
    seeds: int = 1  # that learn side by side
    streamed: bool = False  # sharded is what each step of a dispatch gets
    dtype: str = "float32"  # of its matmuls
    dispatched: Callable[..., tuple] | None = None  # as the job runs it, where that is not `step`

    def operations(self) -> float:
        """Useful operations of one step on one device."""
        run = functools.partial(self.step, steps=self.steps_per_call)
        return flops.count(run, self.state, self.shared, self.sharded) / self.steps_per_call

    def with_steps(self, steps: int) -> "TrainStep":
        """The same with so many steps a dispatch; streamed data are cut, or come again."""
        again = np.arange(steps) % self.steps_per_call
        take = lambda x: x[again]
        sharded = jax.tree.map(take, self.sharded) if self.streamed else self.sharded
        return self._replace(steps_per_call=steps, sharded=sharded)

    def compile(self) -> jax.stages.Compiled:
        """One dispatch, scanned: compiled(state, shared, sharded) -> (state, metrics)."""
        lowered = self.step.lower(
            self.state, self.shared, self.sharded, steps=self.steps_per_call
        )
        return lowered.compile()


def step_by_step(
    step: Callable[..., tuple], mesh: Mesh, streamed: bool = False
) -> Callable[..., tuple] | None:
    """A step with convolutions as the job runs it on these devices; None: scanned as any other."""
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return runner.data_parallel(step, mesh, streamed=streamed, convolves=True)


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


def memory_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory of one device that a compiled program takes, arguments and results included."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes + memory.output_size_in_bytes
        + memory.temp_size_in_bytes - memory.alias_size_in_bytes
    )  # fmt: skip
