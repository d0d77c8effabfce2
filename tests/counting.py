"""An experiment that counts to 12, trained, saved and logged as any other phase."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import launch, outcome
from experiments.training import Session
from lawm_jax import runner
from lawm_jax.errors import InputError

CONFIG = """
import ml_collections

def get_config():
    schedule = {"steps_per_call": 2, "checkpoint_every": 4, "evaluate_every": 2}
    return ml_collections.ConfigDict({"seed": 0, "task": "count", "run": schedule}).lock()
"""


class Counter(NamedTuple):
    step: jax.Array
    value: jax.Array


def count(run, at=None, event=None):
    """Counts; `event(run)` happens at the evaluation at that step."""
    if run.config.task == "unknown":
        raise InputError("task 'unknown' is not known")
    mesh = runner.make_mesh()
    state = {"count": runner.replicate(Counter(jnp.int32(0), jnp.float32(1)), mesh)}
    session = Session(run, state, "fingerprint")

    def step(state, shared, local):
        after = Counter(state.step + 1, jnp.sin(state.value) + state.step)
        return after, {"value": after.value}

    def evaluate(state):
        if int(state.step) == at:
            event(run)
        return {"double": float(2 * state.value)}

    session.train(
        "count", runner.data_parallel(step, mesh), None,
        runner.shard(np.zeros((mesh.size, 1)), mesh), 12, evaluate, (),
    )
    session.close()
    outcome.conclude(run, lambda: outcome.finish(run, session, {}), lambda: None)


if __name__ == "__main__":
    launch.run(count)
