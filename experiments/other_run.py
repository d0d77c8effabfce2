"""What another run has left: its config and its train state, for runs that take a part of it."""

import contextlib
from typing import Any

from etils import epath

from experiments.workdir import identity_of
from lawm_jax import bucket
from lawm_jax.checkpoint import Checkpoints, Restored
from lawm_jax.errors import InputError


def config_of(key: str, address: str, experiment: str) -> dict[str, Any]:
    """The config of the run of `experiment` whose work directory, or gs:// address, is named.

    key: the config's key that names it, for messages.

    Raises:
      InputError: it is none, or it has saved nothing yet.
    """
    bucket.connect(address)
    identity = identity_of(address)
    if identity is None:
        raise InputError(f"{key}: {address} is no work directory of a run: it has no config.json")
    if (found := identity.get("experiment")) != experiment:
        raise InputError(
            f"{key}: {address} is of experiments.{found}, not of experiments.{experiment}"
        )
    if not epath.Path(f"{address}/checkpoints").exists():
        raise InputError(_no_checkpoint(key, address))
    return identity["config"]


def newest(key: str, address: str, template: Any, fingerprint: str) -> Restored:
    """The newest checkpoint of that run, which is left as it is.

    Args:
      template: as `Checkpoints.restore` takes it.
      fingerprint: of this run's data, which must be that run's.

    Raises:
      InputError: there is none, it is damaged, or it comes from other data.
    """
    checkpoints = Checkpoints(f"{address}/checkpoints", read_only=True)
    with contextlib.closing(checkpoints):
        restored = checkpoints.restore(template)
    if restored is None:
        raise InputError(_no_checkpoint(key, address))
    if (found := restored.extra["fingerprint"]) != fingerprint:
        raise InputError(
            f"{key}: {address} was trained on other data (fingerprint {found[:12]}, here "
            f"{fingerprint[:12]})"
        )
    return restored


def _no_checkpoint(key: str, address: str) -> str:
    return f"{key}: {address} has no checkpoint yet: let that run go on first"
