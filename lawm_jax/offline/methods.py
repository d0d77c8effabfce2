"""TD3+BC, IDM-TD3+BC and behaviour cloning as configurations of one program."""

import dataclasses
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from lawm_jax.config_checks import (
    check_below_one,
    check_counts,
    check_not_negative,
    check_positive,
    check_run,
)
from lawm_jax.errors import InputError
from lawm_jax.offline.inverse_dynamics import InverseDynamicsConfig
from lawm_jax.offline.td3_bc import TD3BCConfig
from lawm_jax.runner import rows_per_device

SCHEDULE = ("steps_per_call", "checkpoint_every", "evaluate_every")


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What sets a baseline apart."""

    critics: bool  # without them the actor only imitates
    inverse_dynamics: bool  # unlabelled trajectories join, with the actions that it sees in them


BASELINES = {
    "td3_bc": Baseline(critics=True, inverse_dynamics=False),
    "idm_td3_bc": Baseline(critics=True, inverse_dynamics=True),
    "bc": Baseline(critics=False, inverse_dynamics=False),
}


class BaselineProgram(NamedTuple):
    """A baseline's settings, resolved from a config."""

    policy: TD3BCConfig
    labeller: InverseDynamicsConfig | None


def resolve(config: ConfigDict, action_size: int) -> BaselineProgram:
    """Turns a config as configs/dmc.py makes it into the program for actions of this size.

    Raises:
      InputError: unknown method, or a size or count that cannot be.
    """
    if config.method not in BASELINES:
        raise InputError(f"method is '{config.method}'; choose from {', '.join(BASELINES)}")
    baseline = BASELINES[config.method]
    _check(config)
    names = set(TD3BCConfig.__dataclass_fields__) - {"action_size", "critics"}
    policy = TD3BCConfig(
        action_size=action_size, critics=baseline.critics,
        **{name: config.td3_bc[name] for name in names},
    )
    if not baseline.critics:
        policy = dataclasses.replace(policy, policy_delay=1)
    if not baseline.inverse_dynamics:
        return BaselineProgram(policy, None)
    names = set(InverseDynamicsConfig.__dataclass_fields__) - {"action_size"}
    labeller = InverseDynamicsConfig(
        action_size=action_size, **{name: config.inverse_dynamics[name] for name in names}
    )
    return BaselineProgram(policy, labeller)


def check_rows(program: BaselineProgram, mesh: Mesh) -> None:
    """Raises InputError unless the mesh's devices divide every batch of the program."""
    rows_per_device(program.policy.batch_rows, mesh, "td3_bc.batch_rows")
    if program.labeller:
        rows_per_device(program.labeller.batch_rows, mesh, "inverse_dynamics.batch_rows")


def _check(config: ConfigDict) -> None:
    shared = ("steps", "batch_rows", "units", "layers", *SCHEDULE)
    check_counts(config, "td3_bc", "policy_delay", *shared)
    check_positive(config, "td3_bc", "learning_rate", "target_rate")
    check_not_negative(config, "td3_bc", "policy_noise", "noise_clip", "alpha")
    check_below_one(config, "td3_bc", "discount")
    check_counts(config, "inverse_dynamics", "validate_every", "validation_piece", *shared)
    check_positive(config, "inverse_dynamics", "learning_rate", "validation_fraction")
    check_not_negative(config, "inverse_dynamics", "context", "weight_decay")
    check_below_one(config, "inverse_dynamics", "dropout", "validation_fraction")
    check_run(config)
