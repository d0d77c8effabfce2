"""Run by test_scaling.py with two forced host devices: what scaling finds in a known program.

Prints the rows of benchmarks.scaling, JSON; with the argument "forgetful" those of real steps, in
which `lax.pmean` does nothing.
"""

import json
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import scaling
from benchmarks.control_steps import td3_bc_step
from benchmarks.train_step import TrainStep
from benchmarks.train_steps import of_lapo, train_steps
from configs import dmc, procgen
from lawm_jax import runner

ROUNDS, SHAPE = 4, (3, 5)
# The quick ones to compile: their rows differ by windows of their own, and by noise alone.
FORGETFUL = ("lapo_stage2", "td3_bc")


def step(state, shared, data):
    """ROUNDS all-reduces of SHAPE floats, one after the other, and one of the loss."""

    def circulate(x, _):
        mine = x * (1.0 + jax.lax.axis_index(runner.AXIS))  # its sum cannot be known beforehand
        return jnp.sin(jax.lax.psum(mine, runner.AXIS)), None

    state, _ = jax.lax.scan(circulate, state, length=ROUNDS)
    # the state in it keeps the compiler from taking the mean once for all steps
    return state, {"loss": jax.lax.pmean(jnp.sum(data) + state.sum(), runner.AXIS)}


def small_steps(config, mesh, one_row):
    assert one_row
    state = runner.replicate(np.ones(SHAPE, np.float32), mesh)
    data = runner.shard(np.arange(8, dtype=np.float32), mesh)
    mapped = runner.data_parallel(step, mesh)
    return [TrainStep("small", mapped, state, None, data, windows=8, steps_per_call=1)]


def forgetful_steps(config, mesh, one_row):
    if not of_lapo(config):
        return [td3_bc_step(config, mesh, one_row)]
    return [x for x in train_steps(config, mesh, one_row=one_row) if x.name in FORGETFUL]


def main():
    configs = [dmc.get_config("walker_walk,tiny")]
    forgetful = "forgetful" in sys.argv
    if forgetful:
        configs.insert(0, procgen.get_config("miner,tiny"))
    with (
        mock.patch.object(scaling, "train_steps", forgetful_steps if forgetful else small_steps),
        mock.patch.object(jax.lax, "pmean", (lambda x, axis: x) if forgetful else jax.lax.pmean),
    ):
        print(json.dumps([row for config in configs for row in scaling.measure(config)]))


if __name__ == "__main__":
    main()
