"""Where the time of a world-model step goes: its parts, each compiled and timed alone.

    python -m benchmarks.parts --config=configs/dmc.py:cheetah_run --json=FILE

On one device, on random data of the config's sizes, one dispatch each; a figure is the fastest of a
few repetitions. The recurrence is the filter over the window alone: forward, and with its gradient
for parameters and embeddings. What the whole step has beside the sum of loss and gradient, windows
and noise, and update is what compiling them together saves or costs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import flops, report
from benchmarks.control_steps import labelled_count, random_data
from benchmarks.report import Row
from benchmarks.timing import fastest
from benchmarks.train_steps import of_lapo, train_steps
from lawm_jax import runner
from lawm_jax.data.windows import sample_windows
from lawm_jax.envs.dmc import task_spec
from lawm_jax.errors import InputError
from lawm_jax.lawm import learner
from lawm_jax.lawm.elbo import draw_noise, elbo_loss
from lawm_jax.lawm.methods import Program, resolve
from lawm_jax.lawm.world_model import infer

REPETITIONS = 8

COLUMNS = {
    "milliseconds": ("ms", ".1f"),
    "share_of_step": ("of the step", ".0%"),
    "useful_gflops": ("useful GFLOP", ".2f"),
    "share_of_matmul_rate": ("of matmul rate", ".0%"),
}


def parts(program: Program, config: Any) -> dict[str, tuple[Callable[..., Any], tuple]]:
    """Name -> (function, arguments) of each part of a world-model step."""
    model, sizes = program.model, program.learner
    data = random_data(program, config.data.trajectories, labelled_count(config))
    on_device = jax.tree.map(jnp.asarray, data)
    optimiser = learner.make_optimiser(sizes)
    state = learner.init(model, optimiser, learner.fit_normaliser(data), 0)
    rows = sizes.labelled_rows, sizes.unlabelled_rows

    def draw(key: jax.Array) -> tuple:
        keys = jax.random.split(key, sum(rows))
        windows = [
            None if arrays is None else sample_windows(arrays, part, sizes.window)
            for arrays, part in zip(on_device, (keys[: rows[0]], keys[rows[0] :]), strict=True)
        ]
        return *windows, draw_noise(model, keys, sizes.window, rows[0])

    labelled, unlabelled, noise = jax.jit(draw)(jax.random.key(0))
    loss = lambda params: elbo_loss(model, program.elbo, params, labelled, unlabelled, noise)[0]
    both = [x.observation for x in (labelled, unlabelled) if x is not None]
    observation = jnp.concatenate(both, 1)

    def recur(params: Any) -> jax.Array:
        found = infer(
            model, params, observation, labelled.action, noise.inference,
            program.elbo.driving_noise,
        )
        return jnp.sum(found.state.h) + jnp.sum(found.state.z)

    def update(grads: Any, opt_state: Any, params: Any) -> tuple:
        updates, opt_state = optimiser.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = (state.params,)
    return {
        "windows and noise": (draw, (jax.random.key(1),)),
        "loss": (loss, params),
        "loss and gradient": (jax.value_and_grad(loss), params),
        "of it encoder and recurrence, forward": (recur, params),
        "of it encoder and recurrence, with gradient": (jax.value_and_grad(recur), params),
        "update": (update, (state.params, state.opt_state, state.params)),
    }


def measure(name: str, function: Callable[..., Any], args: tuple, matmul_rate: float) -> Row:
    """Compiles and times a function."""
    seconds = fastest(jax.jit(function), *args, repetitions=REPETITIONS)
    return _row(name, flops.count(function, *args), seconds, matmul_rate)


def measure_step(config: Any, matmul_rate: float) -> Row:
    """Times the whole step as the main job runs it, on one device, one step a dispatch."""
    train = train_steps(config, runner.make_mesh(jax.devices()[:1]))[0].with_steps(1)
    state, inputs = train.state, (train.shared, train.sharded)
    operations = train.operations()

    def step() -> Any:
        nonlocal state  # the one passed in is donated
        state, metrics = train.step(state, *inputs, steps=1)
        return state, metrics

    return _row("whole step", operations, fastest(step, repetitions=REPETITIONS), matmul_rate)


def _row(name: str, operations: int, seconds: float, matmul_rate: float) -> Row:
    return {
        "step": name,
        "milliseconds": 1000 * seconds,
        "useful_gflops": operations / 1e9,
        "share_of_matmul_rate": operations / seconds / matmul_rate,
    }


@report.command
def main() -> None:
    """Reads the command line, measures, prints a table and writes the JSON file."""
    arguments, config = report.parse(report.parser(__doc__))
    if of_lapo(config):
        raise InputError("the parts are those of LAWM's world model; choose a control task")
    spec = task_spec(config.task)
    program = resolve(config, spec.observation_size, spec.action_size)
    named = parts(program, config)  # before anything is measured: it checks the data's sizes
    rate = flops.matmul_rate(program.model.dtype)
    whole = measure_step(config, rate)
    rows = [whole]
    for name, (function, args) in named.items():
        rows.append(measure(name, function, args, rate))
    for row in rows:
        row["share_of_step"] = row["milliseconds"] / whole["milliseconds"]
    device = jax.devices()[0].device_kind
    print(report.table(device, rows, COLUMNS))
    if arguments.json:
        report.write_json(arguments.json, f"1 x {device}", rows, matmul_gflops=rate / 1e9)


if __name__ == "__main__":
    main()
