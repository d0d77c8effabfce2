"""LAPO's networks and settings, resolved from a config as configs/procgen.py makes it."""

from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from lawm_jax.lapo import imitation
from lawm_jax.lapo.checks import TRAININGS, check
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
    check(config, frame_shape, actions)
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
