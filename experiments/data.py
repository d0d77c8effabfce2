"""The data set of a run: read from the data directory, or made there from shipped snapshots."""

from collections.abc import Sequence

import jax
from ml_collections import ConfigDict

from experiments.launch import Run, Stopped
from lawm_jax import collect, policies, runner
from lawm_jax.data.shards import Dataset, dataset_exists, read_dataset, write_dataset
from lawm_jax.data.trajectory import Trajectory, validate
from lawm_jax.data.windows import Split, split
from lawm_jax.envs.dmc import TaskSpec
from lawm_jax.errors import InputError

COLLECTION_SEED = 0  # the data set is the same whatever the seed of the run


def load_dataset(run: Run, spec: TaskSpec) -> Dataset:
    """Reads the run's data set and checks that it fits the task.

    Raises:
      InputError: there is none and none can be made; a shard is damaged; another task's data; the
        hosts of a run hold different data.
      Stopped: a signal came meanwhile.
    """
    data = run.config.data
    name = data.name or f"{spec.task}/{data.dataset}_{data.trajectories}"
    alone = jax.process_count() == 1
    poll = run.stop.check if alone else lambda: None  # several stop together, below

    def make() -> None:
        if not runner.is_main() or data.name or dataset_exists(run.data_dir, name):
            return
        print(f"making {name} in {run.data_dir} from shipped snapshots", flush=True)
        trajectories, metadata = collect.make_dataset(
            spec.task, data.dataset, data.trajectories, COLLECTION_SEED,
            policies.load_snapshots(spec.task), poll,
        )
        if not dataset_exists(run.data_dir, name):  # another run may have made the same meanwhile
            write_dataset(run.data_dir, name, trajectories, metadata)

    def read() -> Dataset:
        dataset = read_dataset(run.data_dir, name)
        validate(
            dataset.trajectories, where=name, observation_size=spec.observation_size,
            action_size=spec.action_size,
        )
        return dataset

    runner.all_or_none(make)
    dataset = runner.all_or_none(read)
    runner.require_equal(dataset.fingerprint, f"data in {run.data_dir}/{name}")
    if runner.on_any_process(run.stop.requested):
        raise Stopped
    return dataset


def split_dataset(
    config: ConfigDict, trajectories: Sequence[Trajectory], oracle: str | None
) -> Split:
    """Which trajectories are labelled, unlabelled and held out: the same for every method.

    oracle: for a method that needs unlabelled trajectories, the one to choose where there are none.

    Raises:
      InputError: a fraction out of range or too small, or that there are none.
    """
    data = config.data
    has_action = [trajectory.action is not None for trajectory in trajectories]
    parts = split(has_action, data.label_fraction, data.heldout_fraction, config.seed)
    if oracle and not len(parts.unlabelled):
        raise InputError(
            f"data.label_fraction {data.label_fraction} leaves no trajectory without labels "
            f"for method '{config.method}'; lower it, or choose method {oracle}, the oracle"
        )
    return parts
