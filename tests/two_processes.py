"""Run by test_runner.py, alone or twice as two processes of one run; four devices in all.

Every row that a device works on differs from the others, so that one in another's place is seen.
What process 0 has it writes to a file, name -> numbers, and prints that file's name, both as JSON:
states and metrics of training with data on the devices, interrupted half-way, and streamed; and
the batches of the streams.
"""

import json
import sys
from pathlib import Path
from typing import NamedTuple

import eight_devices
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from lapo_small import noise_frames
from small import make_trajectory

from lawm_jax import runner
from lawm_jax.checkpoint import Checkpoints, state_digest
from lawm_jax.data import stream
from lawm_jax.data.frames import shard_frames, stream_windows
from lawm_jax.data.windows import stack
from lawm_jax.lapo import learner as lapo_learner
from lawm_jax.lawm import learner
from lawm_jax.lawm.learner import TrainingData

DEVICES, ROWS, STEPS = 4, 8, 2  # steps of each of two dispatches
CONFIG = eight_devices.CONFIG


def make_training():
    """(step, state, data): trajectories of different lengths, three of each kind a device."""
    labelled, unlabelled = (
        [make_trajectory(3 + (seed + first) % 5, first + seed) for seed in range(3 * DEVICES)]
        for first in (0, 100)
    )
    data = TrainingData(stack(labelled, actions=True), stack(unlabelled, actions=False))
    optimiser = learner.make_optimiser(CONFIG)
    fresh = learner.init(eight_devices.MODEL, optimiser, learner.fit_normaliser(data), seed=0)
    step = learner.make_step(
        eight_devices.MODEL, eight_devices.ELBO, CONFIG, optimiser, DEVICES
    )
    return step, jax.device_get(fresh), data  # a copy: the train state is donated


def resident(mesh, directory):
    """Two dispatches, the second from what a checkpoint restores, moments of AdamW included."""
    step, fresh, data = make_training()
    run, data = runner.data_parallel(step, mesh), runner.shard(data, mesh)
    state, first = run(runner.replicate(fresh, mesh), None, data, steps=STEPS)
    checkpoints = Checkpoints(directory)
    checkpoints.save(STEPS, state, {})
    restored = checkpoints.restore(runner.replicate(fresh, mesh)).state
    checkpoints.close()
    assert state_digest(restored) == state_digest(state) != state_digest(fresh)
    assert state_digest(runner.local(state)) == state_digest(state)
    return run(restored, None, data, steps=STEPS), first


def streamed(mesh):
    """The same two dispatches on windows that the host draws: (state, batches, metrics)."""
    step, fresh, data = make_training()
    run = runner.data_parallel(step, mesh, streamed=True)
    draw = learner.stream_step(data, CONFIG, 0, mesh)
    batches = list(stream.batches(draw, 0, 2 * STEPS, STEPS, mesh))
    state, metrics = runner.replicate(fresh, mesh), []
    for batch in batches:
        state, measured = run(state, None, batch, steps=STEPS)
        metrics.append(jax.device_get(measured))
    return state, multihost_utils.process_allgather(batches, tiled=True), metrics


class Draws(NamedTuple):
    """As much of a train state as `lapo.learner.draw` looks at."""

    seed: jax.Array
    step: jax.Array


def frames(mesh):
    """LAPO's windows, drawn on the devices and on the host, as sums where each row has its weight.

    Its learners take means over rows, which an exchange of rows would not change.
    """
    data = noise_frames(lengths=(5, 7, 9, 6))
    rows = ROWS // DEVICES

    def step(state, shared, local):
        weight = 1.0 + runner.global_rows(rows)
        add = lambda x: (weight * x.reshape(rows, -1).astype(jnp.float32).sum(1)).sum()
        sums = jax.tree.map(add, lapo_learner.draw(state, local, rows, shift=1))
        return state._replace(step=state.step + 1), jax.lax.psum(sums, runner.AXIS)

    fresh = lambda: runner.replicate(Draws(np.int32(3), np.int32(0)), mesh)
    shards = runner.shard(shard_frames(data, DEVICES), mesh)
    resident = runner.data_parallel(step, mesh)(fresh(), None, shards, steps=STEPS)[1]
    resident = jax.device_get(resident)
    draw = stream_windows(data, 0, stream.own_rows(ROWS, mesh), ROWS)
    run = runner.data_parallel(step, mesh, streamed=True)
    streamed = [
        jax.device_get(run(fresh(), None, batch, steps=STEPS)[1])
        for batch in stream.batches(draw, 0, 2 * STEPS, STEPS, mesh)
    ]
    return resident, streamed


def main(directory):
    runner.connect("auto")
    assert jax.device_count() == DEVICES
    mesh = runner.make_mesh()
    found = {
        "resident": resident(mesh, directory), "streamed": streamed(mesh), "frames": frames(mesh),
    }
    # The flag of one process reaches all; process 0 is the one that writes.
    assert runner.on_any_process(jax.process_index() == jax.process_count() - 1)
    assert not runner.on_any_process(False)
    assert runner.all_or_none(lambda: 3) == 3
    runner.require_equal("the same", "text")
    if runner.is_main():
        leaves = jax.tree_util.tree_leaves_with_path(found)
        numbers = {
            jax.tree_util.keystr(path): np.asarray(x, np.float64).ravel().tolist()
            for path, x in leaves
        }
        written = Path(f"{directory}.json")  # too much for a pipe that is read at the end
        written.write_text(json.dumps(numbers))
        print(json.dumps(str(written)))


if __name__ == "__main__":
    main(sys.argv[1])
