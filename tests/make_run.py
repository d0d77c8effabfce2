"""Runs, as an experiment's `main` receives them, for tests that call what works on one."""

from etils import epath

from experiments.launch import Run, StopSignal


def make_run(directory, config, stop=None):
    """A run of a config under a directory: "work" is its work directory, "data" that of data."""
    workdir = epath.Path(directory) / "work"
    workdir.mkdir(parents=True, exist_ok=True)
    return Run(
        config, workdir, address=workdir, publish=lambda: None,
        data_dir=epath.Path(directory) / "data", render=False, profile=False,
        command="the command", commit="the commit", stop=stop or StopSignal(),
    )  # fmt: skip
