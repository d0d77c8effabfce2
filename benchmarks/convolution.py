"""Ways to compute the 3 x 3 convolutions of LAPO's networks: XLA's own, and as matmuls.

    python -m benchmarks.convolution --json=FILE

Each is timed forward and backward, for the gradients of input and kernel, on the maps of the small
preset's networks; a figure is the fastest of a few repetitions. The networks use flax's `nn.Conv`,
which is XLA's: this says what another formulation would bring on this device.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks import flops, report
from benchmarks.timing import fastest

REPETITIONS = 8
SIDE = 3
# [B, H, W, C] of the policy (the first: with blocks on its finer map as well) and of the inverse
# and forward dynamics' levels
SHAPES = ((128, 16, 16, 32), (128, 8, 8, 64), (64, 8, 8, 64), (64, 4, 4, 128))

COLUMNS = {
    "milliseconds": ("ms", ".1f"),
    "gflops_per_second": ("GFLOP/s", ".0f"),
    "share_of_matmul_rate": ("of matmul rate", ".0%"),
}


def xla(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's convolution: x [B, H, W, C], kernel [3, 3, C, D] -> [B, H, W, D]."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def one_matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The nine neighbours gathered side by side, then one matmul (im2col)."""
    columns = jnp.concatenate([part for row in _shifted(x) for part in row], -1)
    return columns @ kernel.reshape(-1, kernel.shape[-1])


def three_matmuls(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A matmul for each row of the kernel, with its three neighbours gathered."""
    rows = (jnp.concatenate(row, -1) for row in _shifted(x))
    weights = kernel.reshape(SIDE, -1, kernel.shape[-1])
    return sum(row @ weight for row, weight in zip(rows, weights, strict=True))


def nine_matmuls(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A matmul for each element of the kernel; nothing is gathered."""
    shifted = _shifted(x)
    return sum(shifted[i][j] @ kernel[i, j] for i in range(SIDE) for j in range(SIDE))


FORMULATIONS = (xla, one_matmul, three_matmuls, nine_matmuls)


def _shifted(x: jax.Array) -> list[list[jax.Array]]:
    """x [B, H, W, C] as each element (row, column) of the kernel sees it."""
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [[x[:, i : i + height, j : j + width] for j in range(SIDE)] for i in range(SIDE)]


def measure(
    formulation: Callable[[jax.Array, jax.Array], jax.Array],
    shape: tuple[int, int, int, int],
    matmul_rate: float,
) -> report.Row:
    """Times the gradients of one formulation on a map [B, H, W, C] with C outputs."""
    channels = shape[-1]
    x = jax.random.normal(jax.random.key(0), shape)
    kernel = jax.random.normal(jax.random.key(1), (SIDE, SIDE, channels, channels)) / channels
    # Sines before and after: neither gradient can be had without the convolutions.
    loss = lambda x, kernel: jnp.sum(jnp.sin(formulation(jnp.sin(x), kernel)))
    gradient = jax.jit(jax.grad(loss, (0, 1)))
    seconds = fastest(gradient, x, kernel, repetitions=REPETITIONS)
    operations = 3 * 2 * math.prod(shape) * SIDE**2 * channels
    return {
        "step": f"{formulation.__name__}, {' x '.join(map(str, shape))}",
        "milliseconds": 1000 * seconds,
        "gflops_per_second": operations / seconds / 1e9,
        "share_of_matmul_rate": operations / seconds / matmul_rate,
    }


@report.command
def main() -> None:
    """Reads the command line, measures, prints a table and writes the JSON file."""
    arguments = report.parser(__doc__).parse_args()
    report.check(arguments)
    rate = flops.matmul_rate()
    measured = [measure(way, shape, rate) for shape in SHAPES for way in FORMULATIONS]
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(report.table(device, measured, COLUMNS))
    if arguments.json:
        report.write_json(arguments.json, device, measured, matmul_gflops=rate / 1e9)


if __name__ == "__main__":
    main()
