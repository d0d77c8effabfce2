"""Compile time, speed and arithmetic rate of the train steps, on random data of a config's sizes.

    python -m benchmarks.step_time --config=configs/dmc.py:cheetah_run --json=FILE

Runs every step on all devices as the main job does: sampled on the device, many steps a dispatch.
`--plain` adds the world-model step as one would first write it: the equations in one loop
(benchmarks/plain.py), numpy batches, one dispatch a step, metrics fetched every step. A figure is
the fastest of a few repetitions; measure on an otherwise idle machine.

`--seeds=4` adds the steps of four seeds side by side; their figures are those of one seed's step.

Useful operations are counted from the jaxpr (benchmarks/flops.py), those of td3_bc's delayed actor
at every step, which makes its count an upper bound; the rate's share is of large matmuls in the
model's dtype, measured in the same run. Host overhead is the time that the device waits for Python
in the main job's loop (dispatch, then fetch, check and log the last call's metrics), against the
same calls queued without a look at their results.
"""

import argparse
import functools
import json
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from benchmarks import flops, plain
from benchmarks.control_steps import EPISODE_STEPS, random_data
from benchmarks.train_step import TrainStep
from benchmarks.train_steps import alone, of_lapo, train_steps
from experiments import command_line
from lawm_jax import runner
from lawm_jax.data.windows import TrajectoryArrays
from lawm_jax.envs.dmc import task_spec
from lawm_jax.errors import InputError
from lawm_jax.lawm import learner
from lawm_jax.lawm.elbo import draw_noise
from lawm_jax.lawm.methods import resolve
from lawm_jax.metrics import MetricLogger, check_finite

REPETITIONS = 5
SINGLE = "one step a dispatch"
CALLS = 4  # dispatches in a row, behind host overhead
Row = dict[str, float | str]


def measure(train: TrainStep, steps: int, matmul_rate: float) -> Row:
    """Compiles `steps` scanned steps, runs them a few times and returns a row of the table.

    Convolutions on a CPU are dispatched step by step, as `runner.data_parallel` does it.
    """
    args = (train.state, train.shared, train.sharded)
    operations = flops.count(lambda *args: train.step(*args, steps=1), *args)
    row, begin = {}, time.perf_counter()
    if train.dispatched:
        run = functools.partial(train.dispatched, steps=steps)
    else:
        run = train.step.lower(*args, steps=steps).compile()
        row["compile_seconds"] = time.perf_counter() - begin
        memory = run.memory_analysis()
        row["memory_mb"] = (
            memory.argument_size_in_bytes + memory.output_size_in_bytes
            + memory.temp_size_in_bytes - memory.alias_size_in_bytes
        ) / 1e6  # fmt: skip
    state, calls = train.state, []
    for _ in range(REPETITIONS + 1):  # the first also fills caches, and compiles what is dispatched
        begin = time.perf_counter()
        state, metrics = jax.block_until_ready(run(state, *args[1:]))
        calls.append(time.perf_counter() - begin)
    if train.dispatched:
        row["compile_seconds"] = calls[0] - min(calls[1:])
    seconds = min(calls[1:]) / steps
    call = lambda state: run(state, *args[1:])
    return row | {
        "step": train.name,
        "steps_per_second": train.seeds / seconds,
        "milliseconds_per_step": 1000 * seconds / train.seeds,
        "windows_per_second": train.windows / seconds,
        "steps_per_call": steps,
        "useful_gflops_per_step": operations / train.seeds / 1e9,
        "share_of_matmul_rate": operations / seconds / matmul_rate,
        "host_overhead": host_overhead(call, state, metrics),
    }


def host_overhead(call: Callable[[Any], tuple[Any, Any]], state: Any, metrics: Any) -> float:
    """Share of the main job's loop in which the device waits for Python; noise may make it < 0.

    Both loops are the fastest of a few.
    """

    def queue(state: Any, metrics: Any) -> tuple[Any, Any]:
        for _ in range(CALLS):
            state, metrics = call(state)
        return state, metrics

    def loop(state: Any, metrics: Any) -> tuple[Any, Any]:
        for step in range(CALLS):  # as experiments.training.Session does
            last = metrics
            state, metrics = call(state)
            last = jax.device_get(last)
            check_finite("benchmark", last, step)
            logger.log(step, "benchmark", {name: float(np.mean(x)) for name, x in last.items()})
        return state, metrics

    fastest = {queue: math.inf, loop: math.inf}
    with tempfile.TemporaryDirectory() as directory:
        logger = MetricLogger(epath.Path(directory), None)
        for _ in range(REPETITIONS):
            for run in fastest:
                begin = time.perf_counter()
                state, metrics = run(state, metrics)
                jax.block_until_ready(state)
                fastest[run] = min(fastest[run], time.perf_counter() - begin)
        logger.close()
    return 1 - fastest[queue] / fastest[loop]


def measure_plain(config: Any, steps: int = 20) -> Row:
    """The world-model step in its plain form, on one device."""
    spec = task_spec(config.task)
    program = resolve(config, spec.observation_size, spec.action_size)
    model, sizes = program.model, program.learner
    labelled = max(1, round(config.data.label_fraction * config.data.trajectories))
    data = random_data(program, config.data.trajectories, labelled)
    optimiser = learner.make_optimiser(sizes)
    state = learner.init(model, optimiser, learner.fit_normaliser(data), 0)
    rng = np.random.default_rng(0)

    def draw(arrays: TrajectoryArrays, rows: int) -> Any:
        which = rng.integers(len(arrays.length), size=rows)
        start = rng.integers(EPISODE_STEPS + 1 - sizes.window, size=rows)
        cut = lambda x, size: np.stack(
            [x[n, t : t + size] for n, t in zip(which, start, strict=True)], 1
        )
        return learner.Windows(
            cut(arrays.observation, sizes.window),
            None if arrays.action is None else cut(arrays.action, sizes.window - 1),
            cut(arrays.reward, sizes.window - 1),
        )

    @jax.jit
    def step(params: Any, opt_state: Any, key: jax.Array, labelled: Any, unlabelled: Any) -> tuple:
        rows = sizes.labelled_rows + sizes.unlabelled_rows
        noise = draw_noise(model, jax.random.split(key, rows), sizes.window, sizes.labelled_rows)
        loss = lambda params: plain.loss(model, program.elbo, params, labelled, unlabelled, noise)
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimiser.update(grads, opt_state, params)
        return jax.tree.map(jax.numpy.add, params, updates), opt_state, value

    params, opt_state, key, seconds = state.params, state.opt_state, jax.random.key(0), []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        unlabelled = draw(data.unlabelled, sizes.unlabelled_rows) if data.unlabelled else None
        key, noise_key = jax.random.split(key)
        params, opt_state, value = step(
            params, opt_state, noise_key, draw(data.labelled, sizes.labelled_rows), unlabelled
        )
        float(value)
        seconds.append(time.perf_counter() - begin)
    fastest = min(seconds[1:])
    return {
        "step": "world_model, plain",
        "steps_per_second": 1 / fastest,
        "milliseconds_per_step": 1000 * fastest,
        "windows_per_second": (sizes.labelled_rows + sizes.unlabelled_rows) / fastest,
        "compile_seconds": seconds[0],
        "steps_per_call": 1,
    }


COLUMNS = {  # of the printed table: row key -> (heading, format)
    "steps_per_second": ("steps/s", ".1f"),
    "milliseconds_per_step": ("ms a step", ".1f"),
    "windows_per_second": ("windows/s", ".0f"),
    "compile_seconds": ("compilation, s", ".1f"),
    "useful_gflops_per_step": ("useful GFLOP", ".3f"),
    "share_of_matmul_rate": ("of matmul rate", ".0%"),
    "host_overhead": ("host overhead", ".1%"),
    "memory_mb": ("memory, MB", ".0f"),
}


def table(device: str, rows: list[Row], columns: dict[str, tuple[str, str]]) -> str:
    """Rows as Markdown; a dash where a row lacks a column."""
    lines = [
        f"| step ({device}) | " + " | ".join(heading for heading, _ in columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for row in rows:
        cells = (format(row[key], f) if key in row else "-" for key, (_, f) in columns.items())
        lines.append(f"| {row['step']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_json(path: str, device: str, rows: list[Row], **more: Any) -> None:
    """Writes what a benchmark measured, with the command that did it."""
    arguments = [x for x in sys.argv[1:] if not x.startswith("--json")]
    command = shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *arguments])
    written = {"command": command, "device": device, **more, "rows": rows}
    Path(path).write_text(json.dumps(written, indent=2) + "\n")


def main() -> None:
    """Reads the command line, measures, prints a table and writes the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file to write {device, rows} to")
    parser.add_argument("--plain", action="store_true", help="measure the plain form as well")
    parser.add_argument(
        "--seeds", type=int, default=1, help="measure world model and agent of so many as well"
    )
    arguments, rest = parser.parse_known_args()
    try:
        config = command_line.parse([sys.argv[0], *rest]).config
        dtype = config.dtype if of_lapo(config) else config.world_model.dtype
        mesh, rate = runner.make_mesh(), flops.matmul_rate(jax.numpy.dtype(dtype))
        steps = config.run.steps_per_call
        measured = [
            measure(train, steps, rate) for train in train_steps(config, mesh, arguments.seeds)
        ]
        single = alone(config, mesh)
        measured.append(measure(single._replace(name=f"{single.name}, {SINGLE}"), 1, rate))
        if arguments.plain and not of_lapo(config):
            measured.append(measure_plain(config))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(table(device, measured, COLUMNS))
    print(f"matmul rate of one device, {dtype}: {rate / 1e9:.0f} GFLOP/s")
    if arguments.json:
        write_json(arguments.json, device, measured, matmul_gflops=rate / 1e9)


if __name__ == "__main__":
    main()
