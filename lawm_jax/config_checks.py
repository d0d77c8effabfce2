"""Checks of config values that methods share: one clear line for a size or rate that cannot be."""

import math

from ml_collections import ConfigDict

from lawm_jax.errors import InputError


def check_counts(config: ConfigDict, section: str, *names: str) -> None:
    """Raises InputError unless each key of the section is at least 1."""
    for name in names:
        if config[section][name] < 1:
            raise InputError(f"{section}.{name} is {config[section][name]}; it must be >= 1")


def check_positive(config: ConfigDict, section: str, *names: str) -> None:
    """Raises InputError unless each key of the section is positive and finite."""
    for name in names:
        value = config[section][name]
        if not (0.0 < value < math.inf):
            raise InputError(f"{section}.{name} is {value}; it must be positive and finite")


def check_not_negative(config: ConfigDict, section: str, *names: str) -> None:
    """Raises InputError unless each key of the section is at least 0 and finite."""
    for name in names:
        value = config[section][name]
        if not (0.0 <= value < math.inf):
            raise InputError(f"{section}.{name} is {value}; it must be >= 0")


def check_below_one(config: ConfigDict, section: str, *names: str) -> None:
    """Raises InputError unless each key of the section is in [0, 1)."""
    for name in names:
        value = config[section][name]
        if not 0.0 <= value < 1.0:
            raise InputError(f"{section}.{name} is {value}; it must be in [0, 1)")


def check_run(config: ConfigDict) -> None:
    """Raises InputError unless the seed and the numbers of evaluated episodes can be."""
    for name in ("evaluation_episodes", "final_episodes"):
        if config.run[name] < 2:
            raise InputError(f"run.{name} is {config.run[name]}; an interval needs at least 2")
    if not 0 <= config.seed < 2**31:
        raise InputError(f"seed is {config.seed}; it must be at least 0 and below 2^31")
