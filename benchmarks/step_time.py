"""Compile time, speed and arithmetic rate of the train steps, on random data of a config's sizes.

    python -m benchmarks.step_time --config=configs/dmc.py:cheetah_run --json=FILE

Runs every step on all devices as its job does: sampled on the device, or streamed from batches that
are there already, as many steps a dispatch as the job's. `--plain` adds the world-model step as one
would first write it: the equations in one loop (benchmarks/plain.py), numpy batches, one dispatch a
step, metrics fetched every step. A figure is the fastest of a few repetitions; measure on an
otherwise idle machine.

`--seeds=4` adds the steps of four seeds side by side; their figures are those of one seed's step.

Useful operations are counted from the jaxpr (benchmarks/flops.py), those of td3_bc's delayed actor
and inverse_dynamics' validation at every step, which makes theirs an upper bound; the rate's share
is of large matmuls in the step's dtype, measured in the same run. Memory is a device's for one
dispatch, or for one step where each is a dispatch of its own.

Host overhead is the share of the main job's loop (dispatch, then fetch, check and log the last
call's metrics) that one long dispatch of the same steps does without. Where the job dispatches step
by step there is no such dispatch, and only the share of fetching and logging is told, against the
same calls without a look at their results: the time that the device waits between them stays
unknown.
"""

import functools
import math
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from benchmarks import flops, plain, report
from benchmarks.control_steps import EPISODE_STEPS, labelled_count, random_data
from benchmarks.report import Row
from benchmarks.train_step import TrainStep, memory_bytes
from benchmarks.train_steps import alone, of_lapo, train_steps
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
CALLS = 4  # dispatches in a row, behind the overheads
Call = Callable[[Any], tuple[Any, Any]]  # state -> (state, metrics)


def measure(train: TrainStep, matmul_rate: float) -> Row:
    """Compiles the steps of a dispatch, runs them a few times and returns a row of the table.

    Convolutions on a CPU are dispatched step by step, as `runner.data_parallel` does it.
    """
    inputs, steps, begin = (train.shared, train.sharded), train.steps_per_call, time.perf_counter()
    if train.dispatched:
        run = functools.partial(train.dispatched, steps=steps)
        row = {"memory_mb": memory_bytes(train.with_steps(1).compile()) / 1e6}
    else:
        run = train.compile()
        row = {"compile_seconds": time.perf_counter() - begin, "memory_mb": memory_bytes(run) / 1e6}
    state, calls = train.state, []
    for _ in range(REPETITIONS + 1):  # the first also fills caches, and compiles what is dispatched
        begin = time.perf_counter()
        state, metrics = jax.block_until_ready(run(state, *inputs))
        calls.append(time.perf_counter() - begin)
    if train.dispatched:
        row["compile_seconds"] = calls[0] - min(calls[1:])
    seconds, operations = min(calls[1:]) / steps, train.operations()
    call = lambda state: run(state, *inputs)
    if train.dispatched:
        row["logging_overhead"] = overhead(call, queued(call), state, metrics)
    else:
        row["host_overhead"] = overhead(call, one_dispatch(train), state, metrics)
    return row | {
        "step": train.name,
        "dtype": train.dtype,
        "steps_per_second": train.seeds / seconds,
        "milliseconds_per_step": 1000 * seconds / train.seeds,
        "windows_per_second": train.windows / seconds,
        "steps_per_call": steps,
        "useful_gflops_per_step": operations / train.seeds / 1e9,
        "share_of_matmul_rate": operations / seconds / matmul_rate,
    }


def one_dispatch(train: TrainStep) -> Call:
    """The steps of CALLS calls in one dispatch: the device's own time."""
    long = train.with_steps(CALLS * train.steps_per_call)
    run = long.compile()
    return lambda state: run(state, long.shared, long.sharded)


def queued(call: Call) -> Call:
    """CALLS calls one after the other, without a look at their results."""

    def queue(state: Any) -> tuple[Any, Any]:
        for _ in range(CALLS):
            state, metrics = call(state)
        return state, metrics

    return queue


def overhead(call: Call, bare: Call, state: Any, metrics: Any) -> float:
    """Share of the main job's loop that `bare` does without; noise may make it < 0.

    Both are the fastest of a few.

    Args:
      call: one dispatch.
      bare: the steps of CALLS dispatches.
      state: a train state, which is donated.
      metrics: of the dispatch before.
    """

    def loop(state: Any, metrics: Any) -> tuple[Any, Any]:
        for step in range(CALLS):  # as experiments.training.Session does
            last = metrics
            state, metrics = call(state)
            last = jax.device_get(last)
            check_finite("benchmark", last, step)
            logger.log(step, "benchmark", {name: float(np.mean(x)) for name, x in last.items()})
        return state, metrics

    without = lambda state, metrics: (bare(state)[0], metrics)
    fastest = {without: math.inf, loop: math.inf}
    with tempfile.TemporaryDirectory() as directory:
        logger = MetricLogger(epath.Path(directory), None)
        for _ in range(REPETITIONS):
            for run in fastest:
                begin = time.perf_counter()
                state, metrics = run(state, metrics)
                jax.block_until_ready(state)
                fastest[run] = min(fastest[run], time.perf_counter() - begin)
        logger.close()
    return 1 - fastest[without] / fastest[loop]


def measure_plain(config: Any, steps: int = 20) -> Row:
    """The world-model step in its plain form, on one device."""
    spec = task_spec(config.task)
    program = resolve(config, spec.observation_size, spec.action_size)
    model, sizes = program.model, program.learner
    data = random_data(program, config.data.trajectories, labelled_count(config))
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
    "logging_overhead": ("fetching and logging", ".1%"),
    "memory_mb": ("memory, MB", ".0f"),
}


@report.command
def main() -> None:
    """Reads the command line, measures, prints a table and writes the JSON file."""
    parser = report.parser(__doc__)
    parser.add_argument("--plain", action="store_true", help="measure the plain form as well")
    parser.add_argument(
        "--seeds", type=int, default=1, help="measure world model and agent of so many as well"
    )
    arguments, config = report.parse(parser)
    if arguments.plain and of_lapo(config):
        raise InputError("--plain is a form of LAWM's world model; LAPO has none")
    mesh = runner.make_mesh()
    steps = train_steps(config, mesh, arguments.seeds)
    single = alone(config, mesh).with_steps(1)
    steps.append(single._replace(name=f"{single.name}, {SINGLE}"))
    rates = {
        dtype: flops.matmul_rate(jax.numpy.dtype(dtype)) for dtype in {s.dtype for s in steps}
    }
    measured = [measure(train, rates[train.dtype]) for train in steps]
    if arguments.plain:
        measured.append(measure_plain(config))
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(report.table(device, measured, COLUMNS))
    gflops = {dtype: rate / 1e9 for dtype, rate in rates.items()}
    for dtype, rate in gflops.items():
        print(f"matmul rate of one device, {dtype}: {rate:.0f} GFLOP/s")
    if arguments.json:
        report.write_json(arguments.json, device, measured, matmul_gflops=gflops)


if __name__ == "__main__":
    main()
