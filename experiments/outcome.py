"""How an experiment ends: episodes in the simulator, results.json, plots, a video."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import launch
from experiments.summary import summary
from experiments.training import Session
from lawm_jax import plots, runner
from lawm_jax.checkpoint import state_digest
from lawm_jax.data.shards import Dataset
from lawm_jax.data.trajectory import return_statistics
from lawm_jax.data.windows import Split
from lawm_jax.envs.dmc import ControlSuite
from lawm_jax.envs.evaluation import Evaluation
from lawm_jax.errors import InputError
from lawm_jax.metrics import read_metrics
from lawm_jax.seeds import derive
from lawm_jax.statistics import student_half_width

FRAMES_PER_SECOND = 20  # of the video


def simulator(task: str, seed: int, episodes: int, step: int) -> ControlSuite:
    """Fresh environments, with a seed of their own for every evaluation of a run.

    seed, step: of the agent that is evaluated.
    """
    return ControlSuite(task, episodes, seed=derive(seed, step))


def conclude(run: launch.Run, write: Callable[[], None], video: Callable[[], None]) -> None:
    """Ends a run on the process that writes, while the others wait.

    write: writes the results; called unless they are there already.
    video: writes one of the final policy; called where it is asked for.
    """

    def work() -> None:
        if not runner.is_main():
            return
        if not (run.workdir / "results.json").exists():
            write()
        if run.render:
            video()

    runner.all_or_none(work)


class Seed(NamedTuple):
    """One seed of a run at its end."""

    seed: int
    parts: Split
    final: Evaluation
    errors: dict[str, float]  # of the models on held-out trajectories


def report(
    run: launch.Run,
    session: Session,
    dataset: Dataset,
    seeds: Sequence[Seed],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes plots, then results.json, whose presence marks the run as finished.

    Figures of several seeds are means over them, and the interval of the return is over seeds; each
    seed's own are under "seeds". `errors` join the last metrics that were logged.

    more: further sections of results.json.
    """
    records = read_metrics(run.workdir)
    statistics = return_statistics(dataset.trajectories)
    each = [
        {"seed": one.seed, "evaluation": one.final.summary(), "metrics": one.errors}
        for one in seeds
    ]
    evaluation = mean_of([one["evaluation"] for one in each])
    if len(each) > 1:
        means = [one["evaluation"]["return_mean"] for one in each]
        evaluation["return_ci95"] = student_half_width(means)
    last: dict[str, Any] = {}
    for record in records:
        last |= {name: x for name, x in record.items() if name not in ("step", "phase")}
    parts = seeds[0].parts
    results = {
        "dataset": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "trajectories": len(dataset.trajectories),
            "labelled_trajectories": len(parts.labelled),
            "heldout_trajectories": len(parts.heldout),
            "return_statistics": statistics,
        },
        "evaluation": evaluation,
        "metrics": last | mean_of([one.errors for one in seeds]),
        **(more or {}),
    }
    if len(each) > 1:
        results["seeds"] = each
    directory = run.workdir / "plots"
    directory.mkdir(exist_ok=True)
    returns = [t.episode_return for t in dataset.trajectories]
    plots.learning_curve(directory / "learning_curve.png", records, statistics)
    plots.return_histogram(directory / "returns.png", returns, evaluation["return_mean"])
    finish(run, session, results)


def mean_of(seeds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Each metric's mean over the seeds that have it."""
    if len(seeds) == 1:
        return dict(seeds[0])
    names = dict.fromkeys(name for one in seeds for name in one)
    return {name: float(np.mean([one[name] for one in seeds if name in one])) for name in names}


def finish(run: launch.Run, session: Session, results: dict[str, Any]) -> None:
    """Writes results.json, with what every run says of itself, and prints the summary."""
    about = {
        "config": json.loads(run.config.to_json_best_effort()),
        "command": run.command,
        "commit": run.commit,
        "seed": run.config.seed,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "wall_clock_seconds": session.seconds,
        "compile_seconds": session.compile_seconds,
        "aside_seconds": session.aside_seconds,
    }
    results = about | results | {"state_digest": state_digest(session.state)}
    part = run.workdir / "results.json.part"
    part.write_text(json.dumps(results, indent=2) + "\n")
    part.replace(run.workdir / "results.json")
    print(f"\n{summary(results)}\n\nresults and plots in {run.address}", flush=True)


def render(run: launch.Run, act: Callable[..., Any]) -> None:
    """Writes a video of one episode of the policy `act`, or says why there is none."""
    from lawm_jax.envs import reference

    try:
        os.environ["MUJOCO_GL"] = reference.renderer()
    except InputError as error:
        print(f"no video: {error}", flush=True)
        return
    frames, episode_return = reference.render_episode(run.config.task, act, None, run.config.seed)
    write_video(run, frames, episode_return)


def write_video(run: launch.Run, frames: Sequence[np.ndarray], episode_return: float) -> None:
    """Writes the frames of an episode, [H, W, 3] uint8 each, as WORKDIR/policy.mp4."""
    import imageio

    path = run.workdir / "policy.mp4"
    imageio.mimwrite(str(path), frames, fps=FRAMES_PER_SECOND, macro_block_size=None)
    kept = run.address / path.name
    print(f"video of an episode with return {episode_return:.0f}: {kept}", flush=True)
