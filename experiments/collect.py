"""Writes data sets: of a control task, with behaviour policies that it trains, or of a game.

    python -m experiments.collect --config=configs/dmc.py:walker_walk

Soft actor-critic agents (and explorers, for plan2explore) are trained one after another; a finished
one is kept in WORKDIR/agents and not trained again, an interrupted one continues from its last
checkpoint. Then WORKDIR/snapshots.npz holds their policies and --data_dir the data sets expert,
medium, medium_replay and plan2explore, of --config.data.trajectories each.
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
import io
import json
import time
from typing import TYPE_CHECKING, Any

from experiments import launch
from experiments.launch import Run, Stopped
from experiments.progress import Progress

if TYPE_CHECKING:
    from etils import epath

    from lawm_jax.experts import Expert
    from lawm_jax.policies import Snapshots

COLUMNS = ("mean", "std", "min", "p25", "median", "p75", "max", "trajectories")


def main(run: Run) -> None:
    """Writes the data sets of the config's task or game and summarises them."""
    from experiments.data import COLLECTION_SEED
    from lawm_jax import collect, policies
    from lawm_jax.data.shards import dataset_exists, read_dataset, write_dataset
    from lawm_jax.envs.procgen import GAMES
    from lawm_jax.errors import InputError

    _require_one_host()
    start = time.monotonic()
    if run.config.task in GAMES:
        _collect_frames(run, start)
        return
    task, wanted = run.config.task, run.config.data.trajectories
    names = {dataset: f"{task}/{dataset}_{wanted}" for dataset in policies.DATASETS}
    if not run.config.collect.from_snapshots and not (run.workdir / "snapshots.npz").exists():
        for name in names.values():  # said before hours of training, not after
            if dataset_exists(run.data_dir, name):
                raise InputError(
                    f"{run.data_dir} already holds {name}, made by other policies: collect into "
                    "another --data_dir, such as --data_dir=data_own"
                )
    snapshots = _snapshots(run)
    statistics, returns = {}, {}
    for dataset in policies.DATASETS:
        if not snapshots.used_by[dataset].any():
            print(f"{dataset}: skipped, no policy for it was trained", flush=True)
            continue
        name = names[dataset]
        if not dataset_exists(run.data_dir, name):
            trajectories, metadata = collect.make_dataset(
                task, dataset, wanted, COLLECTION_SEED, snapshots, run.stop.check
            )
            write_dataset(run.data_dir, name, trajectories, metadata)
        written = read_dataset(run.data_dir, name)
        _check_origin(written.metadata, snapshots.digest, f"{run.data_dir}/{name}")
        statistics[dataset] = written.metadata["return_statistics"]
        returns[dataset] = [trajectory.episode_return for trajectory in written.trajectories]
        print(f"wrote {name}, mean return {statistics[dataset]['mean']:.1f}", flush=True)
        run.stop.check()
    _write_table(run, statistics)
    _plot(run, returns)
    _finish(run, start, {"snapshots_sha256": snapshots.digest, "statistics": statistics})
    print((run.workdir / "statistics.csv").read_text())


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


def _snapshots(run: Run) -> "Snapshots":
    """The shipped policies, or those trained in this work directory."""

    from lawm_jax import policies

    settings = run.config.collect
    if settings.from_snapshots:
        return policies.load_snapshots(run.config.task, settings.snapshots or None)
    agents = [
        _agent(run, seed, explorer)
        for explorer, count in ((False, settings.agents), (True, settings.explorers))
        for seed in range(count)
    ]
    path = run.workdir / "snapshots.npz"
    policies.save_snapshots(path, policies.combine(agents))
    return policies.load_snapshots(run.config.task, path)


def _agent(run: Run, seed: int, explorer: bool) -> "Snapshots":
    """Trains one agent, or reads it where it was trained before."""
    from lawm_jax import policies
    from lawm_jax.checkpoint import Checkpoints
    from lawm_jax.online import collector, sac

    settings, task = run.config.collect, run.config.task
    name = f"{'explorer' if explorer else 'agent'}{seed}"
    path = run.workdir / "agents" / f"{name}.npz"
    if path.exists():
        return policies.load_snapshots(task, path)
    if explorer:
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
    progress = Progress(name, training.agent_steps)
    curve = run.workdir / "agents" / f"{name}.jsonl"
    curve.parent.mkdir(parents=True, exist_ok=True)

    def log(step: int, metrics: dict[str, float]) -> None:
        progress.update(step, {"return": metrics["return"]})
        earlier = map(json.loads, curve.read_text().splitlines()) if curve.exists() else ()
        kept = [record for record in earlier if record["step"] < step]
        lines = [json.dumps(record) + "\n" for record in (*kept, {"step": step, **metrics})]
        curve.write_text("".join(lines))
        run.publish()

    checkpoints = Checkpoints(run.address / "checkpoints" / name)
    snapshots = collector.train_agent(
        task, seed, training, config, log, lambda: run.stop.requested, checkpoints
    )
    checkpoints.close()
    progress.close()
    if snapshots is None:
        raise Stopped
    policies.save_snapshots(path, snapshots)
    run.publish()
    checkpoints.directory.rmtree()
    return snapshots


def _check_origin(metadata: dict[str, Any], digest: str, where: str) -> None:
    """A data set of the same name that other policies made must not pass for this run's."""
    from lawm_jax.errors import InputError

    if metadata.get("snapshots_sha256") != digest:
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
