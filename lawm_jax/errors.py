"""The two errors that a user is meant to read: one clear line, no traceback."""


class InputError(ValueError):
    """Bad input (a config value, a name, a data set, a file): what, where and how to mend it."""


class TrainingError(RuntimeError):
    """Training cannot go on (a loss became NaN, the disk is full): which metric and step."""
