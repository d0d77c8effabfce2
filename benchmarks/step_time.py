"""Compile time and speed of the train steps, on random data of a config's sizes.

    python -m benchmarks.step_time --config=configs/dmc.py:cheetah_run --json=FILE

Runs every step on all devices as the main job does: sampled on the device, many steps a dispatch.
A figure is the fastest of a few repetitions; measure on an otherwise idle machine.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments import command_line
from lawm_jax import runner
from lawm_jax.data.windows import TrajectoryArrays
from lawm_jax.envs.dmc import task_spec
from lawm_jax.errors import InputError
from lawm_jax.lawm import actor_critic, learner
from lawm_jax.lawm.methods import Program, resolve
from lawm_jax.lawm.world_model import State

EPISODE_STEPS, STARTS, REPETITIONS = 500, 20_000, 5


def random_data(program: Program, trajectories: int, labelled: int) -> learner.TrainingData:
    """Trajectories of noise in the sizes of the config."""
    rng = np.random.default_rng(0)
    model = program.model

    def arrays(count: int, actions: bool) -> TrajectoryArrays:
        def noise(*shape: int) -> np.ndarray:
            return rng.standard_normal((count, *shape), np.float32)

        return TrajectoryArrays(
            observation=noise(EPISODE_STEPS + 1, model.observation_size),
            action=np.tanh(noise(EPISODE_STEPS, model.action_size)) if actions else None,
            reward=noise(EPISODE_STEPS),
            length=np.full(count, EPISODE_STEPS, np.int32),
        )

    unlabelled = arrays(trajectories - labelled, False) if program.learner.unlabelled_rows else None
    return learner.TrainingData(arrays(labelled, True), unlabelled)


def measure(
    name: str, step: Callable[..., tuple], state: Any, shared: Any, sharded: Any, steps: int
) -> dict[str, float | str]:
    """Compiles `steps` scanned steps, runs them a few times and returns a row of the table."""
    begin = time.perf_counter()
    compiled = step.lower(state, shared, sharded, steps=steps).compile()
    compile_seconds = time.perf_counter() - begin
    fastest = float("inf")
    for _ in range(REPETITIONS):
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, shared, sharded))
        fastest = min(fastest, time.perf_counter() - begin)
    return {
        "step": name,
        "steps_per_second": steps / fastest,
        "milliseconds_per_step": 1000 * fastest / steps,
        "compile_seconds": compile_seconds,
        "steps_per_call": steps,
    }


def rows(config: Any) -> list[dict[str, float | str]]:
    """Measures the world-model step and the actor-critic step of a config."""
    spec = task_spec(config.task)
    program = resolve(config, spec.observation_size, spec.action_size)
    mesh, model, seed, steps = runner.make_mesh(), program.model, 0, config.run.steps_per_call
    count = config.data.trajectories
    labelled = max(mesh.size, round(config.data.label_fraction * count))
    data = random_data(program, count - count % mesh.size, labelled - labelled % mesh.size)
    optimiser = learner.make_optimiser(program.learner)
    world = learner.init(model, optimiser, learner.fit_normaliser(data), seed)
    params = jax.tree.map(np.asarray, world.params)  # a copy: the train state is donated
    world_step = learner.make_step(model, program.elbo, program.learner, optimiser, mesh.size)
    starts = State(
        np.zeros((STARTS, model.deterministic), np.float32),
        np.zeros((STARTS, model.stochastic), np.float32),
    )
    return [
        measure("world_model", runner.data_parallel(world_step, mesh),
                runner.replicate(world, mesh), None, runner.shard(data, mesh), steps),
        measure("actor_critic",
                runner.data_parallel(
                    actor_critic.make_step(model, program.agent, mesh.size), mesh),
                runner.replicate(actor_critic.init(model, program.agent, seed), mesh),
                runner.replicate(params, mesh), runner.shard(starts, mesh), steps),
    ]


def main() -> None:
    """Reads the command line, measures, prints a table and writes the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file to write {device, rows} to")
    arguments, rest = parser.parse_known_args()
    try:
        config = command_line.parse([sys.argv[0], *rest]).config
        measured = rows(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(f"| step ({device}) | steps/s | ms a step | compilation, s |\n|---|---|---|---|")
    for row in measured:
        print(
            f"| {row['step']} | {row['steps_per_second']:.1f} | "
            f"{row['milliseconds_per_step']:.1f} | {row['compile_seconds']:.1f} |"
        )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"device": device, "rows": measured}, file, indent=2)


if __name__ == "__main__":
    main()
