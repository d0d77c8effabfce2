"""The two errors that a user is meant to read: one clear line, no traceback."""


class InputError(ValueError):
    """Bad input (a config value, a name, a data set, a file): what, where and how to mend it."""


class TrainingError(RuntimeError):
    """Training cannot go on (a loss became NaN, the disk is full): which metric and step."""


def first_line(error: BaseException) -> str:
    """What another library's error says, as part of a line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
