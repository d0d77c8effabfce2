"""The two errors that a user is meant to read: one clear line, no traceback."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """Bad input (a config value, a name, a data set, a file): what, where and how to mend it."""


class TrainingError(RuntimeError):
    """Training cannot go on (a loss became NaN, the disk is full): which metric and step."""


def first_line(error: BaseException) -> str:
    """What another library's error says, as part of a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Makes an OSError in the block an InputError: what cannot be written (a flag's value), why."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} cannot be written: {first_line(error)}") from error
