"""Which experiment runs which method of configs/dmc.py."""

from lawm_jax.errors import InputError
from lawm_jax.lawm.methods import METHODS
from lawm_jax.offline.methods import BASELINES

EXPERIMENTS = {"lawm": tuple(METHODS), "baselines": tuple(BASELINES)}


def check_method(method: str, experiment: str) -> None:
    """Raises InputError unless the experiment runs the method; names the one that does."""
    if method in EXPERIMENTS[experiment]:
        return
    for other, methods in EXPERIMENTS.items():
        if method in methods:
            raise InputError(
                f"method '{method}' is run by python -m experiments.{other}, with the same flags"
            )
    choices = (f"{', '.join(m)} (experiments.{name})" for name, m in EXPERIMENTS.items())
    raise InputError(f"method is '{method}'; choose from {' or '.join(choices)}")
