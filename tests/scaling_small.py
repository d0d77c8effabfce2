"""Run by test_benchmarks.py with two forced host devices: what scaling finds in a known program.

Prints the rows of benchmarks.scaling, JSON.
"""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import scaling, train_steps
from benchmarks.train_step import TrainStep
from lawm_jax import runner

ROUNDS, SHAPE = 4, (3, 5)


def step(state, shared, data):
    """ROUNDS all-reduces of SHAPE floats, one after the other, and one of the loss."""

    def circulate(x, _):
        mine = x * (1.0 + jax.lax.axis_index(runner.AXIS))  # its sum cannot be known beforehand
        return jnp.sin(jax.lax.psum(mine, runner.AXIS)), None

    state, _ = jax.lax.scan(circulate, state, length=ROUNDS)
    return state, {"loss": jax.lax.pmean(jnp.sum(data), runner.AXIS) + state.sum()}


def small_steps(config, mesh, one_window):
    assert one_window
    state = runner.replicate(np.ones(SHAPE, np.float32), mesh)
    data = runner.shard(np.arange(8, dtype=np.float32), mesh)
    return [TrainStep("small", runner.data_parallel(step, mesh), state, None, data, windows=8)]


if __name__ == "__main__":
    with (
        mock.patch.object(train_steps, "train_steps", small_steps),
        mock.patch.object(train_steps, "fill", lambda config, count: config),
    ):
        print(json.dumps(scaling.measure(None)))
