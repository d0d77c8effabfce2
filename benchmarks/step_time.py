"""Compile time, speed and arithmetic rate of the train steps, on random data of a config's sizes.

    python -m benchmarks.step_time --config=configs/dmc.py:cheetah_run --json=FILE

Runs every step on all devices as the main job does: sampled on the device, many steps a dispatch.
`--plain` adds the world-model step as one would first write it: the equations in one loop
(benchmarks/plain.py), numpy batches, one dispatch a step, metrics fetched every step. A figure is
the fastest of a few repetitions; measure on an otherwise idle machine.

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
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import flops, plain
from experiments import command_line
from lawm_jax import runner
from lawm_jax.data.normaliser import fit
from lawm_jax.data.transitions import Transitions
from lawm_jax.data.windows import TrajectoryArrays
from lawm_jax.envs.dmc import task_spec
from lawm_jax.errors import InputError
from lawm_jax.lawm import actor_critic, learner
from lawm_jax.lawm.elbo import draw_noise
from lawm_jax.lawm.methods import Program, check_rows, resolve
from lawm_jax.lawm.world_model import State
from lawm_jax.metrics import MetricLogger, check_finite
from lawm_jax.offline import methods, td3_bc

EPISODE_STEPS, STARTS, REPETITIONS = 500, 20_000, 5
CALLS = 4  # dispatches in a row, behind host overhead
Row = dict[str, float | str]


class TrainStep(NamedTuple):
    """A mapped train step with what it is called on."""

    name: str
    step: Callable[..., tuple]
    state: Any
    shared: Any
    sharded: Any
    windows: int  # windows, start states or transitions a step


def random_data(
    program: Program, trajectories: int, labelled: int, one_window: bool = False
) -> learner.TrainingData:
    """Trajectories of noise in the sizes of the config.

    one_window: all are one and the same window, so that every device draws the same from its share.
    """
    rng = np.random.default_rng(0)
    model = program.model
    steps = program.learner.window - 1 if one_window else EPISODE_STEPS

    def arrays(count: int, actions: bool) -> TrajectoryArrays:
        def noise(*shape: int) -> np.ndarray:
            if one_window:
                one = rng.standard_normal(shape, np.float32)
                return np.broadcast_to(one, (count, *shape))
            return rng.standard_normal((count, *shape), np.float32)

        return TrajectoryArrays(
            observation=noise(steps + 1, model.observation_size),
            action=np.tanh(noise(steps, model.action_size)) if actions else None,
            reward=noise(steps),
            length=np.full(count, steps, np.int32),
        )

    unlabelled = arrays(trajectories - labelled, False) if program.learner.unlabelled_rows else None
    return learner.TrainingData(arrays(labelled, True), unlabelled)


def fill(config: Any, count: int) -> Any:
    """The config with batches that `count` devices divide, and trajectories for all of them."""
    config = config.copy_and_resolve_references()
    up = lambda rows: math.ceil(rows / count) * count
    model, agent = config.world_model, config.agent
    model.labelled_rows = up(model.labelled_rows)
    model.unlabelled_rows = up(model.unlabelled_rows)
    agent.start_rows = up(agent.start_rows)
    config.td3_bc.batch_rows = up(config.td3_bc.batch_rows)
    data = config.data
    data.trajectories = up(max(data.trajectories, 4 * count))
    data.label_fraction = up(data.label_fraction * data.trajectories) / data.trajectories
    return config


def train_steps(
    config: Any, mesh: jax.sharding.Mesh, one_window: bool = False, abstract: bool = False
) -> list[TrainStep]:
    """Every train step of the control experiment, in the sizes of a config.

    abstract: arguments are jax.ShapeDtypeStruct, for a mesh of devices that are not here.
    """
    spec = task_spec(config.task)
    program = resolve(config, spec.observation_size, spec.action_size)
    check_rows(program, mesh)
    model, seed, count = program.model, 0, config.data.trajectories
    labelled = max(mesh.size, round(config.data.label_fraction * count))
    data = random_data(
        program, count - count % mesh.size, labelled - labelled % mesh.size, one_window
    )
    optimiser = learner.make_optimiser(program.learner)
    world = learner.init(model, optimiser, learner.fit_normaliser(data), seed)
    params = jax.tree.map(np.asarray, world.params)  # a copy: the train state is donated
    starts = State(
        np.zeros((STARTS - STARTS % mesh.size, model.deterministic), np.float32),
        np.zeros((STARTS - STARTS % mesh.size, model.stochastic), np.float32),
    )
    agent = actor_critic.init(model, program.agent, seed)
    world_step = learner.make_step(model, program.elbo, program.learner, optimiser, mesh.size)
    agent_step = actor_critic.make_step(model, program.agent, mesh.size)

    put, replicated, sharded = _placing(mesh, abstract)
    return [
        TrainStep(
            "world_model", runner.data_parallel(world_step, mesh), put(world, replicated), None,
            put(data, sharded), program.learner.labelled_rows + program.learner.unlabelled_rows,
        ),
        TrainStep(
            "actor_critic", runner.data_parallel(agent_step, mesh), put(agent, replicated),
            put(params, replicated), put(starts, sharded), program.agent.start_rows,
        ),
        td3_bc_step(config, mesh, one_window, abstract),
    ]


def td3_bc_step(
    config: Any, mesh: jax.sharding.Mesh, one_window: bool = False, abstract: bool = False
) -> TrainStep:
    """The train step of the baseline TD3+BC on as many transitions as the config's data set has.

    one_window: all are one and the same transition; abstract: as in `train_steps`.
    """
    spec, config = task_spec(config.task), config.copy_and_resolve_references()
    config.method = "td3_bc"
    program = methods.resolve(config, spec.action_size)
    methods.check_rows(program, mesh)
    count = config.data.trajectories * EPISODE_STEPS
    count -= count % mesh.size
    rng = np.random.default_rng(0)

    def noise(*size: int) -> np.ndarray:
        rows = rng.standard_normal((1 if one_window else count, *size), np.float32)
        return np.broadcast_to(rows, (count, *size))

    sizes = (spec.observation_size,), (spec.action_size,), (), (spec.observation_size,)
    data = Transitions(*(noise(*size) for size in sizes))
    data = data._replace(action=np.tanh(data.action))
    state = td3_bc.init(program.policy, fit([data.observation[:1000]]), 0)
    step = td3_bc.make_step(program.policy, mesh.size)
    put, replicated, sharded = _placing(mesh, abstract)
    return TrainStep(
        "td3_bc", runner.data_parallel(step, mesh), put(state, replicated), None,
        put(data, sharded), program.policy.batch_rows,
    )


def _placing(mesh: jax.sharding.Mesh, abstract: bool) -> tuple[Callable, Any, Any]:
    """put(tree, spec) and its two specs: replicated, and divided among the devices."""

    def put(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        if not abstract:
            return jax.device_put(tree, sharding)
        struct = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
        return jax.tree.map(lambda x: struct(x.shape, x.dtype), tree)

    return put, PartitionSpec(), PartitionSpec(runner.AXIS)


def measure(train: TrainStep, steps: int, matmul_rate: float) -> Row:
    """Compiles `steps` scanned steps, runs them a few times and returns a row of the table."""
    args = (train.state, train.shared, train.sharded)
    operations = flops.count(lambda *args: train.step(*args, steps=1), *args)
    begin = time.perf_counter()
    compiled = train.step.lower(*args, steps=steps).compile()
    compile_seconds = time.perf_counter() - begin
    state, calls = train.state, []
    for _ in range(REPETITIONS + 1):  # the first also fills caches
        begin = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, *args[1:]))
        calls.append(time.perf_counter() - begin)
    seconds = min(calls[1:]) / steps
    call = lambda state: compiled(state, *args[1:])
    memory = compiled.memory_analysis()
    return {
        "step": train.name,
        "steps_per_second": 1 / seconds,
        "milliseconds_per_step": 1000 * seconds,
        "windows_per_second": train.windows / seconds,
        "compile_seconds": compile_seconds,
        "steps_per_call": steps,
        "useful_gflops_per_step": operations / 1e9,
        "share_of_matmul_rate": operations / seconds / matmul_rate,
        "host_overhead": host_overhead(call, state, metrics),
        "memory_mb": (
            memory.argument_size_in_bytes + memory.output_size_in_bytes
            + memory.temp_size_in_bytes - memory.alias_size_in_bytes
        ) / 1e6,
    }  # fmt: skip


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


def main() -> None:
    """Reads the command line, measures, prints a table and writes the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file to write {device, rows} to")
    parser.add_argument("--plain", action="store_true", help="measure the plain form as well")
    arguments, rest = parser.parse_known_args()
    try:
        config = command_line.parse([sys.argv[0], *rest]).config
        dtype = config.world_model.dtype
        mesh, rate = runner.make_mesh(), flops.matmul_rate(jax.numpy.dtype(dtype))
        measured = [
            measure(train, config.run.steps_per_call, rate) for train in train_steps(config, mesh)
        ]
        alone = td3_bc_step(config, mesh)._replace(name="td3_bc, one step a dispatch")
        measured.append(measure(alone, 1, rate))
        if arguments.plain:
            measured.append(measure_plain(config))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(table(device, measured, COLUMNS))
    print(f"matmul rate of one device, {dtype}: {rate / 1e9:.0f} GFLOP/s")
    if arguments.json:
        written = {"device": device, "matmul_gflops": rate / 1e9, "rows": measured}
        with open(arguments.json, "w") as file:
            json.dump(written, file, indent=2)


if __name__ == "__main__":
    main()
