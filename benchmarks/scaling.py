"""Data parallelism on 1, 2, 4 and 8 forced host devices: equal losses, and what goes over the wire.

    python -m benchmarks.scaling --config=configs/dmc.py:walker_walk,tiny --json=FILE

Host devices share this machine's cores, so no speed is reported: only that the losses agree, that
all devices are left with one and the same state, and the count and bytes of the collectives that
one step of the compiled program executes on a device. Gradients are to leave in few large
all-reduces, not one a leaf.

Every device works on rows, or with noise on them, that no other has: windows are streamed, which
makes the batch the same on any number of devices. A step that forgets to take a mean over the
devices leaves them with different states.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from benchmarks import report
from benchmarks.hlo import collectives
from benchmarks.train_steps import fill, train_steps
from experiments import command_line
from lawm_jax import runner

DEVICES = (1, 2, 4, 8)
STEPS = 3
TOLERANCE = 1e-3  # relative, of losses after a few steps
# the one to compare, whichever a step has
LOSSES = ("loss", "value_loss", "critic_loss", "training_error")


def measure(config: Any) -> list[dict[str, Any]]:
    """Rows of this process's device count: losses of a few steps, collectives of one."""
    config, rows = fill(config, max(DEVICES)), []
    config.data.on_device, config.run.steps_per_call = False, STEPS
    for train in train_steps(config, runner.make_mesh(), one_row=True):
        train = train.with_steps(STEPS)
        compiled = train.compile()
        found = collectives(compiled.as_text())
        state, metrics = compiled(train.state, train.shared, train.sharded)
        rows.append({
            "step": train.name,
            "devices": jax.device_count(),
            "losses": next(x for name, x in metrics.items() if name in LOSSES).tolist(),
            "devices_agree": agree((state, metrics)),
            "collectives": sum(one.count for one in found) / STEPS,
            "collective_bytes": sum(one.bytes for one in found) / STEPS,
            "kinds": sorted({one.kind for one in found}),
        })  # fmt: skip
    return rows


def agree(tree: Any) -> bool:
    """Whether every device has the same of what is to be equal on all of them."""

    def same(x: jax.Array) -> bool:
        first, *others = (np.asarray(shard.data) for shard in x.addressable_shards)
        return all(np.array_equal(first, other, equal_nan=True) for other in others)

    return all(map(same, jax.tree.leaves(tree)))


@report.command
def main() -> None:
    """Starts one process a device count, prints a table and writes the JSON file."""
    parser = report.parser(__doc__)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    config = command_line.parse([sys.argv[0], *rest]).config
    if arguments.child:
        print(json.dumps(measure(config)))
        return
    report.check_target(arguments.json)
    rows = _on_all_counts(rest)
    print("| step | devices | loss after 1, 2, 3 steps | collectives a step | kB a step |")
    print("|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["step"], row["devices"])):
        losses = ", ".join(f"{loss:.6g}" for loss in row["losses"])
        print(
            f"| {row['step']} | {row['devices']} | {losses} | {row['collectives']:g} "
            f"| {row['collective_bytes'] / 1e3:.1f} |"
        )
    _check(rows)
    if arguments.json:
        report.write_json(arguments.json, "forced host devices", rows)


def _on_all_counts(arguments: list[str]) -> list[report.Row]:
    """The rows of a process for each number of devices."""
    rows = []
    for devices in DEVICES:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={devices}",
        }
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.scaling", "--child", *arguments],
            env=environment, stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.returncode)
        rows += json.loads(done.stdout.splitlines()[-1])
    return rows


def _check(rows: list[report.Row]) -> None:
    """Ends the program where devices do not work together."""
    for row in rows:
        where = f"{row['step']} on {row['devices']} devices"
        if not row["devices_agree"]:
            sys.exit(f"error: {where} leaves them with different states")
        one = next(r["losses"] for r in rows if r["step"] == row["step"])
        if any(abs(a - b) > TOLERANCE * abs(b) for a, b in zip(row["losses"], one, strict=True)):
            sys.exit(f"error: {where} has other losses than on 1")


if __name__ == "__main__":
    main()
