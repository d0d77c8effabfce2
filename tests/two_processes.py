"""Run by test_runner.py, alone or twice as two processes of one run; four devices in all.

Trains two steps, saves, restores, and prints what process 0 has as JSON.
"""

import json
import sys

import eight_devices
import jax
import numpy as np

from lawm_jax import runner
from lawm_jax.checkpoint import Checkpoints, state_digest

DEVICES = 4


def main(directory):
    runner.connect("auto")
    assert jax.device_count() == DEVICES
    mesh = runner.make_mesh()
    step, fresh, data = eight_devices.make_training(DEVICES)
    fresh = jax.device_get(fresh)  # a copy: the train state is donated
    run = runner.data_parallel(step, mesh)
    state = runner.replicate(fresh, mesh)
    state, metrics = run(state, None, runner.shard(data, mesh), steps=2)
    checkpoints = Checkpoints(directory)
    checkpoints.save(2, state, {})
    restored = checkpoints.restore(runner.replicate(fresh, mesh)).state
    checkpoints.close()
    assert state_digest(restored) == state_digest(state)
    assert state_digest(runner.local(state)) == state_digest(state)
    # The flag of one process reaches all; process 0 is the one that writes.
    assert runner.on_any_process(jax.process_index() == jax.process_count() - 1)
    assert not runner.on_any_process(False)
    assert runner.all_or_none(lambda: 3) == 3
    runner.require_equal("the same", "text")
    if runner.is_main():
        leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves((state.params, metrics))]
        print(json.dumps([[float(x.sum()), float(np.abs(x).max())] for x in leaves]))


if __name__ == "__main__":
    main(sys.argv[1])
