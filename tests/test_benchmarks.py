"""The benchmarks run, count right and write what others read; nothing is timed here.

step_time and scaling have files of their own.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import convolution, data, flops, hlo, parts
from benchmarks.train_step import TrainStep
from benchmarks.train_steps import train_steps
from configs.dmc import get_config
from configs.procgen import get_config as get_game
from lawm_jax.envs.dmc import task_spec
from lawm_jax.lawm.methods import resolve
from lawm_jax.runner import make_mesh


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


def test_operations_of_loops_in_loops_and_of_the_larger_branch():
    w = jnp.ones((8, 8))
    inner = lambda y, _: (jnp.tanh(y @ w), None)
    outer = lambda y, _: (jax.lax.scan(inner, y, length=3)[0], None)
    once = 2 * 4 * 8 * 8
    nested = lambda y: jax.lax.scan(outer, y, length=5)[0]
    assert flops.count(nested, jnp.ones((4, 8))) == 5 * 3 * once
    branch = lambda y: jax.lax.cond(y.sum() > 0, lambda y: y @ w @ w, lambda y: y @ w, y)
    assert flops.count(branch, jnp.ones((4, 8))) == 2 * once


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
    assert step.with_steps(1).operations() == whole
    row = parts.measure("update", jnp.sin, (jnp.ones(3),), matmul_rate=1.0)
    assert row["milliseconds"] > 0 and row["useful_gflops"] == 0


# ---- data


@pytest.fixture
def fed(tmp_path, monkeypatch, capsys):
    """Runs the benchmark of data, made small, on a config; returns its rows by name."""

    def run(config):
        for name, size in (
            ("SAMPLES", 2), ("ENVIRONMENTS", 2), ("ENVIRONMENT_STEPS", 5), ("FRAMES", 200),
        ):
            monkeypatch.setattr(data, name, size)
        monkeypatch.setattr(data, "fastest", functools.partial(data.fastest, repetitions=1))
        target = tmp_path / "rows.json"
        monkeypatch.setattr(sys, "argv", ["data", f"--json={target}", f"--config={config}"])
        data.main()
        rows = {row["step"]: row for row in json.loads(target.read_text())["rows"]}
        assert all(row["steps_per_second"] > 0 for row in rows.values())
        printed = capsys.readouterr().out
        assert all(f"| {name} |" in printed for name in rows)
        return rows

    return run


def test_speed_of_the_data_of_a_control_task(fed):
    rows = fed("configs/dmc.py:walker_walk,tiny")
    assert list(rows) == ["write_shards", "read_shards", "sample_windows", "step_environments"]
    model = get_config("walker_walk,tiny").world_model
    drawn = rows["sample_windows"]
    batch = model.labelled_rows + model.unlabelled_rows
    assert drawn["windows_per_second"] == pytest.approx(batch * drawn["steps_per_second"])
    assert drawn["milliseconds_per_step"] == pytest.approx(1000 / drawn["steps_per_second"])
    spec = task_spec("walker_walk")
    floats = 501 * spec.observation_size + 500 * (spec.action_size + 1)  # and a length, of each
    for name in ("write_shards", "read_shards"):
        one = rows[name]
        assert one["steps_per_second"] == pytest.approx(500 * one["trajectories_per_second"])
        assert one["mb_per_second"] == pytest.approx(
            (4 * floats + 4) / 1e6 * one["trajectories_per_second"]
        )


def test_speed_of_the_data_of_a_game(fed):
    rows = fed("configs/procgen.py:miner,tiny")
    assert list(rows) == [
        "step_environments", "act", "record_expert", "write_frames", "read_frames",
        "stream_windows",
    ]
    sizes = {rows[name]["bytes_a_frame"] for name in ("write_frames", "read_frames")}
    assert len(sizes) == 1 and 0 < sizes.pop() < 64 * 64 * 3  # compressed
    drawn, batch = rows["stream_windows"], get_game("miner,tiny").latent_action.rows
    assert drawn["windows_per_second"] == pytest.approx(batch * drawn["steps_per_second"])


# ---- tpu_compile


@pytest.fixture
def tpu_compile(monkeypatch):
    """The module, which sets variables for its own process where it is imported."""
    for name in ("JAX_PLATFORMS", "TPU_SKIP_MDS_QUERY", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    from benchmarks import tpu_compile

    return tpu_compile


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is there")
def test_without_the_tpu_compiler_one_line_says_how_to_get_it():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu_compile", "--topology=v5e:1x1",
         "--config=configs/dmc.py:walker_walk,tiny"],
        cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: topology 'v5e:1x1' cannot be described (")
    assert line.endswith("); the TPU compiler comes with pip install -e '.[tpu]'")


def test_an_unknown_chip_is_one_line(tpu_compile, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [
        "tpu_compile", "--topology=v9:1x1", "--config=configs/dmc.py:walker_walk,tiny",
    ])  # fmt: skip
    with pytest.raises(SystemExit) as exit_:
        tpu_compile.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err == (
        "error: topology 'v9:1x1': the chip is one of v4, v5e, v5p, v6e\n"
    )


def test_figures_of_a_compiled_step(tpu_compile, monkeypatch):
    """Dispatches of 5 steps, each a loop of 7 matmuls, compiled for this machine.

    What a dispatch does once, a large sum before the loop, is divided by its steps.
    """
    steps, trips, size, large = 5, 7, 16, 10_000

    def step(state, factor):
        state, _ = jax.lax.scan(lambda y, _: (jnp.tanh(y @ factor), None), state, length=trips)
        return state, {"loss": state.sum()}

    def run(state, shared, local, steps):
        factor = local[0] * jnp.sum(jnp.sin(local[1]))
        return jax.lax.scan(lambda state, _: step(state, factor), state, length=steps)

    def small(config, mesh, seeds, abstract):
        assert abstract
        square = jax.ShapeDtypeStruct((size, size), jnp.float32)
        local = (square, jax.ShapeDtypeStruct((large,), jnp.float32))
        run_ = jax.jit(run, static_argnames="steps")
        return [TrainStep("small", run_, square, None, local, windows=1, steps_per_call=steps)]

    monkeypatch.setattr(tpu_compile, "devices", lambda topology: jax.devices()[:1])
    monkeypatch.setattr(tpu_compile, "train_steps", small)
    (row,) = tpu_compile.rows(get_config("walker_walk,tiny"), "v5e:1x1", 1)
    operations = trips * 2 * size**3
    assert row["step"] == "small, v5e:1x1" and row["chips"] == 1
    assert row["steps_per_call"] == steps
    assert row["useful_gflops_per_step"] == operations / 1e9
    assert row["collectives"] == 0 and row["collective_mb"] == 0
    assert row["memory_mb"] >= 4 * (3 * size**2 + large) / 1e6  # state, its successor, the data
    # Every trip reads both factors and writes the product, which takes longer than to multiply.
    traffic, loops = row["memory_traffic_mb"] * 1e6, trips * 3 * 4 * size**2
    assert traffic >= loops + 4 * large / steps
    assert traffic < 4 * loops + 4 * large  # not the large sum at every step
    chip = tpu_compile.CHIPS["v5e"]
    assert row["limit"] == "memory"  # the CPU's compiler estimates no cycles
    assert row["bound_microseconds"] == pytest.approx(1e6 * traffic / chip.memory_rate)


def test_what_a_ring_sends_and_where_frames_lie(tpu_compile):
    reduced, gathered = hlo.Collective("all-reduce", 1, 80), hlo.Collective("all-gather", 1, 8)
    assert tpu_compile._sent([reduced, gathered], 4) == (2 * 80 + 8) * 3 / 4
    assert tpu_compile._sent([reduced], 1) == 0
    config = get_game("miner,published")  # 2.5 million frames, 30.7 GB
    chip = tpu_compile.CHIPS["v5e"]
    placed = [tpu_compile.place_frames(config, chip, n).data.on_device for n in (1, 3, 4)]
    assert placed == [False, False, True]  # where a part takes less than half of 16 GB
