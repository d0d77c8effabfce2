"""Turns a folder of trajectories in another program's format into a data set.

    python -m experiments.convert --format=aime --source=walker-plan2explore-buffer \\
        --task=walker_walk --name=walker_walk/own

Formats: `aime`, one .npz a trajectory with named parts of the observation, `reward` and
`pre_action` (the action that led to the row, zeros in the first); `vd4rl`, Dreamer-style .npz or
.hdf5 with `observation` or named parts, `action`, `reward` and `is_first` or `step_type`. Files
without actions become unlabelled trajectories. lawm_jax/data/convert.py says more.

    python -m experiments.convert --format=lapo --source=expert_data/bigfish \\
        --task=bigfish --name=bigfish/published

`lapo`, the published chunks of Procgen frames (lawm_jax/data/convert_procgen.py).
"""

import sys

from absl import flags

FORMATS = ("aime", "vd4rl", "lapo")


def main(argv: list[str]) -> int:
    """Converts what the command line says, prints one line and returns the exit code."""
    values = _flags()
    if {"-h", "-help", "--help"} & set(argv[1:]):
        print(f"{__doc__}\n{values.main_module_help()}")
        return 0
    from lawm_jax.errors import InputError, TrainingError

    try:
        rest = values(argv)[1:]
        if rest:
            raise InputError(f"unexpected argument '{rest[0]}'")
        if not (values.format and values.source and values.name):
            raise InputError("--format, --source and --name are required (see --help)")
        if values.format == "lapo":
            print(convert_frames(values.source, values.name, values.data_dir, values.task,
                                 values.done))  # fmt: skip
        else:
            print(convert(values.format, values.source, values.name, values.data_dir, values.task,
                          tuple(values.keys)))  # fmt: skip
    except (flags.Error, InputError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def convert(
    format_name: str, source: str, name: str, data_dir: str, task: str, keys: tuple[str, ...]
) -> str:
    """Writes the data set and returns a summary of it.

    Args:
        format_name: one of FORMATS.
        source: folder of files.
        name: "NAME/CONFIG" of the data set.
        data_dir: where data sets lie.
        task: control-suite task whose sizes and observation order are expected; "" for none.
        keys: parts of the observation in order; empty takes the task's.

    Raises:
        InputError: bad files, or sizes that are not the task's.
    """
    from lawm_jax.data import convert as formats
    from lawm_jax.data import shards, trajectory
    from lawm_jax.envs import dmc
    from lawm_jax.errors import InputError

    if shards.dataset_exists(data_dir, name):  # before the work of reading
        raise InputError(f"data set '{name}' exists in {data_dir}: choose another --name")
    spec = dmc.task_spec(task) if task else None
    if spec and not keys:
        keys = spec.observation_keys
    trajectories = list(formats.READERS[format_name](source, keys))
    trajectory.validate(
        trajectories,
        where=source,
        observation_size=spec.observation_size if spec else None,
        action_size=spec.action_size if spec else None,
    )
    returns = trajectory.return_statistics(trajectories)
    metadata = {
        "format": format_name,
        "source": source,
        "task": task or None,
        "observation_keys": list(keys),
        "return_statistics": returns,
    }
    directory = shards.write_dataset(data_dir, name, trajectories, metadata)
    labelled = sum(t.action is not None for t in trajectories)
    steps = sum(t.length for t in trajectories)
    figures = ", ".join(f"{key} {returns[key]:.1f}" for key in ("mean", "std", "min", "max"))
    return (
        f"{name}: {len(trajectories)} trajectories ({labelled} labelled), {steps} steps, "
        f"return {figures}, written to {directory}"
    )


def convert_frames(source: str, name: str, data_dir: str, game: str, done: str) -> str:
    """Writes a data set of Procgen frames and returns a summary of it.

    Raises:
        InputError: bad files or an unknown game.
    """
    from lawm_jax.data import convert_procgen, records
    from lawm_jax.errors import InputError

    if not game:
        raise InputError("--task is required: the game, e.g. bigfish")
    directory = convert_procgen.convert_lapo(source, data_dir, name, game, done)
    train = records.read_metadata(directory, "splits")[0]["train"]
    return (
        f"{name}: {train['frames']} frames of {train['episodes']} episodes to train on, mean "
        f"return {train['mean_return']:.2f}, written to {directory}"
    )


def _flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_enum("format", None, FORMATS, "format of the files", flag_values=values)
    flags.DEFINE_string("source", None, "folder that holds them", flag_values=values)
    flags.DEFINE_string("name", None, "NAME/CONFIG of the data set", flag_values=values)
    flags.DEFINE_string("data_dir", "data", "where data sets lie", flag_values=values)
    flags.DEFINE_string(
        "task", "", "control-suite task, e.g. walker_walk: gives --keys and checks the sizes; "
        "with --format=lapo the game",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "done", "auto", ("auto", "last", "first"),
        "with --format=lapo: which row of an episode is marked done; auto sees where frames jump",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list(
        "keys", [], "parts of the observation in order, e.g. orientations,height,velocity",
        flag_values=values,
    )  # fmt: skip
    return values


if __name__ == "__main__":
    sys.exit(main(sys.argv))
