"""Compiles every train step for TPUs that are not here, and reports what the compiler says of it.

    pip install -e '.[tpu]'
    python -m benchmarks.tpu_compile --config=configs/dmc.py:cheetah_run --json=FILE

THESE ARE THE COMPILER'S FIGURES AND PUBLISHED PEAK RATES, NOT MEASUREMENTS. For each topology
(--topology=v5e:1x1,v5e:2x4 and so on) it prints, a chip: the memory of one dispatch, of as many
steps as the job's; and a step, the dispatch's share: useful operations, bytes to and from the
chip's memory, collectives and their bytes, the time that the compiler's cycle estimate comes to
(loop bodies once for every trip), and the least time that the peak rates allow, with the term that
sets it. A cycle estimate far above that bound says that the step is a chain of small operations:
latency, not rates, is the limit, and larger batches or more seeds are nearly free.

Batches are the config's, made as large as one row of each kind a chip where they are smaller.
LAPO's frames are divided among the chips, or streamed where they would take half the memory.
"""

import math
import os
import sys
import time
from typing import Any, NamedTuple

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["JAX_PLATFORMS"] = "cpu"  # the host's own backend; the target is named below

from jax.experimental import topologies

from benchmarks import hlo, report
from benchmarks.train_step import TrainStep, memory_bytes
from benchmarks.train_steps import fill, of_lapo, train_steps
from lawm_jax import runner
from lawm_jax.envs.procgen import FRAME
from lawm_jax.errors import InputError

TOPOLOGIES = "v5e:1x1,v5e:2x4,v5e:16x16"


class Chip(NamedTuple):
    """Published peak rates of one chip (Cloud TPU documentation, system architecture pages).

    The clock follows from the peak rate and the number and size of the chip's matrix units.
    """

    flops: float  # bfloat16, a second
    memory_bytes: float
    memory_rate: float  # bytes a second
    interconnect_rate: float  # bytes a second, all links of a chip
    clock: float  # Hz


CHIPS = {
    "v4": Chip(275e12, 32e9, 1228e9, 300e9, 1.05e9),
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, 1.5e9),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9, 1.75e9),
    "v6e": Chip(918e12, 32e9, 1640e9, 448e9, 1.75e9),
}

COLUMNS = {
    "steps_per_call": ("steps a dispatch", "d"),
    "memory_mb": ("memory, MB", ".0f"),
    "useful_gflops_per_step": ("useful GFLOP", ".3f"),
    "memory_traffic_mb": ("memory traffic, MB", ".1f"),
    "collectives": ("collectives", "g"),
    "collective_mb": ("collectives, MB", ".2f"),
    "compiler_microseconds": ("compiler's estimate, µs", ".0f"),
    "bound_microseconds": ("bound by rates, µs", ".1f"),
    "limit": ("limit", ""),
    "compile_seconds": ("compilation, s", ".0f"),
}


def devices(topology: str) -> list[Any]:
    """The abstract devices of a topology such as v5e:2x4.

    Raises:
      InputError: an unknown chip or topology, or no TPU compiler installed.
    """
    chip = topology.partition(":")[0]
    if chip not in CHIPS:
        raise InputError(f"topology '{topology}': the chip is one of {', '.join(CHIPS)}")
    options = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"topology '{topology}' cannot be described ({reason}); "
            "the TPU compiler comes with pip install -e '.[tpu]'"
        ) from error
    return list(described.devices)


def _sent(collectives: list[hlo.Collective], chips: int) -> float:
    """Bytes that each chip sends: a ring's all-reduce is a reduce-scatter and an all-gather."""
    passes = lambda one: 2 if one.kind == "all-reduce" else 1
    return sum(passes(one) * one.bytes for one in collectives) * (chips - 1) / chips


def place_frames(config: Any, chip: Chip, chips: int) -> Any:
    """LAPO's config with frames streamed where they would take more than half of the memory."""
    config = config.copy_and_resolve_references()
    if of_lapo(config):
        share = config.data.train_frames * math.prod(FRAME) / chips
        config.data.on_device = config.data.on_device and share < chip.memory_bytes / 2
    return config


def rows(config: Any, topology: str, seeds: int) -> list[dict[str, Any]]:
    """Compiles every train step for one topology and returns its rows of the table."""
    mesh = runner.make_mesh(devices(topology))
    chip = CHIPS[topology.partition(":")[0]]
    config = place_frames(fill(config, mesh.size), chip, mesh.size)
    found = []
    for train in train_steps(config, mesh, seeds, abstract=True):
        name = f"{train.name}{', streamed' if train.streamed else ''}, {topology}"
        found.append(row(train._replace(name=name), chip, mesh.size) | {"topology": topology})
        print(f"{name}: compiled in {found[-1]['compile_seconds']:.0f} s", file=sys.stderr)
    return found


def row(train: TrainStep, chip: Chip, chips: int) -> dict[str, Any]:
    """Compiles one dispatch of a train step; what the compiler says, divided by its steps.

    Compiled alone, a step would carry what a dispatch does once, such as copies of the data into
    another layout, and need less memory than the loop.
    """
    steps, operations, begin = train.steps_per_call, train.operations(), time.perf_counter()
    compiled = train.compile()
    seconds = time.perf_counter() - begin
    text, used = compiled.as_text(), memory_bytes(compiled)
    moved, traffic = hlo.collectives(text), hlo.memory_traffic(text) / steps
    terms = {
        "matrix units": operations / chip.flops,
        "memory": traffic / chip.memory_rate,
        "interconnect": _sent(moved, chips) / steps / chip.interconnect_rate,
    }
    limit = max(terms, key=terms.__getitem__)
    bound, estimate = terms[limit], hlo.cycles(text) / steps / chip.clock
    return {
        "step": train.name,
        "chips": chips,
        "windows": train.windows,
        "steps_per_call": steps,
        "memory_mb": used / 1e6,
        "share_of_memory": used / chip.memory_bytes,
        "seeds": train.seeds,
        "useful_gflops_per_step": operations / 1e9,
        "memory_traffic_mb": traffic / 1e6,
        "collectives": sum(one.count for one in moved) / steps,
        "collective_kinds": sorted({one.kind for one in moved}),
        "collective_mb": sum(one.bytes for one in moved) / steps / 1e6,
        "compiler_microseconds": 1e6 * estimate,
        "bound_microseconds": 1e6 * bound,
        "limit": f"latency ({limit})" if estimate > 2 * bound else limit,
        "compile_seconds": seconds,
    }


@report.command
def main() -> None:
    """Reads the command line, compiles, prints a table and writes the JSON file."""
    parser = report.parser(__doc__)
    parser.add_argument(
        "--topology", default=TOPOLOGIES, help=f"comma-separated; default {TOPOLOGIES}"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="add world model and agent of so many side by side"
    )
    arguments, config = report.parse(parser)
    named = arguments.topology.split(",")
    found = [row for one in named for row in rows(config, one, arguments.seeds)]
    print("The TPU compiler's figures and published peak rates, not measurements:\n")
    print(report.table("compiled only", found, COLUMNS))
    if arguments.json:
        report.write_json(arguments.json, "none: TPU compiler only", found)


if __name__ == "__main__":
    main()
