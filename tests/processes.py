"""Starts scripts of this folder in processes of their own, with forced host devices."""

import json
import os
import subprocess
import sys
from pathlib import Path


def start(script, *args, devices, **environment):
    """Starts a script of this folder with forced host devices.

    Compilation is what takes the time, and optimised programs take twice as long.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, script.__file__, *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {
            "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        } | environment,
    )


def output(process):
    """What the script printed last, from JSON."""
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])
