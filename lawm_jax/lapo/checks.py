"""What of a LAPO config cannot be: one clear line for each."""

import math
from typing import Any

from ml_collections import ConfigDict

from lawm_jax.config_checks import (
    check_below_one,
    check_counts,
    check_not_negative,
    check_positive,
    check_seed,
    check_share,
    check_whole_numbers,
)
from lawm_jax.errors import InputError

TRAININGS = ("latent_action", "latent_policy", "cloning", "supervised_idm", "distillation")
ENCODERS = ("idm", "policy", "expert_policy")
PPO = ("online", "scratch", "expert")
COLDEST = 1e-6  # logits divided by less may leave float32
MOST_RESIZED = 4  # a frame's side may become so many times as long


def check(config: ConfigDict, frame_shape: tuple[int, int, int], actions: int) -> None:
    """Raises InputError where a config cannot be for frames [H, W, 3] and so many actions."""
    if config.dtype not in ("float32", "bfloat16"):
        raise InputError(f"dtype is '{config.dtype}'; choose float32 or bfloat16")
    check_seed(config)
    if len(config.evaluation.merge) != actions:
        raise InputError(
            f"evaluation.merge has {len(config.evaluation.merge)} numbers; the game has {actions} "
            "actions, each of which needs its class"
        )
    if config.evaluation.episodes < 2:
        episodes = config.evaluation.episodes
        raise InputError(f"evaluation.episodes is {episodes}; an interval needs at least 2")
    check_whole_numbers(config.evaluation.merge, "evaluation.merge", at_least=0)
    if (largest := max(config.evaluation.merge)) >= actions:
        raise InputError(
            f"evaluation.merge has the class {largest}; name a class after one of its actions, "
            f"0 to {actions - 1}"
        )
    check_not_negative(config, "evaluation", "temperature")
    if 0 < config.evaluation.temperature < COLDEST:
        raise InputError(
            f"evaluation.temperature is {config.evaluation.temperature}; 0 takes the best action, "
            f"others must be at least {COLDEST}"
        )
    _check_labels(config)
    _check_counts(config)
    _check_sizes(config, frame_shape)
    for section in PPO:
        _check_ppo(config, section)


def _check_labels(config: ConfigDict) -> None:
    labels, chosen = config.decoder.labels, config.distillation.labels
    if not labels:
        raise InputError("decoder.labels is (); name one or more numbers of labelled transitions")
    check_whole_numbers(labels, "decoder.labels", distinct=True)
    check_whole_numbers(chosen, "distillation.labels", distinct=True)
    stages = {stage.strip() for stage in config.stages.split(",")}
    if "distillation" in stages and (missing := [x for x in chosen if x not in labels]):
        raise InputError(
            f"distillation.labels names {missing[0]}, which no decoder has: decoder.labels is "
            f"{tuple(labels)}; name some of those, or () for all"
        )


def _check_sizes(config: ConfigDict, frame_shape: tuple[int, int, int]) -> None:
    """Every stage has its sizes, and frames must be cut evenly by patches and halvings."""
    fdm = config.fdm
    if not fdm.patch and fdm.levels == 1:
        raise InputError("fdm.levels is 1; a U-Net on pixels has at least 2")
    if fdm.reach and not fdm.residual:
        raise InputError(
            f"fdm.reach is {fdm.reach} and fdm.residual false; what is moved is the last frame, "
            "which only a residual model adds to: set fdm.residual=true, or fdm.reach=0"
        )
    if fdm.reach >= min(frame_shape[:2]):
        raise InputError(
            f"fdm.reach is {fdm.reach}; pixels of frames of {frame_shape[0]} x {frame_shape[1]} "
            f"cannot move further than {min(frame_shape[:2]) - 1}"
        )
    for section in TRAININGS:
        if config[section].shift >= min(frame_shape[:2]):
            raise InputError(
                f"{section}.shift is {config[section].shift}; it would move frames of "
                f"{frame_shape[0]} x {frame_shape[1]} pixels out of sight: choose less than "
                f"{min(frame_shape[:2])}"
            )
    halvings = {"fdm.levels": max(fdm.patch, 1) * 2 ** (fdm.levels - 1)}
    for name in ENCODERS:
        encoder = config[name]
        _check_encoder(name, encoder, frame_shape)
        if encoder.patch and not (encoder.resize or encoder.glimpses):
            halvings[f"{name}.patch"] = encoder.patch * 2 ** (len(encoder.channels) - 1)
    for name, side in halvings.items():
        if frame_shape[0] % side or frame_shape[1] % side:
            raise InputError(
                f"{name} needs frames whose sides {side} divides; these have "
                f"{frame_shape[0]} x {frame_shape[1]} pixels"
            )


def _check_encoder(name: str, encoder: ConfigDict, frame_shape: tuple[int, int, int]) -> None:
    """Stages with all their sizes, and frames or windows that have room for a patch."""
    if not encoder.channels:
        raise InputError(f"{name}.channels is (); a trunk needs at least one stage")
    check_whole_numbers(encoder.channels, f"{name}.channels")
    check_whole_numbers(encoder.blocks, f"{name}.blocks", at_least=0)
    if len(encoder.blocks) != len(encoder.channels):
        raise InputError(
            f"{name}.blocks has {len(encoder.blocks)} numbers and {name}.channels "
            f"{len(encoder.channels)}; each stage needs one of both"
        )
    if encoder.resize and not encoder.patch:
        raise InputError(
            f"{name}.resize is {encoder.resize} and {name}.patch 0; only networks on patches "
            f"resize frames: set {name}.patch, or {name}.resize to 0"
        )
    if encoder.resize > (largest := MOST_RESIZED * min(frame_shape[:2])):
        raise InputError(
            f"{name}.resize is {encoder.resize}; a side of more than {largest} pixels, "
            f"{MOST_RESIZED} times the frame's, shows nothing more"
        )
    if encoder.glimpses and encoder.pool:
        raise InputError(
            f"{name}.glimpses is {encoder.glimpses} and {name}.pool true; glimpses tell where they "
            f"are, which pooling is to hide: set {name}.pool=false, or {name}.glimpses=0"
        )
    most = 2 * (encoder.resize or min(frame_shape[:2]))
    if encoder.glimpses and encoder.glimpse > most:
        raise InputError(
            f"{name}.glimpse is {encoder.glimpse}; windows of more than {most} pixels, twice the "
            "frame's side, show nothing more"
        )
    cut = "glimpse" if encoder.glimpses else "resize"
    if 0 < encoder[cut] < encoder.patch:
        raise InputError(
            f"{name}.{cut} is {encoder[cut]}, less than {name}.patch ({encoder.patch}); "
            "a frame must have room for a patch"
        )


def _check_counts(config: ConfigDict) -> None:
    for section in ENCODERS:
        check_counts(config, section, "multiplier", "features", "glimpse")
        check_not_negative(config, section, "patch", "resize", "glimpses")
    check_counts(config, "fdm", "width", "levels")
    check_not_negative(config, "fdm", "patch", "reach")
    check_counts(config, "vq", "books", "codes", "size", "embeddings")
    check_not_negative(config, "vq", "commitment", "initial_count")
    # A code restarts with a count of 1: below more than that it would do so at every step.
    check_below_one(config, "vq", "decay", "restart_below")
    check_positive(config, "vq", "epsilon", "initial_scale")
    for section in TRAININGS:
        check_counts(config, section, "steps", "rows")
        check_positive(config, section, "learning_rate")
        check_share(config, section, "learning_rate_start", "learning_rate_end")
        check_not_negative(
            config, section, "shift", "warmup_steps", "weight_decay", "gradient_clip"
        )
        if config[section].warmup_steps >= config[section].steps:
            raise InputError(
                f"{section}.warmup_steps is {config[section].warmup_steps}, not less than "
                f"{section}.steps ({config[section].steps}): the learning rate would never reach "
                "its value"
            )
    check_counts(config, "decoder", "steps", "rows")
    check_counts(config, "online.decoder", "epochs", "rows")
    check_whole_numbers(config.decoder.units, "decoder.units")
    check_whole_numbers(config.online.decoder.units, "online.decoder.units")
    for section in ("decoder", "online.decoder"):
        check_positive(config, section, "learning_rate")
        check_not_negative(config, section, "weight_decay")
        check_below_one(config, section, "label_smoothing")
    check_counts(config, "evaluation", "windows", "envs")
    for section in ("run", "online_run"):
        check_counts(config, section, "steps_per_call", "checkpoint_every", "evaluate_every")
    _check_supervised(config)


def _check_supervised(config: ConfigDict) -> None:
    """The decoder online learns at some time, from something."""
    check_counts(config, "online", "supervised_capacity", "supervised_every")
    online = config.online
    first, last = online.supervised_from, online.supervised_to
    if online.supervised and not 0 <= first <= min(last, online.frames):
        raise InputError(
            f"online.supervised_from is {first}, online.supervised_to {last} and online.frames "
            f"{online.frames}: the decoder would never learn; choose from <= to and from <= "
            "frames, or online.supervised=false"
        )


def _check_ppo(config: ConfigDict, section: str) -> None:
    check_counts(config, section, "frames", "envs", "horizon", "minibatches", "epochs")
    check_positive(config, section, "learning_rate", "clip", "gradient_clip", "reward_clip")
    check_not_negative(config, section, "entropy", "value")
    check_below_one(config, section, "discount")
    check_share(config, section, "lambda_")
    ppo = config[section]
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
    for group, schedule in ppo.schedule.items():
        if not all(map(_is_point, schedule)):
            raise InputError(
                f"{section}.schedule.{group} is {schedule}; write ((frames, share of the learning "
                "rate), ...), each >= 0 and finite"
            )
        frames = [point[0] for point in schedule]
        if frames != sorted(set(frames)):
            raise InputError(
                f"{section}.schedule.{group} is {schedule}; the frames of its points must rise"
            )


def _is_point(point: Any) -> bool:
    """Whether it is a pair (frames, share) of a schedule."""
    number = lambda x: isinstance(x, (int, float)) and 0 <= x < math.inf
    return isinstance(point, (tuple, list)) and len(point) == 2 and all(map(number, point))
