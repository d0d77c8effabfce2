"""A `lax.scan` over a flax module's step whose weight gradients are computed after the loop.

Differentiating `lax.scan` accumulates the gradient of every weight inside the backward loop: a thin
matmul and a pass over all weights at each step. Here the backward loop computes only what is
recurrent, the gradients of the layers' outputs; each weight's gradient is then one large matmul
over all steps. The numbers are the same up to rounding.

It rests on two collections that `nets.Dense` offers: "inputs", what a layer was given, and
"perturbations", zeros added to what it returns, whose gradient is that of the output.
"""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp

PyTree = Any
INPUTS, OUTPUTS = "inputs", "perturbations"


def scan(
    cell: Callable[..., Any], params: PyTree, carry: PyTree, xs: PyTree
) -> tuple[PyTree, PyTree]:
    """lax.scan of a module's step, as `lax.scan(step, carry, xs)` would compute it.

    Args:
      cell: applies the module: cell(variables, carry, x, mutable=[collection]) -> ((carry, y),
        {collection: ...}), as flax's `apply` does. Every `nets.Dense` inside is called at most
        once a step.
      params: the module's parameters; those not used by the step get zero gradients.
      carry: the initial carry.
      xs: inputs with a leading time axis.

    Returns:
      (the last carry, the stacked ys), differentiable in params, carry and xs.
    """
    first = jax.tree.map(lambda x: x[0], xs)
    shapes = jax.eval_shape(
        lambda: cell({"params": params}, carry, first, mutable=[OUTPUTS])[1][OUTPUTS]
    )
    steps = jax.tree.leaves(xs)[0].shape[0]
    kernels, rest = _split(params, shapes)

    def run(
        rest: PyTree, kernels: PyTree, taps: PyTree, carry: PyTree, xs: PyTree
    ) -> tuple[tuple[PyTree, PyTree], PyTree]:
        variables = {"params": flax.traverse_util.unflatten_dict({**rest, **kernels})}

        def body(carry: PyTree, inputs: tuple[PyTree, PyTree]) -> tuple[PyTree, tuple]:
            x, taps = inputs
            (carry, y), seen = cell(variables | {OUTPUTS: taps}, carry, x, mutable=[INPUTS])
            return carry, (y, seen[INPUTS])

        carry, (ys, seen) = jax.lax.scan(body, carry, (xs, taps))
        return (carry, ys), seen

    def taps() -> PyTree:
        return jax.tree.map(lambda s: jnp.zeros((steps, *s.shape), s.dtype), shapes)

    @jax.custom_vjp
    def scanned(rest: PyTree, kernels: PyTree, carry: PyTree, xs: PyTree) -> tuple:
        return run(rest, kernels, taps(), carry, xs)[0]

    def forward(rest: PyTree, kernels: PyTree, carry: PyTree, xs: PyTree) -> tuple:
        differentiable = lambda rest, taps, carry, xs: run(rest, kernels, taps, carry, xs)
        out, backward, seen = jax.vjp(differentiable, rest, taps(), carry, xs, has_aux=True)
        return out, (backward, seen)

    def backward(residuals: tuple, out: PyTree) -> tuple:
        pull_back, seen = residuals
        rest, outputs, carry, xs = pull_back(out)
        seen = flax.traverse_util.flatten_dict(seen)
        outputs = flax.traverse_util.flatten_dict(outputs)
        gradients = {}
        for path in kernels:
            (x,), g = seen[(*path[:-1], "x")], outputs[(*path[:-1], "y")]
            x, g = (array.reshape(-1, array.shape[-1]) for array in (x, g))  # see nets.matmul
            gradient = jnp.matmul(x.T, g, preferred_element_type=jnp.float32)
            gradients[path] = gradient
        return rest, gradients, carry, xs

    scanned.defvjp(forward, backward)
    return scanned(rest, kernels, carry, xs)


def _split(params: PyTree, outputs: PyTree) -> tuple[PyTree, PyTree]:
    """The kernels whose layers the step calls, and all other parameters, by path."""
    called = {path[:-1] for path in flax.traverse_util.flatten_dict(outputs)}
    flat = flax.traverse_util.flatten_dict(params)
    is_kernel = lambda path: path[-1] == "kernel" and path[:-1] in called
    kernels = {path: x for path, x in flat.items() if is_kernel(path)}
    rest = {path: x for path, x in flat.items() if not is_kernel(path)}
    return kernels, rest
