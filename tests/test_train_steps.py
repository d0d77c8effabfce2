"""Every train step that the benchmarks have: compiled once, old states freed, bfloat16 close.

The steps are those that the benchmarks measure and compile for TPUs, in the tiny presets' sizes.
"""

import jax
import numpy as np
import pytest
from jax import monitoring

from benchmarks.train_steps import of_lapo, train_steps
from configs import dmc, procgen
from experiments.identity import flatten
from lawm_jax import runner

CONFIGS = (dmc.get_config("walker_walk,tiny"), procgen.get_config("miner,tiny"))
STEPS = (
    "world_model", "actor_critic", "td3_bc", "inverse_dynamics",
    "lapo_stage1", "lapo_stage2", "lapo_cloning", "lapo_supervised_idm", "lapo_distillation",
    "lapo_decoder", "ppo_update", "ppo_update, frozen trunk",
)
COMPILED = "/jax/core/compile/backend_compile_duration"


def steps_of(changes=()):
    """Name -> train step, of both experiments; changes that one does not know are the other's."""
    found = {}
    for config in CONFIGS:
        config = config.copy_and_resolve_references().unlock()
        known = flatten(config.to_dict())
        config.update_from_flattened_dict({k: x for k, x in dict(changes).items() if k in known})
        for train in train_steps(config.lock(), runner.make_mesh(jax.devices()[:1])):
            found[train.name] = train
    return found


@pytest.fixture(scope="module")
def steps():
    """Compiled once for all tests."""
    return steps_of()


def call(train, state):
    """One step, dispatched as the job does it."""
    return (train.dispatched or train.step)(state, train.shared, train.sharded, steps=1)


def copy(tree):
    return jax.tree.map(lambda x: x.copy(), tree)


def test_both_experiments_are_there(steps):
    assert set(steps) == set(STEPS)
    assert [of_lapo(config) for config in CONFIGS] == [False, True]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_compiled_once_and_its_old_state_is_freed(steps, name):
    train = steps[name]
    given = copy(train.state)
    state, _ = call(train, given)
    assert all(x.is_deleted() for x in jax.tree.leaves(given))
    compiled = []
    listener = lambda event, seconds, **_: compiled.append(event) if event == COMPILED else None
    monitoring.register_event_duration_secs_listener(listener)
    try:
        for _ in range(2):
            state, metrics = call(train, state)
        assert not compiled
        jax.jit(lambda x: x + np.pi)(1.0)
        assert compiled  # the listener hears
    finally:
        monitoring.unregister_event_duration_listener(listener)
    assert np.isfinite(jax.tree.leaves(jax.device_get(metrics))).all()
    assert runner.step_of(state) == runner.step_of(train.state) + 3


def test_bfloat16_changes_losses_by_less_than_a_fiftieth():
    """Where a step has the option: first losses, from equal parameters and draws."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        found = steps_of({"world_model.dtype": dtype, "dtype": dtype})
        for name in ("world_model", "lapo_stage1", "lapo_stage2", "ppo_update"):
            _, metrics = call(found[name], found[name].state)
            losses.setdefault(name, []).append(float(metrics["loss"][0]))
    for name, (full, half) in losses.items():
        assert 0 < abs(half - full) < 0.02 * abs(full), name
