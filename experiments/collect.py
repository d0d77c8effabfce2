"""Writes data sets: of a control task, with behaviour policies that it trains, or of a game.

    python -m experiments.collect --config=configs/dmc.py:walker_walk

Soft actor-critic agents (and explorers, for plan2explore) are trained one after another; a finished
one is kept in WORKDIR/agents and not trained again, an interrupted one continues from its last
checkpoint. Then WORKDIR/snapshots.npz holds their policies and --data_dir the data sets expert,
medium, medium_replay and plan2explore, of --config.data.trajectories each.
`--config.collect.collector=dreamer` and `--config.collect.explorer=plan2explore` put agents that
learn in their world model's imagination in their place; their data sets are parts of their replay.
`--config.collect.from_snapshots=true` skips the training and rolls out the policies that ship with
the package: about a minute a data set on two cores.

For a game, --config=configs/procgen.py:coinrun,small writes the data set that experiments.lapo
would make, of --config.data.train_frames and test_frames: played by the game's scripted expert
where it has one, else by the PPO policy that ships with the package.
`--config.collect.from_snapshots=false` trains a PPO expert instead, for any game; it is kept in
WORKDIR/snapshot.npz, which `--config.collect.snapshot=FILE` takes elsewhere.

Of a control task, WORKDIR/statistics.csv is the table of returns (the LAWM paper's Table 4),
returns.png their histograms (its Figure 3).
"""

import csv
import functools
import io
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments import launch
from experiments.launch import Run, Stopped
from experiments.progress import Progress

if TYPE_CHECKING:
    from etils import epath

    from lawm_jax.data.trajectory import Trajectory
    from lawm_jax.experts import Expert
    from lawm_jax.gathered import Gathered
    from lawm_jax.policies import Snapshots

COLUMNS = ("mean", "std", "min", "p25", "median", "p75", "max", "trajectories")


class Source(NamedTuple):
    """Where a data set comes from."""

    make: Callable[[], tuple[list["Trajectory"], dict[str, Any]]]  # trajectories and metadata
    origin: dict[str, str]  # the metadata that tells it from one that other agents made


def main(run: Run) -> None:
    """Writes the data sets of the config's task or game and summarises them."""
    from lawm_jax.data.shards import dataset_exists, read_dataset, write_dataset
    from lawm_jax.envs.procgen import GAMES
    from lawm_jax.errors import InputError
    from lawm_jax.gathered import TooFew
    from lawm_jax.online.dreamer_config import check_collectors
    from lawm_jax.policies import DATASETS

    _require_one_host()
    start = time.monotonic()
    if run.config.task in GAMES:
        _collect_frames(run, start)
        return
    check_collectors(run.config)
    task, wanted = run.config.task, run.config.data.trajectories
    names = {dataset: f"{task}/{dataset}_{wanted}" for dataset in DATASETS}
    _check_room(run, names.values())
    sources = _sources(run)
    statistics, returns = {}, {}
    for dataset, name in names.items():
        if dataset not in sources:
            print(f"{dataset}: skipped, no policy for it was trained", flush=True)
            continue
        make, origin = sources[dataset]
        if not dataset_exists(run.data_dir, name):
            try:
                trajectories, metadata = make()
            except TooFew as error:
                print(f"{dataset}: skipped, {error}", flush=True)
                continue
            write_dataset(run.data_dir, name, trajectories, metadata)
        written = read_dataset(run.data_dir, name)
        _check_origin(written.metadata, origin, f"{run.data_dir}/{name}")
        statistics[dataset] = written.metadata["return_statistics"]
        returns[dataset] = [trajectory.episode_return for trajectory in written.trajectories]
        print(f"wrote {name}, mean return {statistics[dataset]['mean']:.1f}", flush=True)
        run.stop.check()
    if not statistics:
        raise InputError(f"no data set of {wanted} trajectories could be written: see above")
    _write_table(run, statistics)
    _plot(run, returns)
    origins = {key: value for source in sources.values() for key, value in source.origin.items()}
    _finish(run, start, {**origins, "statistics": statistics})
    print((run.workdir / "statistics.csv").read_text())


def _check_room(run: Run, names: Iterable[str]) -> None:
    """Data sets that are in the way are named before hours of training, not after."""
    from lawm_jax.data.shards import dataset_exists
    from lawm_jax.errors import InputError

    trained = all(_path(run, agent).exists() for agent in _agents(run))
    if run.config.collect.from_snapshots or trained:
        return
    for name in names:
        if dataset_exists(run.data_dir, name):
            raise InputError(
                f"{run.data_dir} already holds {name}, made by other policies: collect into "
                "another --data_dir, such as --data_dir=data_own"
            )


def _require_one_host() -> None:
    import jax

    from lawm_jax.errors import InputError

    if jax.process_count() > 1:
        raise InputError("collecting uses one host: start it on one, with --distributed=off")


def _collect_frames(run: Run, start: float) -> None:
    """Writes the data set of a game's expert.

    Raises InputError where there is one of its name, or no expert to play it.
    """
    from experiments.data import choose_expert, frames_name, make_frames
    from experiments.expert import trained_snapshot
    from experiments.summary import summary
    from lawm_jax.data import records
    from lawm_jax.errors import InputError

    settings, name = run.config.collect, frames_name(run.config)
    if settings.snapshot and not settings.from_snapshots:
        raise InputError(
            f"collect.snapshot names {settings.snapshot}, but collect.from_snapshots=false trains "
            "an expert: leave one of them out"
        )
    path = settings.snapshot
    if not settings.from_snapshots:
        if not (run.workdir / "snapshot.npz").exists():  # said before the training, not after
            records.refuse_existing(run.data_dir, name)
        path = trained_snapshot(run)
    expert = choose_expert(run.config, path or None)
    directory = records.dataset_directory(run.data_dir, name)
    if settings.from_snapshots or not _made_before(directory, expert):
        make_frames(run, expert)
    splits = records.read_metadata(directory, "splits")[0]
    fingerprints = {split: values.pop("fingerprint") for split, values in splits.items()}
    about = {"kind": expert.kind, **expert.about}
    results = {"expert": about, "fingerprints": fingerprints, "statistics": splits}
    _finish(run, start, results)
    print(f"wrote {directory}\n\n{summary(results)}")


def _made_before(directory: "epath.Path", expert: "Expert") -> bool:
    """Whether a data set is there and this very expert made it, in a run that was interrupted."""
    from lawm_jax.data import records

    if not directory.exists():
        return False
    made = records.read_metadata(directory, "metadata")[0]
    return made.get("snapshot_sha256") == expert.about["snapshot_sha256"]


def _finish(run: Run, start: float, results: dict[str, Any]) -> None:
    import jax

    about = {
        "config": run.config.to_dict(),
        "command": run.command,
        "commit": run.commit,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "wall_clock_seconds": time.monotonic() - start,
    }
    part = run.workdir / "results.json.part"
    part.write_text(json.dumps(about | results, indent=2) + "\n")
    part.replace(run.workdir / "results.json")


def _sources(run: Run) -> dict[str, Source]:
    """The data sets that there are agents for, from the shipped policies or those trained here.

    Soft actor-critics' are rolled out from their policies; Dreamer's are parts of its replay.
    """
    from experiments.data import COLLECTION_SEED
    from lawm_jax import collect, gathered, policies

    settings, task = run.config.collect, run.config.task
    wanted = run.config.data.trajectories
    if settings.from_snapshots:
        snapshots = policies.load_snapshots(task, settings.snapshots or None)
        replays = []
    else:
        trained = {agent: _trained(run, agent) for agent in _agents(run)}
        replays = [trained[agent] for agent in trained if _is_dreamer(run, agent)]
        others = [trained[agent] for agent in trained if not _is_dreamer(run, agent)]
        snapshots = None
        if others:
            path = run.workdir / "snapshots.npz"
            policies.save_snapshots(path, policies.combine(others))
            snapshots = policies.load_snapshots(task, path)
    sources = {}
    for dataset in policies.DATASETS:
        collector = (
            gathered.PLAN2EXPLORE if dataset == "plan2explore" else gathered.DREAMER
        )
        gatherers = [replay for replay in replays if replay.collector == collector]
        if gatherers:
            make = functools.partial(gathered.make_dataset, task, dataset, wanted, gatherers)
            sources[dataset] = Source(make, {"replay_sha256": gathered.replay_digest(gatherers)})
        elif snapshots and snapshots.used_by[dataset].any():
            make = functools.partial(
                collect.make_dataset, task, dataset, wanted, COLLECTION_SEED, snapshots,
                run.stop.check,
            )
            sources[dataset] = Source(make, {"snapshots_sha256": snapshots.digest})
    return sources


class Agent(NamedTuple):
    """One agent to be trained."""

    explorer: bool
    seed: int


def _agents(run: Run) -> list[Agent]:
    counts = (False, run.config.collect.agents), (True, run.config.collect.explorers)
    return [Agent(explorer, seed) for explorer, count in counts for seed in range(count)]


def _name(agent: Agent) -> str:
    return f"{'explorer' if agent.explorer else 'agent'}{agent.seed}"


def _path(run: Run, agent: Agent) -> Path:
    return run.workdir / "agents" / f"{_name(agent)}.npz"


def _is_dreamer(run: Run, agent: Agent) -> bool:
    settings = run.config.collect
    return (settings.explorer if agent.explorer else settings.collector) != "sac"


def _trained(run: Run, agent: Agent) -> "Snapshots | Gathered":
    """Trains one agent, or reads it where it was trained before."""
    from lawm_jax import gathered, policies
    from lawm_jax.checkpoint import Checkpoints

    path, name = _path(run, agent), _name(agent)
    if _is_dreamer(run, agent):
        prepare, save, load = _prepare_dreamer, gathered.save, gathered.load
    else:
        prepare, save = _prepare_sac, policies.save_snapshots
        load = functools.partial(policies.load_snapshots, run.config.task)
    if path.exists():
        return load(path)
    train, agent_steps = prepare(run, agent)
    progress = Progress(name, agent_steps)
    curve = path.with_suffix(".jsonl")
    curve.parent.mkdir(parents=True, exist_ok=True)

    def log(step: int, metrics: dict[str, float]) -> None:
        progress.update(step, {"return": metrics["return"]})
        earlier = map(json.loads, curve.read_text().splitlines()) if curve.exists() else ()
        kept = [record for record in earlier if record["step"] < step]
        lines = [json.dumps(record) + "\n" for record in (*kept, {"step": step, **metrics})]
        curve.write_text("".join(lines))
        run.publish()

    checkpoints = Checkpoints(run.address / "checkpoints" / name)
    result = train(log=log, stop=lambda: run.stop.requested, checkpoints=checkpoints)
    checkpoints.close()
    progress.close()
    if result is None:
        raise Stopped
    save(path, result)
    run.publish()
    checkpoints.directory.rmtree()
    return load(path)


def _prepare_sac(run: Run, agent: Agent) -> tuple[Callable, int]:
    """The training of a soft actor-critic and its length in agent steps."""
    from lawm_jax.online import collector, sac

    settings = run.config.collect
    if agent.explorer:
        config = sac.SACConfig(intrinsic=True, n_step=1)
        training = collector.Training(
            settings.explorer_steps, snapshot_steps=settings.snapshot_steps
        )
    else:
        config = sac.SACConfig(target_entropy=settings.target_entropy)
        training = collector.Training(
            settings.agent_steps,
            steps_per_update=settings.steps_per_update,
            snapshot_steps=settings.snapshot_steps,
        )
    train = functools.partial(
        collector.train_agent, run.config.task, agent.seed, training, config
    )
    return train, training.agent_steps


def _prepare_dreamer(run: Run, agent: Agent) -> tuple[Callable, int]:
    """The training of a Dreamer, or plan2explore, and its length in agent steps."""
    from lawm_jax.envs.dmc import task_spec
    from lawm_jax.online import dreamer_collector
    from lawm_jax.online.dreamer_config import dreamer_config, dreamer_training

    config, spec = run.config, task_spec(run.config.task)
    training = dreamer_training(config, agent.explorer)
    train = functools.partial(
        dreamer_collector.train_agent, config.task, agent.seed, training,
        dreamer_config(config, spec.observation_size, spec.action_size, agent.explorer),
        config.collect.dreamer.normaliser_episodes,
    )
    return train, training.agent_steps


def _check_origin(metadata: dict[str, Any], origin: dict[str, str], where: str) -> None:
    """A data set of the same name that other agents made must not pass for this run's."""
    from lawm_jax.errors import InputError

    if any(metadata.get(key) != value for key, value in origin.items()):
        raise InputError(
            f"{where} exists and was made by other policies: remove it or change --data_dir"
        )


def _write_table(run: Run, statistics: dict[str, dict[str, float]]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["task", "dataset", *COLUMNS])
    for dataset, row in statistics.items():
        values = [f"{row[column]:.1f}" for column in COLUMNS[:-1]]
        writer.writerow([run.config.task, dataset, *values, row["trajectories"]])
    (run.workdir / "statistics.csv").write_text(table.getvalue())


def _plot(run: Run, returns: dict[str, list[float]]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(returns), 2.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: no global state, no display
    for axes, (dataset, values) in zip(
        figure.subplots(1, len(returns), squeeze=False)[0], returns.items(), strict=True
    ):
        axes.hist(values, bins=40, range=(0, max(1000.0, *values)), color="#0072B2")
        axes.set_title(dataset, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"episode return, {run.config.task}", fontsize=10)
    figure.supylabel("trajectories", fontsize=10)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    (run.workdir / "returns.png").write_bytes(image.getvalue())


if __name__ == "__main__":
    launch.run(main)
