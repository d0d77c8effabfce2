"""Which experiment runs which method of configs/dmc.py."""

from lawm_jax.errors import InputError
from lawm_jax.lawm.methods import METHODS
from lawm_jax.offline.methods import BASELINES

EXPERIMENTS = {"lawm": tuple(METHODS), "baselines": tuple(BASELINES)}


def experiment_of(method: str, first: str = "lawm") -> str:
    """The experiment that runs a method; raises InputError where none does.

    first: the experiment whose methods the message names first.
    """
    for experiment, methods in EXPERIMENTS.items():
        if method in methods:
            return experiment
    own_first = sorted(EXPERIMENTS, key=lambda name: name != first)
    choices = (f"{', '.join(EXPERIMENTS[name])} (experiments.{name})" for name in own_first)
    raise InputError(f"method is '{method}'; choose from {' or '.join(choices)}")


def check_method(method: str, experiment: str) -> None:
    """Raises InputError unless the experiment runs the method; names the one that does."""
    other = experiment_of(method, experiment)
    if other != experiment:
        raise InputError(
            f"method '{method}' is run by python -m experiments.{other}, with the same flags"
        )
