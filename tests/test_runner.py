"""Train steps on one and many devices, one and many a dispatch, and what they may read."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import eight_devices
import jax
import numpy as np
import pytest
import two_processes
from processes import output, start, start_pair
from small import make_elbo, make_model, make_trajectory

from lawm_jax import runner
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.windows import TrajectoryArrays, stack
from lawm_jax.errors import InputError
from lawm_jax.lawm import learner
from lawm_jax.lawm.learner import LearnerConfig, TrainingData

OPTIMISED = True  # what a program computes may not depend on how it is cut or dispatched

CONFIG = LearnerConfig(
    steps=10, labelled_rows=2, unlabelled_rows=3, window=4, learning_rate=1e-2,
    learning_rate_end=0.0, warmup_steps=0, weight_decay=1e-3, gradient_clip=100.0,
)


@pytest.fixture(scope="module")
def trajectories():
    return [make_trajectory(length, seed) for seed, length in enumerate((5, 8, 11, 6))]


@pytest.fixture(scope="module")
def train():
    """train(data, *counts): so many steps in each dispatch; (state, metrics of all steps).

    Where shapes and counts were there before, nothing is compiled again.
    """
    mesh = runner.make_mesh(jax.devices()[:1])
    model, optimiser = make_model(), learner.make_optimiser(CONFIG)
    step = learner.make_step(model, make_elbo(), CONFIG, optimiser, 1)
    run = runner.data_parallel(step, mesh)

    def train(data, *counts, seed=3):
        state = learner.init(model, optimiser, learner.fit_normaliser(data), seed)
        metrics = []
        for count in counts:
            state, part = run(state, None, data, steps=count)
            metrics.append(part)
        return jax.device_get((state, jax.tree.map(lambda *x: np.concatenate(x), *metrics)))

    return train


def make_data(trajectories):
    return TrainingData(
        stack(trajectories[:2], actions=True), stack(trajectories[2:], actions=False)
    )


def test_steps_of_one_dispatch_equal_steps_one_by_one(train, trajectories):
    """To the last bit: where a run is interrupted does not matter."""
    one, one_metrics = train(make_data(trajectories), 1, 1, 1)
    many, many_metrics = train(make_data(trajectories), 3)
    jax.tree.map(np.testing.assert_array_equal, one, many)
    jax.tree.map(np.testing.assert_array_equal, one_metrics, many_metrics)
    assert many.step == 3
    assert len(np.unique(many_metrics["loss"])) == 3  # every step draws windows of its own


def test_steps_that_convolve_are_the_same_however_they_are_dispatched():
    """On a CPU they are dispatched one by one, elsewhere scanned."""
    mesh = runner.make_mesh(jax.devices()[:1])

    def step(state, shared, data):
        state = 0.5 * state + jax.lax.pmean(data.mean() * shared, runner.AXIS)
        return state, {"state": state, "twice": 2.0 * state}

    def run(**how):
        run = runner.data_parallel(step, mesh, **how)
        start, data = runner.replicate(np.float32(1.0), mesh), np.arange(4.0, dtype=np.float32)
        return jax.device_get(run(start, np.float32(3.0), data, steps=3))

    (scanned, metrics), (stepped, same) = run(), run(convolves=True)
    np.testing.assert_allclose(scanned, stepped, rtol=1e-6)
    assert metrics["twice"].shape == same["twice"].shape == (3,)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), metrics, same)


@pytest.mark.usefixtures("quick_compilation_here")
def test_nothing_is_compiled_after_the_first_dispatch(trajectories):
    """The state that comes out has the shapes, types and placement of the one that went in."""
    mesh = runner.make_mesh(jax.devices()[:1])
    model, optimiser = make_model(), learner.make_optimiser(CONFIG)
    data = make_data(trajectories)
    fresh = learner.init(model, optimiser, learner.fit_normaliser(data), seed=3)
    state, data = runner.replicate(fresh, mesh), runner.shard(data, mesh)
    run = runner.data_parallel(learner.make_step(model, make_elbo(), CONFIG, optimiser, 1), mesh)
    for _ in range(3):
        given = state
        state, _ = run(given, None, data, steps=1)
        assert all(x.is_deleted() for x in jax.tree.leaves(given))  # donated: used once
    assert run._cache_size() == 1


@pytest.mark.usefixtures("quick_compilation_here")
def test_seeds_side_by_side_learn_as_each_alone(train, trajectories):
    mesh = runner.make_mesh(jax.devices()[:1])
    model, optimiser = make_model(), learner.make_optimiser(CONFIG)
    first = make_data(trajectories)
    second = jax.tree.map(lambda x: x[::-1], first)  # each seed has data of its own
    data = [first, second]
    step = learner.make_step(model, make_elbo(), CONFIG, optimiser, 1)
    states = [
        learner.init(model, optimiser, learner.fit_normaliser(its), seed)
        for seed, its in zip((3, 4), data, strict=True)
    ]
    expected = [train(its, 3, seed=seed) for seed, its in zip((3, 4), data, strict=True)]
    together = runner.data_parallel(step, mesh, many_seeds=True)
    stacked = runner.join_seeds(states)
    state, metrics = jax.device_get(together(stacked, None, runner.join_seeds(data, 1), steps=3))
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
    for i, (one, its_metrics) in enumerate(expected):
        jax.tree.map(lambda x, y, i=i: close(x[i], y), state, one)
        jax.tree.map(lambda x, y, i=i: close(x[:, i], y), metrics, its_metrics)
    assert expected[0][1]["loss"][0] != expected[1][1]["loss"][0]


def test_actions_of_unlabelled_trajectories_are_never_read(train, trajectories):
    """NaN in their place changes nothing, to the last bit."""
    poisoned = [
        Trajectory(t.observation, np.full_like(t.action, np.nan), t.reward)
        for t in trajectories[2:]
    ]
    clean = train(make_data(trajectories), 1)
    same = train(make_data(trajectories[:2] + poisoned), 1)
    jax.tree.map(np.testing.assert_array_equal, same, clean)
    assert np.isfinite(clean[1]["loss"]).all()
    changed = [dataclasses.replace(t, observation=t.observation * 2) for t in trajectories[2:]]
    other = train(make_data(trajectories[:2] + changed), 1)
    assert other[1]["kl_u_unlabelled"] != clean[1]["kl_u_unlabelled"]  # these it does read


def test_a_batch_that_devices_do_not_divide_is_refused():
    mesh = runner.make_mesh([jax.devices()[0]])
    assert runner.rows_per_device(12, mesh, "agent.start_rows") == 12
    three = type("Mesh", (), {"size": 3})()
    assert runner.rows_per_device(12, three, "agent.start_rows") == 4
    with pytest.raises(InputError) as error:
        runner.rows_per_device(8, three, "agent.start_rows")
    assert str(error.value) == "agent.start_rows is 8, which 3 devices do not divide evenly"


# ---- eight devices, in a process that has them


@pytest.fixture(scope="module")
def eight(shared_compilation):
    """What tests/eight_devices.py finds: name -> largest relative difference."""
    return output(start(eight_devices, devices=8, emitters=True))


def test_eight_devices_give_the_gradients_of_one(eight):
    assert eight["gradient"] < 1e-4
    assert eight["gradient, noise by device"] > 1e-2  # the comparison can fail


def test_eight_devices_learn_the_same_as_one(eight):
    assert eight["train step"] < 1e-4
    assert eight["agent step"] < 1e-4


def test_the_mapped_step_equals_pmap(eight):
    assert eight["pmap"] < 1e-6


@pytest.fixture(scope="module")
def alone_and_in_pair(tmp_path_factory, shared_compilation):
    """What tests/two_processes.py finds: on four devices of one process, on two of each of two."""
    place = tmp_path_factory.mktemp("processes")
    alone = start(two_processes, place / "alone", devices=4)
    pair = start_pair(two_processes, place / "pair", devices=2)
    expected = output(alone)
    _, err = pair[1].communicate(timeout=600)
    assert pair[1].returncode == 0, err
    return [json.loads(Path(name).read_text()) for name in (expected, output(pair[0]))]


@pytest.mark.parametrize("part", ["resident", "streamed", "frames"])
def test_two_processes_learn_the_same_as_one(alone_and_in_pair, part):
    """States with the optimiser's moments, metrics, and what the streams bring to each device."""
    expected, found = (
        {name: np.array(x) for name, x in one.items() if name.startswith(f"['{part}']")}
        for one in alone_and_in_pair
    )
    assert list(found) == list(expected) != []
    assert part == "frames" or any("opt_state" in name for name in found)
    differ = {name: eight_devices.difference(x, expected[name]) for name, x in found.items()}
    assert not {name: x for name, x in differ.items() if not x <= 1e-4}


def test_a_host_that_waits_in_vain_says_so():
    code = "from lawm_jax import runner; runner.connect('on', timeout_seconds=1)"
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: not all hosts of this run came within 1 s: start the same command on all of them, "
        "or pass --distributed=off"
    )


def test_wrong_descriptions_of_a_cluster_are_reported(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    assert not runner.connect("off")
    with pytest.raises(InputError, match="JAX_NUM_PROCESSES is 'two', not a number"):
        runner.connect("auto")
    with pytest.raises(InputError, match="choose auto, on or off"):
        runner.connect("yes")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost")
    with pytest.raises(InputError, match="is 'localhost', not HOST:PORT"):
        runner.connect("auto")


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_a_cluster_that_fails_does_not_become_a_run_of_one_host(monkeypatch, error):
    def initialize(**settings):
        raise error("the service is unavailable")

    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setattr(runner, "_on_tpu_vm", lambda: True)
    monkeypatch.setattr(runner.jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match="the service is unavailable"):
        runner.connect("auto")


def test_a_tpu_without_a_cluster_is_a_run_of_one_host(monkeypatch):
    def initialize(**settings):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setattr(runner, "_on_tpu_vm", lambda: True)
    monkeypatch.setattr(runner.jax.distributed, "initialize", initialize)
    assert not runner.connect("auto")


def test_the_normaliser_does_not_see_what_fills_up_devices():
    rng = np.random.default_rng(0)
    arrays = [
        TrajectoryArrays(
            rng.normal(size=(n, 5, 3)).astype(np.float32), None, np.zeros((n, 4)),
            np.full(n, 4, np.int32),
        )
        for n in (2, 3)
    ]
    repeat = lambda tree: jax.tree.map(lambda x: np.concatenate([x, x[:1]]), tree)
    expected = learner.fit_normaliser(learner.TrainingData(*arrays))
    filled = learner.TrainingData(*map(repeat, arrays))
    jax.tree.map(
        np.testing.assert_array_equal, learner.fit_normaliser(filled, (2, 3)), expected
    )
    assert np.any(learner.fit_normaliser(filled).mean != expected.mean)


def test_what_fails_on_one_process_fails_with_its_own_error():
    with pytest.raises(ZeroDivisionError):
        runner.all_or_none(lambda: 1 / 0)
    assert runner.all_or_none(lambda: 5) == 5
