"""The benchmarks run, count right and write what others read; nothing is timed here."""

import functools
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import convolution, flops, hlo, parts, step_time
from benchmarks.train_steps import train_steps
from configs.dmc import get_config
from lawm_jax.envs.dmc import task_spec
from lawm_jax.lawm.methods import resolve
from lawm_jax.runner import make_mesh

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Runs step_time with arguments; returns what it wrote, rows by name."""

    def run(*arguments):
        target = tmp_path / "rows.json"
        monkeypatch.setattr(step_time, "REPETITIONS", 1)
        monkeypatch.setattr(flops, "matmul_rate", functools.partial(flops.matmul_rate, size=64))
        monkeypatch.setattr(sys, "argv", ["step_time", f"--json={target}", *arguments])
        step_time.main()
        written = json.loads(target.read_text())
        assert written["command"] == " ".join(["python -m benchmarks.step_time", *arguments])
        return {row["step"]: row for row in written["rows"]}

    return run


def test_step_time_writes_its_rows(measured, capsys):
    rows = measured(
        "--config=configs/dmc.py:walker_walk,tiny", "--config.run.steps_per_call=1", "--plain",
        "--seeds=2",
    )  # fmt: skip
    assert list(rows) == [
        "world_model", "actor_critic", "world_model, 2 seeds", "actor_critic, 2 seeds", "td3_bc",
        "td3_bc, one step a dispatch", "world_model, plain",
    ]  # fmt: skip
    assert all(row["steps_per_second"] > 0 for row in rows.values())
    assert rows["world_model"]["host_overhead"] < 1
    one, two = (rows[name]["useful_gflops_per_step"] for name in list(rows)[::2][:2])
    assert one == two  # of a seed
    assert "| world_model |" in capsys.readouterr().out


def test_step_time_of_lapo(measured):
    rows = measured("--config=configs/procgen.py:miner,tiny", "--config.run.steps_per_call=2")
    assert list(rows) == [
        "lapo_stage1", "lapo_stage2", "lapo_decoder", "ppo_update", "ppo_update, frozen trunk",
        "lapo_decoder, one step a dispatch",
    ]
    assert all(row["useful_gflops_per_step"] > 0 for row in rows.values())
    # 8 environments of 16 steps; 3 epochs of 2 minibatches each
    assert rows["ppo_update"]["windows_per_second"] == pytest.approx(
        8 * 16 / 6 * rows["ppo_update"]["steps_per_second"]
    )


def test_host_overhead_is_the_wait_for_python(monkeypatch):
    seconds = 0.0
    monkeypatch.setattr(step_time, "time", types.SimpleNamespace(perf_counter=lambda: seconds))

    class Metric:
        """It takes a second to fetch, with the device idle."""

        def __array__(self, *args, **kwargs):
            nonlocal seconds
            seconds += 1.0
            return np.zeros(1)

    def call(state):
        nonlocal seconds
        seconds += 3.0
        return state, {"loss": Metric()}

    assert step_time.host_overhead(call, jnp.zeros(()), {"loss": Metric()}) == 0.25
    free = lambda state: (call(state)[0], {"loss": np.zeros(1)})
    assert step_time.host_overhead(free, jnp.zeros(()), {"loss": np.zeros(1)}) == 0.0


def test_operations_of_matmuls_in_loops_are_counted_once_a_trip():
    def f(x, w):
        y, _ = jax.lax.scan(lambda y, _: (jnp.tanh(y @ w), None), x, length=7)
        return jnp.sum(y**2)

    x, w = jnp.ones((4, 8)), jnp.ones((8, 8))
    once = 2 * 4 * 8 * 8
    assert flops.count(f, x, w) == 7 * once
    # Its gradient: two more matmuls a step, for w and for y; the first y needs none, but is there.
    assert flops.count(jax.grad(f, argnums=1), x, w) == 3 * 7 * once
    batched = jax.vmap(jax.jit(f), in_axes=(0, None))
    assert flops.count(batched, jnp.ones((5, 4, 8)), w) == 5 * 7 * once


def test_operations_of_convolutions():
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16))
    convolve = functools.partial(
        jax.lax.conv_general_dilated, window_strides=(2, 2), padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    forward = 2 * (2 * 4 * 4 * 16) * (3 * 3 * 3)
    assert flops.count(convolve, x, kernel) == forward
    gradient = jax.grad(lambda x: convolve(x, kernel).sum())
    assert flops.count(gradient, x) in (forward, 2 * forward)  # with or without the forward pass


def test_a_loop_of_unknown_length_is_refused():
    loop = lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)
    with pytest.raises(ValueError, match="how often it runs is unknown"):
        flops.count(loop, jnp.ones((2, 2)))


MODULE = """HloModule m

%fused (p0: f32[100,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[100,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %slice = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={1,8}
}

%body (s: (s32[], f32[100,8], f32[1,8])) -> (s32[], f32[100,8], f32[1,8]) {
  %s = (s32[], f32[100,8], f32[1,8]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %data = f32[100,8]{1,0} get-tuple-element(%s), index=1
  %row = f32[1,8]{1,0} fusion(%data, %i), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"10"}
  %sum = f32[1,8]{1,0:T(8)S(1)} all-reduce(%row), replica_groups={{0,1}}, to_apply=%add
  ROOT %t = (s32[], f32[100,8], f32[1,8]) tuple(%i, %data, %sum)
}

%cond (s: (s32[], f32[100,8], f32[1,8])) -> pred[] {
  %s = (s32[], f32[100,8], f32[1,8]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(6)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: (s32[], f32[100,8], f32[1,8])) -> (s32[], f32[100,8], f32[1,8]) {
  %x = (s32[], f32[100,8], f32[1,8]) parameter(0)
  ROOT %loop = (s32[], f32[100,8], f32[1,8]) while(%x), condition=%cond, body=%body
}
"""  # noqa: E501


def module(*lines):
    return "\n".join(["ENTRY %main (x: f32[1000]) -> f32[1000] {", *lines, "}"])


def test_memory_traffic_of_what_runs_beside_and_in_place():
    copied = module(
        "  %x = f32[1000]{0} parameter(0)",
        "  %s = (f32[1000]{0:S(1)}, f32[1000]{0}, u32[]) copy-start(%x)",
        "  %d = f32[1000]{0:S(1)} copy-done(%s)",
        "  ROOT %n = f32[1000]{0} negate(%d)",
    )
    assert hlo.memory_traffic(copied) == 4000 + 4000  # read once, written once
    updated = module(
        "  %x = f32[1000]{0} parameter(0)",
        "  %u = f32[10]{0} constant({...})",
        "  %i = s32[] constant(3)",
        "  ROOT %n = f32[1000]{0} dynamic-update-slice(%x, %u, %i)",
    )
    assert hlo.memory_traffic(updated) == 40 + 4 + 40  # update and index read, the part written


def test_compiled_loops_count_once_a_trip_and_slices_what_they_take():
    assert hlo.collectives(MODULE) == [hlo.Collective("all-reduce", count=6, bytes=6 * 32)]
    assert hlo.cycles(MODULE) == 60
    # A trip: the fusion reads a row and an index and writes a row; the all-reduce reads the row and
    # keeps its result on the chip; the condition reads two integers and writes a truth value.
    assert hlo.memory_traffic(MODULE) == 6 * ((32 + 4 + 32) + 32 + (4 + 4 + 1))
    trips = 'backend_config={"known_trip_count":{"n":"2"}}'
    noted = MODULE.replace("body=%body", f"body=%body, {trips}")
    assert hlo.cycles(noted) == 20
    with pytest.raises(ValueError, match="a loop of unknown length: loop"):
        hlo.cycles(MODULE.replace("direction=LT", "direction=NE"))


def test_formulations_of_a_convolution_agree():
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 7))
    expected, gradients = jax.vjp(convolution.xla, x, kernel)
    seed = jnp.cos(expected)
    for formulation in convolution.FORMULATIONS[1:]:
        found, theirs = jax.vjp(formulation, x, kernel)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        for a, b in zip(theirs(seed), gradients(seed), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_parts_of_a_step_make_up_its_operations():
    config = get_config("walker_walk,tiny")
    spec = task_spec(config.task)
    program = resolve(config, spec.observation_size, spec.action_size)
    step = train_steps(config, make_mesh(jax.devices()[:1]))[0]
    whole = flops.count(
        lambda *args: step.step(*args, steps=1), step.state, step.shared, step.sharded
    )
    counts = {
        name: flops.count(function, *args)
        for name, (function, args) in parts.parts(program, config).items()
    }
    # Noise and update multiply nothing; the gradient is all that the step multiplies.
    assert counts["loss and gradient"] == whole
    assert counts["windows and noise"] == counts["update"] == 0
    assert 2 * counts["loss"] < whole < 4 * counts["loss"]
    recurrence = [count for name, count in counts.items() if "recurrence" in name]
    assert 0 < recurrence[0] < counts["loss"] and recurrence[0] < recurrence[1] < whole
    row = parts.measure("update", jnp.sin, (jnp.ones(3),), matmul_rate=1.0)
    assert row["milliseconds"] > 0 and row["useful_gflops"] == 0
