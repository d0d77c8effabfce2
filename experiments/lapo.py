"""LAPO on one Procgen game: from frames without actions to a policy that acts (LAPO section 4).

    python -m experiments.lapo --config=configs/procgen.py:miner,small

Data, then the stages of --config.stages one after another: latent_action (inverse and forward
dynamics with a codebook between them, from frames alone), latent_policy (clones the latent
actions), cloning (behaviour cloning on all true actions) and supervised_idm as references, decoder
(true actions from latent ones by a few labels, one decoder for each of decoder.labels),
distillation (not the paper's: the latent policy's features, or with distillation.trunk the whole
of it, learn what the decoders of distillation.labels make of all frames' latents), online (the
latent policy decoded in the game, by a decoder of what it meets there and by PPO) and scratch (PPO
alone). Each policy is played in the game when its training ends, the last two also on the way;
normalised returns have the random policy at 0 and the data's at 1.

--config.pretrained=WORKDIR takes over those of the first four stages that another run has finished
with the same settings; WORKDIR,WORKDIR each from the first that has it. The paper's ablations:
--config.online.supervised=false (RL without SL), with --config.vq.enabled=false besides (without
both).
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import lapo_report, launch, outcome, shared_stages
from experiments.data import load_frames
from experiments.lapo_job import (
    TEST,
    TRAIN,
    Job,
    Metrics,
    batches,
    classes,
    cloning_actor,
    data_parallel,
    decoded_actor,
    decoding,
    describe,
    draw_windows,
    online_actor,
    probe,
    returns_of,
)
from experiments.training import Session, check_schedule
from lawm_jax import runner
from lawm_jax.data.frames import draw_steps, only_windows, shard_frames
from lawm_jax.envs.procgen import FRAME, NUM_ACTIONS, Procgen, check_game
from lawm_jax.errors import InputError
from lawm_jax.lapo import decode, evaluate, imitation, learner, online
from lawm_jax.lapo.program import check_rows, distilled, resolve
from lawm_jax.online.actor_critic import from_latent_policy

ONLINE = ("online", "scratch")
STAGES = (
    "latent_action", "latent_policy", "cloning", "supervised_idm", "decoder", "distillation",
    *ONLINE,
)
NEEDS = {
    "latent_policy": ("latent_action",),
    "decoder": ("latent_action", "latent_policy"),
    "distillation": ("latent_action", "latent_policy", "decoder"),
    "online": ("latent_action", "latent_policy"),
}


def main(run: launch.Run) -> None:
    """Runs the whole job, from wherever its last checkpoint stands."""
    config = run.config
    check_game(config.task)
    program = resolve(config, FRAME, NUM_ACTIONS)
    stages = chosen_stages(config.stages)
    check_schedule(config, "run")
    check_schedule(config, "online_run")
    mesh = runner.make_mesh()
    check_rows(config, mesh)

    data = load_frames(run)
    about_data, fingerprint = lapo_report.facts(data), data.fingerprint
    train, test = data.train.frames, data.test.frames
    del data  # nothing is to hold what is given up below
    labels = _labels(config)
    labelled = draw_steps(train, max(labels), config.seed)
    seen, unseen = draw_windows(run, train, TRAIN), draw_windows(run, test, TEST)
    shards = None
    if config.data.on_device:
        shards = runner.shard(shard_frames(train, mesh.size), mesh)
        train, (labelled, seen) = only_windows(train, labelled, seen)
    test, (unseen,) = only_windows(test, unseen)
    state = {phase: runner.replicate(x, mesh) for phase, x in _initial_state(config).items()}
    taken = shared_stages.find(run, state, fingerprint, _initial_state)
    session = Session(run, state | taken.state, fingerprint)
    shared_stages.keep(run, session, taken)
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
    if "distillation" in stages:
        _distillation(job)
    if "online" in stages:
        _online(job)
    if "scratch" in stages:
        _interact(job, "scratch")
    job.session.close()
    report = functools.partial(lapo_report.report, job, about_data)
    outcome.conclude(run, report, lambda: lapo_report.video(job))


def chosen_stages(text: str) -> tuple[str, ...]:
    """The stages that the config names, in the order in which they run.

    Raises:
      InputError: an unknown one, none, one without those that it needs, or one that acts in the
        game while training, which uses one host, on several.
    """
    names = {name.strip() for name in text.split(",")}
    if unknown := sorted(names - set(STAGES)):
        raise InputError(f"stages names '{unknown[0]}'; choose from {', '.join(STAGES)}")
    for name in names:
        if missing := [need for need in NEEDS.get(name, ()) if need not in names]:
            raise InputError(f"stages has {name} without {' and '.join(missing)}, which it needs")
    if jax.process_count() > 1 and (acting := [name for name in ONLINE if name in names]):
        raise InputError(f"stages has {' and '.join(acting)}, which use one host: leave them out")
    return tuple(name for name in STAGES if name in names)


def _labels(config: ConfigDict) -> tuple[int, ...]:
    """How many labels each decoder has; at least one, as a set of labels is drawn in any case."""
    return tuple(config.decoder.labels) if "decoder" in chosen_stages(config.stages) else (1,)


def _initial_state(config: ConfigDict) -> dict[str, Any]:
    """A fresh train state for each phase of a config's stages."""
    program, stages = resolve(config, FRAME, NUM_ACTIONS), chosen_stages(config.stages)
    labels, seed = _labels(config), config.seed
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
    if "distillation" in stages:
        policy = state["latent_policy"].params
        state["distillation"] = distilled(program, policy, FRAME, seed)
    for phase in ONLINE:
        if phase in stages:
            state[phase] = online.init(getattr(program, phase), FRAME, seed)
    return state


# ---- stages


def _latent_action(job: Job) -> None:
    """Stage 1: the inverse and forward dynamics and their codebook, from frames alone."""
    model, settings = job.program.model, job.program.latent_action

    def measure(state: learner.LatentActionState) -> Metrics:
        seen, unseen = describe(job, state)
        errors = evaluate.prediction_metrics(model, unseen)
        errors = {f"heldout_{name}": value for name, value in errors.items()}
        return errors | probe(job, seen, unseen)

    job.session.train(
        "latent_action",
        data_parallel(job, learner.make_step(model, settings, job.mesh.size)),
        shared=None,
        sharded=batches(job, settings),
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
    network, merge = job.program.cloner, classes(job)
    actor = cloning_actor(job)

    def measure(state: imitation.ImitationState) -> Metrics:
        metrics = evaluate.cloning_accuracy(network, state.params, job.test, job.unseen, merge)
        if int(state.step) == job.program.cloning.steps:
            metrics |= returns_of(job, actor, state.params)
        return metrics

    _imitate(job, "cloning", imitation.cloning_loss(network), measure, "accuracy")


def _supervised_idm(job: Job) -> None:
    """An inverse model that learns from true actions: what stage 1's could know at best."""
    network, differences = job.program.inverse, job.program.model.idm.differences

    def measure(state: imitation.ImitationState) -> Metrics:
        return evaluate.supervised_idm_accuracy(
            network, differences, state.params, job.test, job.unseen, classes(job)
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
    many: bool = False,
) -> None:
    settings = getattr(job.program, phase)
    job.session.train(
        phase,
        data_parallel(job, imitation.make_step(loss, settings, job.mesh.size, many)),
        shared=frozen,
        sharded=batches(job, settings),
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
    z = evaluate.latents(model, idm, job.train, job.labelled)
    heldout = evaluate.latents(model, idm, job.test, job.unseen), job.test.action[job.unseen]
    actor = decoded_actor(job)
    score = jax.jit(
        lambda params: decode.decoder_loss(decoder, params, *heldout, smoothing=0.0)[1]["accuracy"]
    )

    def measure(state: decode.DecoderState, count: int) -> Metrics:
        metrics = {"heldout_accuracy": float(score(state.params))}
        if int(state.step) == settings.steps:
            params, calibration = decoding(job, state.params, count)
            metrics |= calibration | returns_of(job, actor, params)
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
            evaluate=functools.partial(measure, count=count),
            shown=("loss", "accuracy"),
        )


def _distillation(job: Job) -> None:
    """Stage 3 offline in another way: policies of what decoders make of all frames' latents."""
    program, state, merge = job.program, job.session.state, classes(job)
    labels = program.distilled_labels
    policy = runner.local(state["latent_policy"]).params
    if not runner.step_of(state["distillation"]):
        fresh = distilled(program, policy, FRAME, job.run.config.seed)
        state["distillation"] = runner.replicate(fresh, job.mesh)
    decoders = [runner.local(state[f"decoder_{count}"]).params for count in labels]
    trunk = {} if program.distilled_trunk else {"trunk": policy["trunk"]}
    frozen = runner.replicate(trunk | {
        "idm": runner.local(state["latent_action"]).params["idm"],
        "decoders": jax.tree.map(lambda *x: np.stack(x), *decoders),
    }, job.mesh)
    actor = cloning_actor(job)

    def measure(state: imitation.ImitationState) -> Metrics:
        metrics = {}
        for index, count in enumerate(labels):
            params = trunk | jax.tree.map(lambda x, index=index: x[index], state.params)
            of_count = evaluate.cloning_accuracy(
                program.cloner, params, job.test, job.unseen, merge
            )
            if int(state.step) == program.distillation.steps:
                of_count |= returns_of(job, actor, params)
            metrics |= {
                f"{name.removeprefix('cloning_')}_{count}": x for name, x in of_count.items()
            }
        return metrics

    loss = imitation.distillation_loss(program.cloner, program.model, program.decoder)
    _imitate(job, "distillation", loss, measure, "gradient_norm", frozen, many=True)


def _online(job: Job) -> None:
    """Stage 3 online: the latent policy, decoded by what it meets in the game and by PPO."""
    state = job.session.state
    if not int(state["online"].step):
        groups = from_latent_policy(state["latent_policy"].params)
        state["online"] = online.give(state["online"], groups)
    idm = {"idm": runner.local(state["latent_action"]).params["idm"]}
    _interact(job, "online", functools.partial(evaluate.latents, job.program.model, idm))


def _interact(job: Job, phase: str, infer: online.Infer | None = None) -> None:
    """PPO in the game, with a decoder of the latents that `infer` gives if there is one."""
    settings, config = getattr(job.program, phase), job.run.config
    actor = online_actor(job, settings.network)
    training = online.Training(
        settings, job.mesh, functools.partial(Procgen, config.task),
        config.online_run.checkpoint_every, infer,
    )
    with contextlib.closing(training):
        job.session.train(
            phase,
            training,
            shared=None,
            sharded=None,
            total=settings.ppo.updates,
            evaluate=lambda state: returns_of(job, actor, state.learner.params),
            shown=("episode_return", "entropy", "decoder_accuracy"),
            schedule="online_run",
            anywhere=False,
        )


if __name__ == "__main__":
    launch.run(main)
