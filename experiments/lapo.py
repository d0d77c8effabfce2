"""LAPO on one Procgen game: from frames without actions to a policy that acts (LAPO section 4).

    python -m experiments.lapo --config=configs/procgen.py:miner,small

Data, then the stages of --config.stages one after another: latent_action (inverse and forward
dynamics with a codebook between them, from frames alone), latent_policy (clones the latent
actions), cloning (behaviour cloning on all true actions) and supervised_idm as references, decoder
(true actions from latent ones by a few labels, one decoder for each of decoder.labels). Each policy
is played in the game when its training ends; normalised returns have the random policy at 0 and the
data's at 1.

Online decoding and PPO from scratch are not part of this program: it does not read the config's
sections `online` and `scratch` but to check them.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from experiments import launch, outcome
from experiments.data import Frames, load_frames, poll_of
from experiments.training import Session, check_schedule
from lawm_jax import plots, runner
from lawm_jax.data.frames import FrameArrays, FrameShards, draw_steps, shard_frames, window_steps
from lawm_jax.envs.evaluation import return_summary
from lawm_jax.envs.procgen import FRAME, NUM_ACTIONS, Procgen, check_game
from lawm_jax.errors import InputError
from lawm_jax.lapo import decode, evaluate, imitation, learner, play
from lawm_jax.lapo.evaluate import Description
from lawm_jax.lapo.program import Program, check_rows, resolve
from lawm_jax.metrics import read_metrics
from lawm_jax.vision import scale

STAGES = ("latent_action", "latent_policy", "cloning", "supervised_idm", "decoder")
NEEDS = {"latent_policy": ("latent_action",), "decoder": ("latent_action", "latent_policy")}
TRAIN, TEST, PLAY, RANDOM = range(4)  # tags of what the run's seed draws
# results.json's name -> that of the metric of stage 1
MODEL = {
    "probe_accuracy": "probe_accuracy",
    "majority_accuracy": "majority_accuracy",
    "fdm_error": "heldout_fdm_error",
    "copy_last_frame_error": "heldout_copy_last_frame_error",
    "codebook_perplexity": "heldout_codebook_perplexity",
}
Metrics = dict[str, float]


class Job(NamedTuple):
    """What every stage works with."""

    run: launch.Run
    program: Program
    mesh: Mesh
    session: Session
    train: FrameArrays
    test: FrameArrays
    shards: FrameShards
    seen: np.ndarray  # windows of the training frames that probes learn from
    unseen: np.ndarray  # windows of held-out frames that everything is measured on
    labelled: np.ndarray  # windows whose actions decoders may see, as many as the largest needs


def main(run: launch.Run) -> None:
    """Runs the whole job, from wherever its last checkpoint stands."""
    config = run.config
    check_game(config.task)
    program = resolve(config, FRAME, NUM_ACTIONS)
    stages = chosen_stages(config.stages)
    check_schedule(config, "run")
    mesh = runner.make_mesh()
    check_rows(config, mesh)

    data = load_frames(run)
    train, test = data.train.frames, data.test.frames
    labels = tuple(config.decoder.labels) if "decoder" in stages else (1,)
    labelled = draw_steps(train, max(labels), config.seed)
    shards = runner.shard(shard_frames(train, mesh.size), mesh)
    state = _initial_state(program, stages, labels, config.seed)
    state = {phase: runner.replicate(part, mesh) for phase, part in state.items()}
    session = Session(run, state, data.fingerprint)
    seen, unseen = _windows(run, train, TRAIN), _windows(run, test, TEST)
    job = Job(run, program, mesh, session, train, test, shards, seen, unseen, labelled)

    if "latent_action" in stages:
        _latent_action(job)
    if "latent_policy" in stages:
        _latent_policy(job)
    if "cloning" in stages:
        _cloning(job)
    if "supervised_idm" in stages:
        _supervised_idm(job)
    if "decoder" in stages:
        _decoders(job, labels)
    job.session.close()
    outcome.conclude(run, lambda: _report(job, data), lambda: _video(job))


def chosen_stages(text: str) -> tuple[str, ...]:
    """The stages that the config names, in the order in which they run.

    Raises:
      InputError: an unknown one, none, or one without those that it needs.
    """
    names = {name.strip() for name in text.split(",")}
    if unknown := sorted(names - set(STAGES)):
        raise InputError(f"stages names '{unknown[0]}'; choose from {', '.join(STAGES)}")
    for name in names:
        if missing := [need for need in NEEDS.get(name, ()) if need not in names]:
            raise InputError(f"stages has {name} without {' and '.join(missing)}, which it needs")
    return tuple(name for name in STAGES if name in names)


def _initial_state(
    program: Program, stages: tuple[str, ...], labels: tuple[int, ...], seed: int
) -> dict[str, Any]:
    """A fresh train state for each phase."""
    state = {}
    if "latent_action" in stages:
        state["latent_action"] = learner.init(program.model, program.latent_action, FRAME, seed)
    stack = (*FRAME[:2], 3 * FRAME[2])
    for phase, network, settings, shape in (
        ("latent_policy", program.policy, program.latent_policy, FRAME),
        ("cloning", program.cloner, program.cloning, FRAME),
        ("supervised_idm", program.inverse, program.supervised_idm, stack),
    ):
        if phase in stages:
            state[phase] = imitation.init(network, settings, shape, seed)
    if "decoder" in stages:
        size = program.model.idm.vq.latent_size
        for count in labels:
            decoder = decode.init(program.decoder, program.decoding, size, seed)
            state[f"decoder_{count}"] = decoder
    return state


def _windows(run: launch.Run, frames: FrameArrays, tag: int) -> np.ndarray:
    """The steps of evaluation.windows random windows, or of all where there are fewer."""
    count = min(run.config.evaluation.windows, len(window_steps(frames.episode)))
    return draw_steps(frames, count, _seed(run, tag))


def _seed(run: launch.Run, tag: int) -> int:
    return int(np.random.SeedSequence([run.config.seed, tag]).generate_state(1)[0] >> 1)


# ---- stages


def _latent_action(job: Job) -> None:
    """Stage 1: the inverse and forward dynamics and their codebook, from frames alone."""
    model, settings = job.program.model, job.program.latent_action

    def measure(state: learner.LatentActionState) -> Metrics:
        seen, unseen = _describe(job, state)
        errors = evaluate.prediction_metrics(model, unseen)
        errors = {f"heldout_{name}": value for name, value in errors.items()}
        return errors | _probes(job, seen, unseen)

    job.session.train(
        "latent_action",
        runner.data_parallel(learner.make_step(model, settings, job.mesh.size), job.mesh),
        shared=None,
        sharded=job.shards,
        total=settings.steps,
        evaluate=measure,
        shown=("fdm_error", "copy_last_frame_error", "perplexity"),
    )


def _latent_policy(job: Job) -> None:
    """Stage 2: the policy that regresses the frozen inverse dynamics' latent actions."""
    program = job.program
    frozen = job.session.state["latent_action"].params
    z = evaluate.latents(program.model, runner.local(frozen), job.test, job.unseen)

    def measure(state: imitation.ImitationState) -> Metrics:
        return evaluate.latent_policy_metrics(
            program.policy, state.params, job.test, job.unseen, z
        )

    loss = imitation.latent_policy_loss(program.policy, program.model)
    _imitate(job, "latent_policy", loss, measure, "z_mean_square", {"idm": frozen["idm"]})


def _cloning(job: Job) -> None:
    """Behaviour cloning on all true actions; played at the end."""
    network, merge = job.program.cloner, _merge(job)
    actor = _cloning_actor(job)

    def measure(state: imitation.ImitationState) -> Metrics:
        metrics = evaluate.cloning_accuracy(network, state.params, job.test, job.unseen, merge)
        if int(state.step) == job.program.cloning.steps:
            metrics |= _play(job, actor, state.params)
        return metrics

    _imitate(job, "cloning", imitation.cloning_loss(network), measure, "accuracy")


def _supervised_idm(job: Job) -> None:
    """An inverse model that learns from true actions: what stage 1's could know at best."""
    network, differences = job.program.inverse, job.program.model.idm.differences

    def measure(state: imitation.ImitationState) -> Metrics:
        return evaluate.supervised_idm_accuracy(
            network, differences, state.params, job.test, job.unseen, _merge(job)
        )

    loss = imitation.supervised_idm_loss(network, differences)
    _imitate(job, "supervised_idm", loss, measure, "accuracy")


def _imitate(
    job: Job,
    phase: str,
    loss: imitation.Loss,
    measure: Callable[[imitation.ImitationState], Metrics],
    shown: str,
    frozen: Any = None,
) -> None:
    settings = getattr(job.program, phase)
    job.session.train(
        phase,
        runner.data_parallel(imitation.make_step(loss, settings, job.mesh.size), job.mesh),
        shared=frozen,
        sharded=job.shards,
        total=settings.steps,
        evaluate=measure,
        shown=("loss", shown),
    )


def _decoders(job: Job, labels: tuple[int, ...]) -> None:
    """Stage 3 offline: a decoder for each number of labels; its policy is played at the end.

    Smaller sets of labels are part of larger ones.
    """
    model, decoder, settings = job.program.model, job.program.decoder, job.program.decoding
    idm = runner.local(job.session.state["latent_action"]).params
    policy = runner.local(job.session.state["latent_policy"]).params
    z = evaluate.latents(model, idm, job.train, job.labelled)
    heldout = evaluate.latents(model, idm, job.test, job.unseen), job.test.action[job.unseen]
    actor = _decoded_actor(job)
    score = jax.jit(
        lambda params: decode.decoder_loss(decoder, params, *heldout, smoothing=0.0)[1]["accuracy"]
    )

    def measure(state: decode.DecoderState) -> Metrics:
        metrics = {"heldout_accuracy": float(score(state.params))}
        if int(state.step) == settings.steps:
            metrics |= _play(job, actor, {"policy": policy, "decoder": state.params})
        return metrics

    step = runner.data_parallel(decode.make_step(decoder, settings, job.mesh.size), job.mesh)
    for count in labels:
        latents = decode.Latents(z, job.train.action[job.labelled], np.int32(count))
        job.session.train(
            f"decoder_{count}",
            step,
            shared=runner.replicate(latents, job.mesh),
            sharded=None,
            total=settings.steps,
            evaluate=measure,
            shown=("loss", "accuracy"),
        )


# ---- what is measured


def _describe(job: Job, state: learner.LatentActionState) -> tuple[Description, Description]:
    """What stage 1's models make of training and of held-out windows."""
    model = job.program.model
    return (
        evaluate.describe(model, state, job.train, job.seen),
        evaluate.describe(model, state, job.test, job.unseen),
    )


def _probes(job: Job, seen: Description, unseen: Description) -> Metrics:
    return evaluate.action_metrics(seen, unseen, NUM_ACTIONS, _merge(job))


def _merge(job: Job) -> tuple[int, ...] | None:
    """The class of each action; None where each has its own."""
    merge = tuple(job.run.config.evaluation.merge)
    return None if merge == tuple(range(NUM_ACTIONS)) else merge


def _cloning_actor(job: Job) -> play.Actor:
    network = job.program.cloner
    logits = lambda params, frames: network.apply({"params": params}, scale(frames))
    return play.make_actor(logits, job.run.config.evaluation.temperature)


def _decoded_actor(job: Job) -> play.Actor:
    policy, decoder = job.program.policy, job.program.decoder
    logits = lambda params, frames: decode.decoded_logits(policy, decoder, params, frames)
    return play.make_actor(logits, job.run.config.evaluation.temperature)


def _play(job: Job, actor: play.Actor | None, params: Any) -> Metrics:
    """Return statistics of a policy, the random one without an actor: all play the same levels."""
    settings = job.run.config.evaluation
    episodes, envs = settings.episodes, min(settings.envs, settings.episodes)
    seed, poll = _seed(job.run, RANDOM), poll_of(job.run)
    with contextlib.closing(Procgen(job.run.config.task, envs, _seed(job.run, PLAY))) as env:
        if actor is None:
            return return_summary(play.play_at_random(env, episodes, seed, poll))
        return return_summary(play.play(env, actor, params, episodes, seed, poll))


# ---- results


def _report(job: Job, data: Frames) -> None:
    """Writes plots, then results.json, whose presence marks the run as finished."""
    phases = _last_metrics(read_metrics(job.run.workdir))
    ends = data.train.notes.episode_return[data.train.frames.action == -1].astype(float)
    random, behaviour = _play(job, None, None), return_summary(ends)
    results: dict[str, Any] = {
        "dataset": {
            "name": data.train.name,
            "fingerprint": data.fingerprint,
            "kind": data.train.metadata.get("kind"),
            "train": data.train.statistics | {"read": len(data.train.frames.action)},
            "test": data.test.statistics | {"read": len(data.test.frames.action)},
        },
        "random_policy": random,
        "data_policy": behaviour,
        "metrics": phases,
    }
    normalised = lambda x: _normalised(x, random["return_mean"], behaviour["return_mean"])
    if "latent_action" in phases:
        model = phases["latent_action"]
        results |= {key: model[name] for key, name in MODEL.items() if name in model}
        fresh = learner.init(
            job.program.model, job.program.latent_action, FRAME, job.run.config.seed
        )
        phases["untrained_idm"] = _probes(job, *_describe(job, fresh))
        _draw_predictions(job)
    if "cloning" in phases:
        results["behaviour_cloning"] = normalised(phases["cloning"])
    decoding = [
        {"labels": count, **normalised(phases[f"decoder_{count}"])}
        for count in job.run.config.decoder.labels
        if f"decoder_{count}" in phases
    ]
    if decoding:
        results["offline_decoding"] = decoding
    _draw_curves(job, results)
    outcome.finish(job.run, job.session, results)


def _last_metrics(records: list[Mapping[str, Any]]) -> dict[str, Metrics]:
    """Phase -> the newest value of each of its metrics."""
    phases: dict[str, Metrics] = {}
    for record in records:
        kept = {name: x for name, x in record.items() if name not in ("step", "phase")}
        phases.setdefault(record["phase"], {}).update(kept)
    return phases


def _normalised(metrics: Metrics, random: float, behaviour: float) -> Metrics:
    """A policy's mean return and its interval, and the mean with random = 0 and data policy = 1.

    Without the last where the two references are equal.
    """
    result = {name: metrics[name] for name in ("return_mean", "return_ci95", "episodes")}
    if random != behaviour:
        result["normalised"] = (metrics["return_mean"] - random) / (behaviour - random)
    return result


def _draw_curves(job: Job, results: Mapping[str, Any]) -> None:
    directory, records = job.run.workdir / "plots", read_metrics(job.run.workdir)
    for phase in STAGES[:-1]:
        if phase in results["metrics"]:
            plots.losses(directory / f"{phase}_losses.png", records, phase)
    lines = {
        "random": results["random_policy"]["return_mean"],
        "data policy": results["data_policy"]["return_mean"],
    }
    if "behaviour_cloning" in results:
        lines["cloning, all labels"] = results["behaviour_cloning"]["return_mean"]
    if "offline_decoding" in results:
        plots.decoding_curve(
            directory / "offline_decoding.png", results["offline_decoding"], lines
        )


def _draw_predictions(job: Job) -> None:
    """Real and predicted next frames of held-out windows, one for each common code."""
    model, state = job.program.model, runner.local(job.session.state["latent_action"])
    chosen = evaluate.examples(evaluate.describe(model, state, job.test, job.unseen))
    steps = job.unseen[list(chosen.values())]
    plots.frame_table(job.run.workdir / "plots" / "predictions.png", list(chosen), {
        "frame": job.test.observation[steps],
        "next": job.test.observation[steps + 1],
        "predicted": evaluate.predicted_frames(model, state, job.test, steps),
    })


def _video(job: Job) -> None:
    """A video of the policy with most labels, or of behaviour cloning where there is no decoder."""
    state = {phase: runner.local(part) for phase, part in job.session.state.items()}
    decoders = [phase for phase in state if phase.startswith("decoder_")]
    if decoders:
        actor = _decoded_actor(job)
        params = {"policy": state["latent_policy"].params, "decoder": state[decoders[-1]].params}
    elif "cloning" in state:
        actor, params = _cloning_actor(job), state["cloning"].params
    else:
        print("no video: no stage of this run makes a policy", flush=True)
        return
    frames: list[np.ndarray] = []

    def act(params: Any, observation: np.ndarray, seed: int, step: int) -> jax.Array:
        frames.append(observation[0].repeat(4, 0).repeat(4, 1))
        return actor(params, observation, seed, step)

    with contextlib.closing(Procgen(job.run.config.task, 1, _seed(job.run, PLAY))) as env:
        returns = play.play(env, act, params, 1, _seed(job.run, RANDOM))
    outcome.write_video(job.run, frames, returns[0])


if __name__ == "__main__":
    launch.run(main)
