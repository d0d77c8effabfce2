"""What a finished LAPO run leaves: results.json, plots, a video."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments import outcome, shared_stages
from experiments.data import Frames
from experiments.lapo_job import (
    ACT,
    LEVELS,
    Job,
    Metrics,
    classes,
    cloning_actor,
    decoded_actor,
    decoding,
    describe,
    probe,
    returns_of,
    seed_of,
)
from experiments.raw_results import placed
from lawm_jax import plots, runner
from lawm_jax.data.frame_shards import FrameDataset
from lawm_jax.envs.evaluation import return_summary
from lawm_jax.envs.procgen import ACTION_NAMES, FRAME, NUM_ACTIONS, Procgen
from lawm_jax.lapo import embed, evaluate, learner, play
from lawm_jax.metrics import read_metrics

# results.json's name -> that of the metric of stage 1
MODEL = {
    "probe_accuracy": "probe_accuracy",
    "majority_accuracy": "majority_accuracy",
    "fdm_error": "heldout_fdm_error",
    "copy_last_frame_error": "heldout_copy_last_frame_error",
    "codebook_perplexity": "heldout_codebook_perplexity",
}
CURVES = {"online": "online_decoding", "scratch": "scratch"}  # phase -> results.json's name


def facts(data: Frames) -> dict[str, Any]:
    """What results.json says of the data and of the policy that they are of."""
    ends = data.train.notes.episode_return[data.train.frames.action == -1].astype(float)
    return {
        "dataset": {
            "name": data.train.name,
            "fingerprint": data.fingerprint,
            "kind": data.train.metadata.get("kind"),
            "train": _of_split(data.train),
            "test": _of_split(data.test),
        },
        "data_policy": return_summary(ends),
    }


def _of_split(data: FrameDataset) -> dict[str, Any]:
    """The statistics of a whole split, and how much of it the run has read."""
    ends = data.frames.action == -1
    return data.statistics | {"read": len(ends), "read_episodes": int(ends.sum())}


def report(job: Job, about_data: Mapping[str, Any]) -> None:
    """Writes plots, then results.json, whose presence marks the run as finished.

    about_data: what `facts` made of the data.
    """
    phases = _last_metrics(read_metrics(job.run.workdir))
    random, behaviour = returns_of(job, None, None), about_data["data_policy"]
    results: dict[str, Any] = {
        "dataset": about_data["dataset"],
        "random_policy": random,
        "data_policy": behaviour,
        "metrics": phases,
    }
    if taken := shared_stages.origin(job.run):
        results["pretrained"] = taken
    normalised = lambda x: _normalised(x, random, behaviour)
    if "latent_action" in phases:
        model = phases["latent_action"]
        results |= {key: model[name] for key, name in MODEL.items() if name in model}
        fresh = learner.init(
            job.program.model, job.program.latent_action, FRAME, job.run.config.seed
        )
        phases["untrained_idm"] = probe(job, *describe(job, fresh))
        _draw_predictions(job)
        _draw_latents(job)
    if "cloning" in phases:
        results["behaviour_cloning"] = normalised(phases["cloning"])
    decoded = [
        {"labels": count, **normalised(phases[f"decoder_{count}"])}
        for count in job.run.config.decoder.labels
        if f"decoder_{count}" in phases
    ]
    if decoded:
        results["offline_decoding"] = decoded
    if "distillation" in phases:
        results["offline_distillation"] = [
            {"labels": count, **normalised(_of_labels(phases["distillation"], count))}
            for count in job.program.distilled_labels
        ]
    for phase, key in CURVES.items():
        if phase in phases:
            results[key] = _online_curve(job, phase, normalised)
    _draw_curves(job, results)
    outcome.finish(job.run, job.session, results)


def _last_metrics(records: list[Mapping[str, Any]]) -> dict[str, Metrics]:
    """Phase -> the newest value of each of its metrics."""
    phases: dict[str, Metrics] = {}
    for record in records:
        kept = {name: x for name, x in record.items() if name not in ("step", "phase")}
        phases.setdefault(record["phase"], {}).update(kept)
    return phases


def _of_labels(metrics: Metrics, count: int) -> Metrics:
    """The metrics of the policy that was distilled from the decoder of so many labels."""
    suffix = f"_{count}"
    return {name.removesuffix(suffix): x for name, x in metrics.items() if name.endswith(suffix)}


def _normalised(metrics: Metrics, random: Metrics, behaviour: Metrics) -> Metrics:
    """A policy's mean return and its interval, and both with random = 0 and data policy = 1.

    The latter's interval has the errors of the two references as well. Without it and the mean
    where the references are equal.
    """
    result = {name: metrics[name] for name in ("return_mean", "return_ci95")}
    result["episodes"] = int(metrics["episodes"])
    if random["return_mean"] != behaviour["return_mean"]:
        place, half = placed(metrics, random, behaviour)
        result |= {"normalised": place, "normalised_ci95": half}
    return result


def _online_curve(
    job: Job, phase: str, normalised: Callable[[Metrics], Metrics]
) -> list[Metrics]:
    """What the policy of a phase earned when it was played, after so many frames of training."""
    per_update = getattr(job.program, phase).ppo.rollout_frames
    return [
        {"frames": record["step"] * per_update, **normalised(record)}
        for record in read_metrics(job.run.workdir)
        if record["phase"] == phase and "return_mean" in record
    ]


def _draw_curves(job: Job, results: Mapping[str, Any]) -> None:
    directory, records = job.run.workdir / "plots", read_metrics(job.run.workdir)
    for phase in job.session.state:
        if not phase.startswith("decoder_"):
            plots.losses(directory / f"{phase}_losses.png", records, phase)
    references = {
        "random": results["random_policy"]["return_mean"],
        "data policy": results["data_policy"]["return_mean"],
    }
    lines = dict(references)
    if "behaviour_cloning" in results:
        lines["cloning, all labels"] = results["behaviour_cloning"]["return_mean"]
    names = {"offline_decoding": "decoded latent policy", "offline_distillation": "distilled"}
    if curves := {name: results[key] for key, name in names.items() if key in results}:
        plots.decoding_curves(directory / "offline_decoding.png", curves, lines)
    names = {"online_decoding": "online decoding", "scratch": "PPO from scratch"}
    if curves := {name: results[key] for key, name in names.items() if key in results}:
        plots.online_curves(directory / "online_decoding.png", curves, references)


def _draw_predictions(job: Job) -> None:
    """Real and predicted next frames of held-out windows, one for each of the commonest latents.

    And what every one of these latents makes of the first window's frame. Without a codebook they
    are those of the first windows.
    """
    model, state = job.program.model, runner.local(job.session.state["latent_action"])
    seen = evaluate.describe(model, state, job.test, job.unseen)
    vq = model.idm.vq.enabled
    chosen = evaluate.examples(seen if vq else seen._replace(indices=np.arange(len(seen.z))))
    steps, z = job.unseen[chosen], seen.quantised[chosen]
    predict = lambda steps: evaluate.predicted_frames(model, state, job.test, steps, z)
    columns = [",".join(map(str, seen.indices[i].ravel())) if vq else "-" for i in chosen]
    plots.frame_table(job.run.workdir / "plots" / "predictions.png", columns, {
        "frame": job.test.observation[steps],
        "next": job.test.observation[steps + 1],
        "predicted": predict(steps),
        "of the first": predict(np.repeat(steps[:1], len(steps))),
    })


def _draw_latents(job: Job) -> None:
    """Latents of held-out windows in the plane, before and after the bottleneck, by true action."""
    model, state = job.program.model, runner.local(job.session.state["latent_action"])
    seen = evaluate.describe(model, state, job.test, job.unseen)
    latents = {"continuous": seen.z}
    if model.idm.vq.enabled:
        latents["quantised"] = seen.quantised
    panels = {}
    for name, z in latents.items():
        points, method = embed.plane(z, job.run.config.seed)
        panels[f"{name} latents, {method}"] = points
    merge = classes(job)
    action = np.asarray(merge or range(NUM_ACTIONS))[seen.action]
    title = "actions, merged" if merge else "action"
    path = job.run.workdir / "plots" / "latents.png"
    plots.coloured_points(path, panels, action, ACTION_NAMES, title)


def video(job: Job) -> None:
    """A video of the policy with most labels, or of behaviour cloning where there is no decoder."""
    state = {phase: runner.local(part) for phase, part in job.session.state.items()}
    count = max(job.run.config.decoder.labels)
    decoder = f"decoder_{count}"
    if decoder in state:
        actor = decoded_actor(job)
        params, _ = decoding(job, state[decoder].params, count)
    elif "cloning" in state:
        actor, params = cloning_actor(job), state["cloning"].params
    else:
        print("no video: no stage of this run makes a policy", flush=True)
        return
    frames: list[np.ndarray] = []

    def act(params: Any, observation: np.ndarray, seed: int, step: int) -> jax.Array:
        frames.append(observation[0].repeat(4, 0).repeat(4, 1))
        return actor(params, observation, seed, step)

    with contextlib.closing(Procgen(job.run.config.task, 1, seed_of(job.run, LEVELS))) as env:
        returns = play.play(env, act, params, 1, seed_of(job.run, ACT))
    outcome.write_video(job.run, frames, returns[0])
