"""Starts scripts of this folder in processes of their own, with forced host devices."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

FLAGS = os.environ.get("XLA_FLAGS", "")
WITHOUT_EMITTERS = f"{FLAGS} --xla_cpu_use_fusion_emitters=false".strip()
# Compilation is what takes the time of small jobs. Without most optimisations, and without the
# emitters of fused loops, it takes far less. `.ci/run` has its jobs compiled as users do.
QUICK_COMPILATION = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": WITHOUT_EMITTERS}


def start(script, *args, devices, cwd=None, emitters=False, **environment):
    """Starts a script of this folder with forced host devices, in the directory `cwd`.

    emitters: compile with those of fused loops, on which the last digits of results depend.
    """
    flags = FLAGS if emitters else WITHOUT_EMITTERS
    flags += f" --xla_force_host_platform_device_count={devices}"
    root = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, script.__file__, *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env=os.environ | {
            "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root),
        } | QUICK_COMPILATION | {"XLA_FLAGS": flags} | environment,
    )


def start_pair(script, *args, devices, own=((), ()), cwds=(None, None)):
    """Starts it as the two processes of one run, each with arguments and a directory of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        start(
            script, *args, *own[i], devices=devices, cwd=cwds[i], JAX_COORDINATOR_ADDRESS=address,
            JAX_NUM_PROCESSES="2", JAX_PROCESS_ID=str(i),
        )
        for i in range(2)
    ]


def output(process):
    """What the script printed last, from JSON."""
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])
