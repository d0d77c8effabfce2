"""DeepMind Control from state: LAWM, C-LAP and a plain Dreamer on one task and one data set.

    python -m experiments.lawm --config=configs/dmc.py:TASK[,DATASET][,PRESET]

TASK is a control-suite task (cheetah_run, walker_walk and hopper_stand ship with data), DATASET one
of expert, medium, medium_replay (the default) and plan2explore, PRESET one of

  default  2 CPU cores, about 10 minutes, small networks, 400 trajectories
  tiny     under a minute: does every step of the job once, learns nothing; for tests
  large    the paper's scale: 2,000 trajectories, networks of 512, the pure ELBO; for an accelerator
"""

import ml_collections

DATASETS = ("expert", "medium", "medium_replay", "plan2explore")
PRESETS = ("default", "tiny", "large")


def get_config(arg: str = "cheetah_run") -> ml_collections.ConfigDict:
    """Parses "task[,dataset][,preset]" and returns a locked config with every key declared."""
    task, *rest = [part.strip() for part in arg.split(",")]
    dataset, preset = "medium_replay", "default"
    for part in rest:
        if part in DATASETS:
            dataset = part
        elif part in PRESETS:
            preset = part
        else:
            raise ValueError(
                f"configs/dmc.py: '{part}' is neither a dataset ({', '.join(DATASETS)}) "
                f"nor a preset ({', '.join(PRESETS)})"
            )

    config = ml_collections.ConfigDict()
    config.task = task
    config.preset = preset
    config.method = "lawm"  # lawm | c_lap (labelled trajectories only) | dreamer (no latent action)
    config.seed = 0
    config.data = _data(dataset)
    config.collect = _collect(task)
    if preset == "tiny":
        _tiny(config)
    elif preset == "large":
        _large(config)
    return config.lock()


def _data(dataset: str) -> ml_collections.ConfigDict:
    data = ml_collections.ConfigDict()
    data.dataset = dataset  # made from shipped snapshots where the data directory has none
    data.name = ""  # "NAME/CONFIG" of a data set of one's own in --data_dir; "" derives it
    data.trajectories = 400
    data.label_fraction = 0.05  # share of the trajectories that keep their actions
    data.heldout_fraction = 0.05  # share kept out of training, for open-loop and action errors
    return data


def _collect(task: str) -> ml_collections.ConfigDict:
    collect = ml_collections.ConfigDict()
    return collect


def _tiny(config: ml_collections.ConfigDict) -> None:
    config.data.trajectories = 20
    config.data.label_fraction = 0.2


def _large(config: ml_collections.ConfigDict) -> None:
    config.data.trajectories = 2000
