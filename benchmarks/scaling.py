"""Data parallelism on 1, 2, 4 and 8 forced host devices: equal losses, and what goes over the wire.

    python -m benchmarks.scaling --config=configs/dmc.py:walker_walk,tiny --json=FILE

Host devices share this machine's cores, so no speed is reported: only that the losses agree, and
the count and bytes of the collectives that one step of the compiled program executes on a device.
Gradients are to leave in few large all-reduces, not one a leaf.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from benchmarks.step_time import write_json
from experiments import command_line
from lawm_jax.errors import InputError

DEVICES = (1, 2, 4, 8)
STEPS = 3
TOLERANCE = 1e-3  # relative, of losses after a few steps
LOSSES = ("loss", "value_loss", "critic_loss")  # the one to compare, whichever a step has


def measure(config: Any) -> list[dict[str, Any]]:
    """Rows of this process's device count: losses of a few steps, collectives of one."""
    import jax

    from benchmarks.hlo import collectives
    from benchmarks.train_steps import fill, train_steps
    from lawm_jax import runner

    rows = []
    for train in train_steps(fill(config, max(DEVICES)), runner.make_mesh(), one_window=True):
        args = (train.state, train.shared, train.sharded)
        compiled = train.step.lower(*args, steps=1).compile()
        found = collectives(compiled.as_text())
        state, losses = train.state, []
        for _ in range(STEPS):
            state, metrics = compiled(state, *args[1:])
            loss = next(x for name, x in metrics.items() if name in LOSSES)
            losses.append(float(loss[0]))
        rows.append({
            "step": train.name,
            "devices": jax.device_count(),
            "losses": losses,
            "collectives": sum(one.count for one in found),
            "collective_bytes": sum(one.bytes for one in found),
            "kinds": sorted({one.kind for one in found}),
        })  # fmt: skip
    return rows


def main() -> None:
    """Starts one process a device count, prints a table and writes the JSON file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", help="file to write {device, rows} to")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    try:
        config = command_line.parse([sys.argv[0], *rest]).config
        if arguments.child:
            print(json.dumps(measure(config)))
            return
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    rows = []
    for devices in DEVICES:
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={devices}",
        }
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.scaling", "--child", *rest],
            env=environment, stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(done.returncode)
        rows += json.loads(done.stdout.splitlines()[-1])
    print("| step | devices | loss after 1, 2, 3 steps | collectives a step | kB a step |")
    print("|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (row["step"], row["devices"])):
        losses = ", ".join(f"{loss:.6g}" for loss in row["losses"])
        print(
            f"| {row['step']} | {row['devices']} | {losses} | {row['collectives']} "
            f"| {row['collective_bytes'] / 1e3:.1f} |"
        )
    for row in rows:
        one = next(r["losses"] for r in rows if r["step"] == row["step"])
        if any(abs(a - b) > TOLERANCE * abs(b) for a, b in zip(row["losses"], one, strict=True)):
            sys.exit(f"error: {row['step']} on {row['devices']} devices has other losses than on 1")
    if arguments.json:
        write_json(arguments.json, "forced host devices", rows)


if __name__ == "__main__":
    main()
