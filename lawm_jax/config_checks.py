"""Checks of config values that methods share: one clear line for a size or rate that cannot be.

A section may be one within another, as "online.decoder".
"""

import math
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict

from lawm_jax.errors import InputError


def check_counts(config: ConfigDict, section: str, *names: str) -> None:
    """Raises InputError unless each key of the section is at least 1."""
    for name in names:
        value = _values(config, section)[name]
        if value < 1:
            raise InputError(f"{section}.{name} is {value}; it must be >= 1")


def check_positive(config: ConfigDict, section: str, *names: str) -> None:
    """Raises InputError unless each key of the section is positive and finite."""
    for name in names:
        value = _values(config, section)[name]
        if not (0.0 < value < math.inf):
            raise InputError(f"{section}.{name} is {value}; it must be positive and finite")


def check_not_negative(config: ConfigDict, section: str, *names: str) -> None:
    """Raises InputError unless each key of the section is at least 0 and finite."""
    for name in names:
        value = _values(config, section)[name]
        if not (0.0 <= value < math.inf):
            raise InputError(f"{section}.{name} is {value}; it must be >= 0")


def check_below_one(config: ConfigDict, section: str, *names: str) -> None:
    """Raises InputError unless each key of the section is in [0, 1)."""
    for name in names:
        value = _values(config, section)[name]
        if not 0.0 <= value < 1.0:
            raise InputError(f"{section}.{name} is {value}; it must be in [0, 1)")


def check_share(config: ConfigDict, section: str, *names: str) -> None:
    """Raises InputError unless each key of the section is in [0, 1]."""
    for name in names:
        value = _values(config, section)[name]
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{section}.{name} is {value}; it must be in [0, 1]")


def check_whole_numbers(
    values: Iterable[Any], name: str, at_least: int = 1, distinct: bool = False
) -> None:
    """Raises InputError unless each value of this name is a whole number of at least that much.

    distinct: none may come twice.
    """
    values = tuple(values)
    if wrong := [x for x in values if type(x) is not int or x < at_least]:
        raise InputError(f"{name} has {wrong[0]!r}; each must be a whole number >= {at_least}")
    if distinct and len(set(values)) < len(values):
        raise InputError(f"{name} is {values}; name each once")


def check_seed(config: ConfigDict) -> None:
    """Raises InputError unless the seed fits into an int32 and is not negative."""
    if not 0 <= config.seed < 2**31:
        raise InputError(f"seed is {config.seed}; it must be at least 0 and below 2^31")


def check_run(config: ConfigDict) -> None:
    """Raises InputError unless the seed and the numbers of evaluated episodes can be."""
    for name in ("evaluation_episodes", "final_episodes"):
        if config.run[name] < 2:
            raise InputError(f"run.{name} is {config.run[name]}; an interval needs at least 2")
    check_seed(config)


def _values(config: ConfigDict, section: str) -> ConfigDict:
    """A section, or by dots one within another."""
    for part in section.split("."):
        config = config[part]
    return config
