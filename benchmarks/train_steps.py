"""Every train step of the experiment that a config is of."""

from typing import Any

from jax.sharding import Mesh

from benchmarks import control_steps, lapo_steps
from benchmarks.train_step import TrainStep
from lawm_jax.errors import InputError


def train_steps(
    config: Any, mesh: Mesh, seeds: int = 1, one_row: bool = False, abstract: bool = False
) -> list[TrainStep]:
    """The train steps in the sizes of a config.

    Args:
      seeds: as in `control_steps.train_steps`; LAPO's steps are of one seed.
      one_row: as in `control_steps.train_steps`; LAPO's steps need it not.
      abstract: as in `train_step.placing`.

    Raises:
      InputError: a size or count that cannot be.
    """
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}; it must be >= 1")
    if not of_lapo(config):
        return control_steps.train_steps(config, mesh, one_row, abstract, seeds)
    if seeds > 1:
        raise InputError(f"--seeds is {seeds}; LAPO trains one seed a run")
    return lapo_steps.train_steps(config, mesh, abstract)


def alone(config: Any, mesh: Mesh) -> TrainStep:
    """The step of a small network, which is measured scanned and one a dispatch."""
    if of_lapo(config):
        return lapo_steps.decoder_step(config, mesh)
    return control_steps.td3_bc_step(config, mesh)


def fill(config: Any, count: int) -> Any:
    """The config with batches that `count` devices divide, and data for all of them."""
    return (lapo_steps if of_lapo(config) else control_steps).fill(config, count)


def of_lapo(config: Any) -> bool:
    """Whether this is a config of LAPO's experiment."""
    return "latent_action" in config
