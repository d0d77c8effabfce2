"""How the benchmarks time a call."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax


def fastest(function: Callable[..., Any], *args: Any, repetitions: int = 5) -> float:
    """Seconds of the fastest of a few calls, each to its end; a first one, to compile, is apart."""
    jax.block_until_ready(function(*args))
    seconds = math.inf
    for _ in range(repetitions):
        begin = time.perf_counter()
        jax.block_until_ready(function(*args))
        seconds = min(seconds, time.perf_counter() - begin)
    return seconds
