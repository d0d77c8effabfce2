"""Batches drawn on the host and streamed to the devices, for data that does not fit there.

What a step draws follows from (seed, step, row) alone: a stream that begins at any step goes on as
one that began earlier, and each process draws the rows of its own devices only.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lawm_jax.data.windows import TrajectoryArrays, Windows
from lawm_jax.runner import AXIS

THREADS, AHEAD = 2, 2  # of drawing; dispatches that are drawn and put on the devices beforehand

PyTree = Any


def draw_windows(
    data: TrajectoryArrays, seed: int, tag: int, step: int, rows: range, window: int
) -> Windows:
    """Windows [rows, L, ...] of a step, from the distribution of `windows.sample_windows`.

    Args:
      data: numpy arrays.
      tag: tells apart what a run draws at the same step.
      rows: global rows of the batch.
    """
    last = np.cumsum(data.length + window)
    drawn = []
    for row in rows:
        draw = np.random.default_rng([seed, tag, step, row]).integers(last[-1])
        n = int(np.searchsorted(last, draw, side="right"))
        offset = draw - (last[n] - data.length[n] - window)
        start = int(np.clip(offset - (window - 1), 0, data.length[n] + 1 - window))
        steps = slice(start, start + window - 1)
        drawn.append(Windows(
            observation=data.observation[n, start : start + window],
            action=None if data.action is None else data.action[n, steps],
            reward=data.reward[n, steps],
        ))
    return jax.tree.map(lambda *x: np.stack(x), *drawn)


def own_rows(rows: int, mesh: Mesh) -> range:
    """The rows of a global batch that this process's devices work on."""
    process = jax.process_index()
    here = [i for i, device in enumerate(mesh.devices) if device.process_index == process]
    each = rows // mesh.size
    return range(here[0] * each, (here[-1] + 1) * each)


def batches(
    draw: Callable[[int], PyTree], first_step: int, steps: int, steps_per_call: int, mesh: Mesh
) -> Iterator[PyTree]:
    """Yields the batches of one dispatch after another, on the devices ahead of their use.

    Args:
      draw: step -> this process's rows of its batch, numpy arrays with leading axis [rows].
      first_step: the step that the first dispatch begins with.
      steps: the step that the last one ends before.
      steps_per_call: steps of a dispatch; the last may have fewer.

    Yields:
      Trees of [steps, rows, ...], rows divided among the mesh's devices: what a step that
      `runner.data_parallel` maps with `streamed=True` takes.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, AXIS))
    put = lambda x: jax.make_array_from_process_local_data(sharding, x)
    join = lambda drawn: jax.tree.map(lambda *x: np.stack(x), *drawn)
    source = grain.MapDataset.range(first_step, steps).map(draw)
    drawn = source.batch(steps_per_call, batch_fn=join).to_iter_dataset(
        grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD)
    )
    waiting: deque[PyTree] = deque()
    for batch in drawn:
        waiting.append(jax.tree.map(put, batch))
        if len(waiting) > AHEAD:
            yield waiting.popleft()
    yield from waiting
