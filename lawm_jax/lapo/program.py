"""LAPO's networks and settings, resolved from a config as configs/procgen.py makes it."""

import math
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from lawm_jax.errors import InputError
from lawm_jax.lapo import imitation
from lawm_jax.lapo.decode import Decoder, DecoderConfig
from lawm_jax.lapo.fdm import FDMConfig
from lawm_jax.lapo.idm import InverseDynamics
from lawm_jax.lapo.imitation import ImitationState
from lawm_jax.lapo.learner import LatentActionModel, Params
from lawm_jax.lapo.online import Online, Supervision
from lawm_jax.lapo.optimiser import TrainingConfig
from lawm_jax.lapo.vq import VQConfig
from lawm_jax.online.actor_critic import ActorCritic
from lawm_jax.online.ppo import PPOConfig
from lawm_jax.runner import rows_per_device
from lawm_jax.vision import EncoderConfig, FrameNetwork

TRAININGS = ("latent_action", "latent_policy", "cloning", "supervised_idm", "distillation")


class Program(NamedTuple):
    """All stages of LAPO with their references.

    The policy's networks see one frame, [H, W, 3]; the supervised inverse model sees the stack of
    three, [H, W, 9], that `idm.stack_frames` makes.
    """

    model: LatentActionModel
    latent_action: TrainingConfig
    policy: FrameNetwork
    latent_policy: TrainingConfig
    cloner: FrameNetwork
    cloning: TrainingConfig
    inverse: FrameNetwork
    supervised_idm: TrainingConfig
    decoder: Decoder
    decoding: DecoderConfig
    distillation: TrainingConfig
    distilled_labels: tuple[int, ...]
    distilled_trunk: bool
    online: Online
    scratch: Online
    expert: Online


def resolve(config: ConfigDict, frame_shape: tuple[int, int, int], actions: int) -> Program:
    """Turns a config into the program for frames [H, W, 3] and so many actions.

    Raises:
      InputError: an unknown dtype, or a size, count or schedule that cannot be.
    """
    _check(config, frame_shape, actions)
    vq = VQConfig(**_fields(config.vq, VQConfig))
    idm_encoder = _encoder(config.idm, config.dtype)
    encoder = _encoder(config.policy, config.dtype)
    idm = InverseDynamics(idm_encoder, vq, config.idm.differences, config.idm.normalise)
    fdm = FDMConfig(dtype=config.dtype, **_fields(config.fdm, FDMConfig, "dtype"))
    training = {
        name: TrainingConfig(**_fields(config[name], TrainingConfig)) for name in TRAININGS
    }
    return Program(
        model=LatentActionModel(idm, fdm, config.latent_action.relative_error),
        policy=FrameNetwork(encoder, vq.latent_size),
        cloner=FrameNetwork(encoder, actions),
        inverse=FrameNetwork(idm_encoder, actions),
        decoder=Decoder(tuple(config.decoder.units), actions),
        decoding=_decoder(config.decoder, epochs=0),
        distilled_labels=tuple(config.distillation.labels or config.decoder.labels),
        distilled_trunk=config.distillation.trunk,
        online=_online(config, encoder, vq, actions),
        scratch=Online(ActorCritic(encoder, actions), _ppo(config.scratch), None),
        expert=Online(
            ActorCritic(_encoder(config.expert_policy, config.dtype), actions),
            _ppo(config.expert), None,
        ),
        **training,
    )


def distilled(
    program: Program, policy: Params, frame_shape: tuple[int, int, int], seed: int
) -> ImitationState:
    """A fresh state of a policy of true actions for each decoder that is distilled.

    They begin as that latent policy.
    """
    head = imitation.init(program.cloner, program.distillation, frame_shape, seed).params["head"]
    return imitation.distillation_start(
        policy, head, len(program.distilled_labels), program.distillation, seed,
        program.distilled_trunk,
    )


def check_rows(config: ConfigDict, mesh: Mesh) -> None:
    """Raises InputError unless the mesh's devices divide every batch of the config."""
    for section in (*TRAININGS, "decoder"):
        rows_per_device(config[section].rows, mesh, f"{section}.rows")
    for section in ("online", "scratch"):
        rows_per_device(config[section].envs, mesh, f"{section}.envs")


def _fields(config: ConfigDict, settings: type, *without: str) -> dict:
    return {name: config[name] for name in settings.__dataclass_fields__ if name not in without}


def _encoder(config: ConfigDict, dtype: str) -> EncoderConfig:
    fields = _fields(config, EncoderConfig, "dtype", "channels", "blocks")
    stages = {name: tuple(config[name]) for name in ("channels", "blocks")}
    return EncoderConfig(dtype=dtype, **stages, **fields)


def _decoder(config: ConfigDict, **counts: int) -> DecoderConfig:
    fields = _fields(config, DecoderConfig, "units", *counts)
    return DecoderConfig(units=tuple(config.units), **fields, **counts)


def _ppo(config: ConfigDict) -> PPOConfig:
    points = lambda schedule: tuple((float(frames), float(share)) for frames, share in schedule)
    schedules = sorted(config.schedule.items())
    groups = tuple((name, points(schedule)) for name, schedule in schedules if schedule)
    return PPOConfig(groups=groups, **_fields(config, PPOConfig, "groups"))


def _online(config: ConfigDict, encoder: EncoderConfig, vq: VQConfig, actions: int) -> Online:
    ppo = _ppo(config.online)
    if not config.online.supervised:
        return Online(ActorCritic(encoder, actions), ppo, None)
    online = config.online
    supervision = Supervision(
        decoder=_decoder(online.decoder, steps=0),
        capacity=online.supervised_capacity,
        first=online.supervised_from,
        last=online.supervised_to,
        always_until=online.supervised_always_until,
        every=online.supervised_every,
    )
    units = supervision.decoder.units
    return Online(ActorCritic(encoder, actions, vq.latent_size, units), ppo, supervision)


def _check(config: ConfigDict, frame_shape: tuple[int, int, int], actions: int) -> None:
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(f"dtype is '{config.dtype}'; choose float32 or bfloat16")
    if not 0 <= config.seed < 2**31:
        raise InputError(f"seed is {config.seed}; it must be at least 0 and below 2^31")
    if len(config.evaluation.merge) != actions:
        raise InputError(
            f"evaluation.merge has {len(config.evaluation.merge)} numbers; the game has {actions} "
            "actions, each of which needs its class"
        )
    if config.evaluation.episodes < 2:
        episodes = config.evaluation.episodes
        raise InputError(f"evaluation.episodes is {episodes}; an interval needs at least 2")
    if not config.decoder.labels or min(config.decoder.labels) < 1:
        raise InputError(
            f"decoder.labels is {tuple(config.decoder.labels)}; it must name one or more numbers "
            "of labelled transitions, each >= 1"
        )
    stages = {stage.strip() for stage in config.stages.split(",")}
    missing = sorted({*config.distillation.labels} - {*config.decoder.labels})
    if missing and "distillation" in stages:
        raise InputError(
            f"distillation.labels names {missing[0]}, which no decoder has: decoder.labels is "
            f"{tuple(config.decoder.labels)}; name some of those, or () for all"
        )
    _check_sizes(config, frame_shape)
    _check_counts(config)
    for section in ("online", "scratch", "expert"):
        _check_ppo(config[section], section)


def _check_sizes(config: ConfigDict, frame_shape: tuple[int, int, int]) -> None:
    """Every stage has its sizes, and frames must be cut evenly by patches and halvings."""
    fdm = config.fdm
    if not fdm.patch and fdm.levels == 1:
        raise InputError("fdm.levels is 1; a U-Net on pixels has at least 2")
    halvings = {"fdm.levels": max(fdm.patch, 1) * 2 ** (fdm.levels - 1)}
    for name in ("idm", "policy", "expert_policy"):
        encoder = config[name]
        if len(encoder.blocks) != len(encoder.channels):
            raise InputError(
                f"{name}.blocks has {len(encoder.blocks)} numbers and {name}.channels "
                f"{len(encoder.channels)}; each stage needs one of both"
            )
        if encoder.patch:
            halvings[f"{name}.patch"] = encoder.patch * 2 ** (len(encoder.channels) - 1)
    for name, side in halvings.items():
        if frame_shape[0] % side or frame_shape[1] % side:
            raise InputError(
                f"{name} needs frames whose sides {side} divides; these have "
                f"{frame_shape[0]} x {frame_shape[1]} pixels"
            )


def _check_counts(config: ConfigDict) -> None:
    counts = {
        "idm": ("multiplier", "features"), "policy": ("multiplier", "features"),
        "expert_policy": ("multiplier", "features"),
        "fdm": ("width", "levels"), "vq": ("books", "codes", "size", "embeddings"),
        "decoder": ("steps", "rows"), "evaluation": ("windows", "envs"),
        "run": ("steps_per_call", "checkpoint_every", "evaluate_every"),
        "online_run": ("steps_per_call", "checkpoint_every", "evaluate_every"),
        "online": ("supervised_capacity", "supervised_every"),
    } | {name: ("steps", "rows") for name in TRAININGS}
    for section, names in counts.items():
        for name in names:
            if config[section][name] < 1:
                raise InputError(f"{section}.{name} is {config[section][name]}; it must be >= 1")
    for section in (*TRAININGS, "decoder", "online", "scratch", "expert"):
        rate = config[section].learning_rate
        if not 0.0 < rate < math.inf:
            raise InputError(f"{section}.learning_rate is {rate}; it must be positive and finite")
    for section in TRAININGS:
        if not config[section].gradient_clip >= 0.0:
            raise InputError(
                f"{section}.gradient_clip is {config[section].gradient_clip}; it must be >= 0, and "
                "0 is none"
            )


def _check_ppo(ppo: ConfigDict, section: str) -> None:
    for name in ("frames", "envs", "horizon", "minibatches", "epochs"):
        if ppo[name] < 1:
            raise InputError(f"{section}.{name} is {ppo[name]}; it must be >= 1")
    if ppo.horizon % ppo.minibatches:
        raise InputError(
            f"{section}.minibatches is {ppo.minibatches}, which does not divide {section}.horizon "
            f"({ppo.horizon})"
        )
    if ppo.frames < ppo.envs * ppo.horizon:
        raise InputError(
            f"{section}.frames is {ppo.frames}, less than one rollout of {section}.envs x "
            f"{section}.horizon ({ppo.envs * ppo.horizon})"
        )
    if not 0.0 <= ppo.discount < 1.0:
        raise InputError(f"{section}.discount is {ppo.discount}; it must be in [0, 1)")
