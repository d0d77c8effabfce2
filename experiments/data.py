"""The data set of a run: read from the data directory, or made there where that takes minutes.

Control tasks' trajectories are rolled out from shipped snapshots, Procgen's frames played by
scripted experts and shipped PPO policies.
"""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import jax
from etils import epath
from ml_collections import ConfigDict

from experiments.launch import Run, Stopped
from experiments.progress import Progress
from lawm_jax import collect, experts, policies, runner
from lawm_jax.collect_procgen import write_expert_dataset
from lawm_jax.data.frame_shards import SPLITS, FrameDataset, read_frames
from lawm_jax.data.shards import Dataset, dataset_exists, read_dataset, write_dataset
from lawm_jax.data.trajectory import Trajectory, validate
from lawm_jax.data.windows import Split, split
from lawm_jax.envs.dmc import TaskSpec
from lawm_jax.errors import InputError
from lawm_jax.experts import Expert
from lawm_jax.ppo_snapshots import shipped

COLLECTION_SEED = 0  # the data set is the same whatever the seed of the run


class Fingerprinted(Protocol):
    """Data that say what they hold."""

    fingerprint: str


T = TypeVar("T", bound=Fingerprinted)


def poll_of(run: Run) -> Callable[[], None]:
    """What long work calls to be stopped by a signal; nothing on several hosts, which must agree.

    It raises Stopped.
    """
    return run.stop.check if jax.process_count() == 1 else lambda: None


def load_dataset(run: Run, spec: TaskSpec) -> Dataset:
    """Reads the run's data set and checks that it fits the task.

    Raises:
      InputError: there is none and none can be made; a shard is damaged; another task's data; the
        hosts of a run hold different data.
      Stopped: a signal came meanwhile.
    """
    data = run.config.data
    name = data.name or f"{spec.task}/{data.dataset}_{data.trajectories}"

    def make() -> None:
        print(f"making {name} in {run.data_dir} from shipped snapshots", flush=True)
        trajectories, metadata = collect.make_dataset(
            spec.task, data.dataset, data.trajectories, COLLECTION_SEED,
            policies.load_snapshots(spec.task), poll_of(run),
        )
        write_dataset(run.data_dir, name, trajectories, metadata)

    def read() -> Dataset:
        dataset = read_dataset(run.data_dir, name)
        validate(
            dataset.trajectories, where=name, observation_size=spec.observation_size,
            action_size=spec.action_size,
        )
        return dataset

    return _make_and_read(run, name, make, read)


class Frames(NamedTuple):
    """Both splits of a game's frames and the fingerprint of their content."""

    train: FrameDataset
    test: FrameDataset
    fingerprint: str


def load_frames(run: Run) -> Frames:
    """Reads the frames of the run's game, at most data.max_frames of each split.

    Raises:
      InputError: there are none and no expert at hand to make them; a shard is damaged; another
        game's data, or made with other settings; the hosts of a run hold different data.
      Stopped: a signal came meanwhile.
    """
    data, game = run.config.data, run.config.task
    if data.max_frames < 3:
        raise InputError(f"data.max_frames is {data.max_frames}; a window needs 3 frames")
    name = frames_name(run.config)
    if not data.name and not dataset_exists(run.data_dir, name):
        expert_of(run.config)  # said at once, and by every host

    def read() -> Frames:
        train, test = (
            read_frames(run.data_dir, name, split, game=game, max_frames=data.max_frames)
            for split in SPLITS
        )
        if not data.name:
            _check_settings(run, train)
        total = train.statistics["frames"]
        if total > data.max_frames:
            print(f"read {data.max_frames} of {total} frames (data.max_frames)", flush=True)
        parts = "".join(frames.fingerprint for frames in (train, test))
        return Frames(train, test, hashlib.sha256(parts.encode()).hexdigest())

    return _make_and_read(run, name, lambda: make_frames(run, expert_of(run.config)), read)


def frames_name(config: ConfigDict) -> str:
    """The name of the data set that a config of a game asks for."""
    kind = experts.kind_of(config.task, _prefers_ppo(config))
    return config.data.name or f"{config.task}/{kind}_{config.data.train_frames}"


def expert_of(config: ConfigDict) -> Expert:
    """The expert at hand that plays the data of a config's game.

    Raises:
      InputError: there is none, or a setting of it cannot be.
    """
    if not config.collect.from_snapshots:
        raise InputError(
            f"there is no {frames_name(config)} yet, and collect.from_snapshots=false leaves it to "
            f"an expert of your own: train it first, python -m experiments.collect "
            f"--config=configs/procgen.py:{config.task},{config.preset} "
            "--config.collect.from_snapshots=false"
        )
    return choose_expert(config, config.collect.snapshot or None)


def choose_expert(config: ConfigDict, snapshot: epath.PathLike | None) -> Expert:
    """The same with the given snapshot file of a PPO expert; None: what comes with the package."""
    return experts.choose(
        config.task, random_actions=config.data.random_actions,
        temperature=config.collect.temperature, snapshot=snapshot,
    )


def make_frames(run: Run, expert: Expert) -> None:
    """Writes the data set that an expert plays.

    Raises:
      InputError: it exists, or a setting cannot be.
      Stopped: a signal came meanwhile.
    """
    data, name = run.config.data, frames_name(run.config)
    print(f"making {name} in {run.data_dir} with the {expert.kind} expert", flush=True)
    progress = Progress("frames", data.train_frames + data.test_frames, unit="frames")
    with contextlib.closing(progress):
        write_expert_dataset(
            run.data_dir, name, expert, train_frames=data.train_frames,
            test_frames=data.test_frames, seed=COLLECTION_SEED, num_levels=data.num_levels,
            start_level=data.start_level, num_envs=data.num_envs, poll=poll_of(run),
            report=progress.update,
        )


def _prefers_ppo(config: ConfigDict) -> bool:
    return bool(config.collect.snapshot) or not config.collect.from_snapshots


def _check_settings(run: Run, train: FrameDataset) -> None:
    """A data set of the same name that was made otherwise must not pass for the run's."""
    made, config = train.metadata, run.config
    data, collect = config.data, config.collect
    levels = made.get("levels", {}).get("train", {})
    asked = made.get("asked_frames", {}).get("test", data.test_frames)  # older ones do not say
    settings = {
        "test_frames": (asked, data.test_frames),
        "num_envs": (made.get("num_envs"), data.num_envs),
        "num_levels": (levels.get("number") or 0, data.num_levels),
        "start_level": (levels.get("start"), data.start_level),
    }
    if experts.kind_of(config.task, _prefers_ppo(config)) == experts.SCRIPTED:
        settings["random_actions"] = made.get("random_actions"), data.random_actions
        version = expert_of(config).about["expert_version"]
        settings["expert_version"] = made.get("expert_version", 1), version
    else:
        settings["temperature"] = made.get("temperature"), collect.temperature
        if collect.from_snapshots and (collect.snapshot or config.task in shipped()):
            digest = expert_of(config).about["snapshot_sha256"]
            settings["snapshot_sha256"] = made.get("snapshot_sha256"), digest
    other = [f"{key} {value}" for key, (value, wanted) in settings.items() if value != wanted]
    if other:
        raise InputError(
            f"{run.data_dir}/{train.name} was made with other settings than the config's "
            f"({', '.join(other)}): change those, or choose another --data_dir"
        )


def _make_and_read(run: Run, name: str, make: Callable[[], None], read: Callable[[], T]) -> T:
    """Makes the data set where it is missing and the config names none; reads it on every host."""

    def make_once() -> None:
        missing = not run.config.data.name and not dataset_exists(run.data_dir, name)
        if runner.is_main() and missing:
            try:
                make()
            except InputError:
                if not dataset_exists(run.data_dir, name):
                    raise
                print(f"another run has made {name} meanwhile", flush=True)

    runner.all_or_none(make_once)
    dataset = runner.all_or_none(read)
    runner.require_equal(dataset.fingerprint, f"data in {run.data_dir}/{name}")
    if runner.on_any_process(run.stop.requested):
        raise Stopped
    return dataset


def split_dataset(
    config: ConfigDict, trajectories: Sequence[Trajectory], seed: int, oracle: str | None
) -> Split:
    """Which trajectories are labelled, unlabelled and held out: the same for every method.

    seed: draws the parts.
    oracle: for a method that needs unlabelled trajectories, the one to choose where there are none.

    Raises:
      InputError: a fraction out of range or too small, or that there are none.
    """
    data = config.data
    has_action = [trajectory.action is not None for trajectory in trajectories]
    parts = split(has_action, data.label_fraction, data.heldout_fraction, seed)
    if oracle and not len(parts.unlabelled):
        raise InputError(
            f"data.label_fraction {data.label_fraction} leaves no trajectory without labels "
            f"for method '{config.method}'; lower it, or choose method {oracle}, the oracle"
        )
    return parts
