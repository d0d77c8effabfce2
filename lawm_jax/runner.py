"""How a train step meets the devices: the one module that knows how many there are.

A step is written for one device, with collectives over the axis `AXIS`. `data_parallel` scans it
and maps it: the train state and shared inputs are replicated, trajectories are sharded.

On several hosts every process runs the same program on the same inputs; each holds its devices'
share. Process 0 alone evaluates, logs and writes.
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lawm_jax.errors import InputError

AXIS = "data"
PyTree = Any
T = TypeVar("T")


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A one-dimensional mesh over all devices, or those given."""
    return Mesh(np.array(devices if devices is not None else find_devices()), (AXIS,))


def find_devices() -> list[jax.Device]:
    """All devices of JAX's platform.

    Raises:
      InputError: the platform that JAX_PLATFORMS asks for is not there.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0] or "no such backend"
        asked = os.environ.get("JAX_PLATFORMS")
        raise InputError(f"JAX found no device for JAX_PLATFORMS={asked}: {reason}") from error


def connect(mode: str = "auto", timeout_seconds: int = 120) -> bool:
    """Joins the processes of a run on several hosts; call it before anything touches a device.

    Args:
      mode: "off", "on", or "auto": where the environment names a coordinator, or on a TPU VM. The
        cluster is described by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or
        found by JAX (Cloud TPU, Slurm, Kubernetes, MPI).
      timeout_seconds: how long to wait for the other processes; then this one exits with code 2.

    Returns:
      Whether there was something to join.

    Raises:
      InputError: unknown mode; a wrong variable; no cluster was found.
    """
    if mode not in ("auto", "on", "off"):
        raise InputError(f"--distributed is '{mode}'; choose auto, on or off")
    coordinator = "JAX_COORDINATOR_ADDRESS" in os.environ
    if mode == "off" or (mode == "auto" and not coordinator and not _on_tpu_vm()):
        return False
    processes, process = (_number(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    if coordinator and not re.fullmatch(r".+:\d+", os.environ["JAX_COORDINATOR_ADDRESS"]):
        address = os.environ["JAX_COORDINATOR_ADDRESS"]
        raise InputError(f"the environment's JAX_COORDINATOR_ADDRESS is '{address}', not HOST:PORT")
    # JAX ends the process with a stack trace where hosts do not come: this one is ahead of it.
    alarm = threading.Timer(timeout_seconds, _give_up, (timeout_seconds,))
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            num_processes=processes, process_id=process, initialization_timeout=2 * timeout_seconds
        )
    except (ValueError, RuntimeError, OSError) as error:
        # JAX's ValueError says that nothing described a cluster: a device file like a TPU's, but no
        # Cloud TPU. A cluster that is there and fails must not become a run of this host alone.
        if mode == "auto" and not coordinator and isinstance(error, ValueError):
            return False
        reason = str(error).partition("\n")[0]
        raise InputError(f"no cluster was found ({reason}); pass --distributed=off") from error
    finally:
        alarm.cancel()
    return True


def _give_up(seconds: int) -> None:
    message = f"error: not all hosts of this run came within {seconds} s: start the same command "
    os.write(2, f"{message}on all of them, or pass --distributed=off\n".encode())
    os._exit(2)


def _number(variable: str) -> int | None:
    text = os.environ.get(variable)
    if text is not None and not text.isdecimal():
        raise InputError(f"the environment's {variable} is '{text}', not a number")
    return None if text is None else int(text)


def _on_tpu_vm() -> bool:
    """Whether this is a Cloud TPU VM that should use its TPU."""
    platforms = os.environ.get("JAX_PLATFORMS", "tpu")
    return "tpu" in platforms and any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))


def is_main() -> bool:
    """Whether this process evaluates, logs and writes."""
    return jax.process_index() == 0


def on_any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; all must ask at the same point of the program."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def all_or_none(work: Callable[[], T]) -> T:
    """Calls `work` on every process, waits for all, and returns what it returned here.

    Raises:
      Exception: whatever `work` raised here.
      InputError: it failed on another process.
    """
    error: Exception | None = None
    try:
        result = work()
    except Exception as caught:
        error = caught
    failed_elsewhere = on_any_process(error is not None)
    if error is not None:
        raise error
    if failed_elsewhere:
        raise InputError("another process of this run failed; its own output says why")
    return result


def is_equal(text: str) -> bool:
    """Whether the text is the same on every process; all get the same answer."""
    if jax.process_count() == 1:
        return True
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    return not np.ptp(multihost_utils.process_allgather(digest), axis=0).any()


def require_equal(text: str, what: str) -> None:
    """Raises InputError, on all of them, unless the text is the same on every process."""
    if not is_equal(text):
        raise InputError(f"the hosts of this run do not have the same {what}")


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts a copy of every leaf on every device."""
    return _put(tree, NamedSharding(mesh, P()))


def shard(tree: PyTree, mesh: Mesh) -> PyTree:
    """Divides every leaf's leading axis among the devices."""
    return _put(tree, NamedSharding(mesh, P(AXIS)))


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(x: Any) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def local(tree: PyTree) -> PyTree:
    """A replicated tree as one of this process's devices has it, for work that is not mapped."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def join_seeds(trees: Sequence[PyTree], axis: int = 0) -> PyTree:
    """Trees of several seeds as one, on the host; axis 1 for what is sharded.

    One alone stays as it is.
    """
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis), *trees)


def split_seeds(tree: PyTree, seeds: int) -> list[PyTree]:
    """The tree of each seed, from one that `join_seeds` made along axis 0."""
    if seeds == 1:
        return [tree]
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(seeds)]


def step_of(state: PyTree) -> int:
    """How many steps a train state, of one seed or several, has been trained."""
    return int(np.max(np.asarray(state.step)))


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


def row_keys(seed: jax.Array, step: jax.Array, tag: int, local_rows: int) -> jax.Array:
    """One key a global row of this device [local_rows]: the same row, the same randomness.

    tag: tells apart what a run draws at the same step.
    """
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), tag)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(global_rows(local_rows))


def data_parallel(
    step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    mesh: Mesh,
    many_seeds: bool = False,
    streamed: bool = False,
    convolves: bool = False,
) -> Callable[[PyTree, PyTree, PyTree, int], tuple[PyTree, PyTree]]:
    """Maps a one-device step over a mesh and scans it: many steps are one dispatch.

    Args:
      step: (state, shared, local) -> (state, metrics). It must leave state and metrics equal on all
        devices, by `lax.pmean` or `lax.psum` over AXIS.
      mesh: from `make_mesh`.
      many_seeds: states and shared inputs have a leading axis of seeds, which learn side by side;
        of sharded data the seeds are the second axis (`join_seeds`), and metrics are
        [steps, seeds]. Small models fill a device so. Not to be combined with `streamed`.
      streamed: the sharded input is not the data that every step draws from but what each step
        gets, [steps, rows, ...] with the rows divided among the devices (`data.stream.batches`).
      convolves: the step has convolutions, which XLA runs 30 times slower inside a loop on a CPU:
        there every step is a dispatch of its own.

    Returns:
      run(state, shared, sharded, steps) -> (state, metrics of every step, leading axis [steps]).
      The state passed in is donated: use the one returned.
    """

    if many_seeds:
        step = jax.vmap(step, in_axes=(0, 0, 1))

    if convolves and mesh.devices.flat[0].platform == "cpu":
        return _step_by_step(step, mesh, streamed)

    def run(state: PyTree, shared: PyTree, sharded: PyTree, steps: int) -> tuple[PyTree, PyTree]:
        def scanned(state: PyTree, shared: PyTree, local: PyTree) -> tuple[PyTree, PyTree]:
            body = lambda state, drawn: step(state, shared, drawn if streamed else local)
            return jax.lax.scan(body, state, local if streamed else None, length=steps)

        # check_vma off: gradients stay local until the step's own pmean, as under jax.pmap.
        divided = P(None, AXIS) if streamed else P(AXIS)
        mapped = jax.shard_map(
            scanned, mesh=mesh, in_specs=(P(), P(), divided), out_specs=(P(), P()), check_vma=False
        )
        return mapped(state, shared, sharded)

    return jax.jit(run, static_argnames="steps", donate_argnums=0)


def map_rows(
    function: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]], mesh: Mesh
) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
    """Maps a one-device function over a mesh, for work on rows that is not a train step.

    function: (shared, local) -> (a result that is equal on all devices, one a row of `local`).
    """
    return jax.jit(jax.shard_map(
        function, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=(P(), P(AXIS)), check_vma=False
    ))


def _step_by_step(
    step: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]], mesh: Mesh, streamed: bool
) -> Callable[[PyTree, PyTree, PyTree, int], tuple[PyTree, PyTree]]:
    """What `data_parallel` returns, with the loop over steps on the host."""
    mapped = jax.shard_map(
        step, mesh=mesh, in_specs=(P(), P(), P(AXIS)), out_specs=(P(), P()), check_vma=False
    )
    dispatch = jax.jit(mapped, donate_argnums=0)
    pick = jax.jit(lambda tree, i: jax.tree.map(lambda x: x[i], tree))
    stack = jax.jit(lambda *metrics: jax.tree.map(lambda *x: jax.numpy.stack(x), *metrics))

    def run(state: PyTree, shared: PyTree, sharded: PyTree, steps: int) -> tuple[PyTree, PyTree]:
        metrics = []
        for i in range(steps):
            drawn = pick(sharded, i) if streamed else sharded
            state, measured = dispatch(state, shared, drawn)
            metrics.append(measured)
        return state, stack(*metrics)

    return run
