"""Useful arithmetic of a program, counted from its jaxpr, and the rate that a device reaches.

The compiler's own count takes a loop's body once; here a scan's body counts `length` times. Only
matmuls and convolutions count, at two operations a multiply-add: what a matrix unit would do.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from benchmarks.timing import fastest

MATMUL_REPETITIONS = 5


def count(function: Callable[..., Any], *args: Any) -> int:
    """Matmul and convolution operations of one call of `function`, of one device of a mesh.

    args: arrays, or anything with shapes and dtypes; nothing is computed.

    Raises:
      ValueError: there is a matmul inside a loop whose length the jaxpr does not tell.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += max(map(_count, _inner(equation)))
        elif name == "while":
            if any(map(_count, _inner(equation))):
                raise ValueError("a while loop holds a matmul: how often it runs is unknown")
        else:
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(map(_count, _inner(equation)))
    return total


def _inner(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The jaxprs that an equation calls."""
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _dot(equation: core.JaxprEqn) -> int:
    left, _ = (v.aval.shape for v in equation.invars)
    (contracted, _), _ = equation.params["dimension_numbers"]
    inner = math.prod(left[i] for i in contracted)
    return 2 * inner * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation: core.JaxprEqn) -> int:
    kernel = equation.invars[1].aval.shape
    out_features = equation.params["dimension_numbers"].rhs_spec[0]
    per_output = math.prod(kernel) // kernel[out_features]  # spatial size times inputs a group
    outputs = math.prod(equation.outvars[0].aval.shape)
    # Zeros between inputs (a strided convolution's gradient) are not multiplied usefully.
    return 2 * per_output * outputs // math.prod(equation.params["lhs_dilation"])


def matmul_rate(dtype: Any = jnp.float32, size: int | None = None) -> float:
    """Operations a second of large matmuls on one device: the fastest of a few dispatches.

    size: of the square matrices; by default one that keeps the backend busy for a while.
    """
    on_cpu = jax.default_backend() == "cpu"
    size, chain = size or (2048 if on_cpu else 8192), 2 if on_cpu else 20

    @jax.jit
    def multiply(x: jax.Array, y: jax.Array) -> jax.Array:
        for _ in range(chain):  # one after the other: the dispatch is a small part
            y = x @ y
        return y

    x = jnp.full((size, size), 1 / size, dtype)  # its powers are itself
    return 2 * chain * size**3 / fastest(multiply, x, x, repetitions=MATMUL_REPETITIONS)
