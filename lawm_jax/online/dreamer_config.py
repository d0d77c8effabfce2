"""Which collectors a config asks for, and the settings of a Dreamer-based one."""

from ml_collections import ConfigDict

from lawm_jax.config_checks import check_counts, check_not_negative, check_positive
from lawm_jax.errors import InputError
from lawm_jax.lawm.methods import resolve
from lawm_jax.online.collector import Training
from lawm_jax.online.dreamer import DreamerConfig
from lawm_jax.online.ensemble import EnsembleConfig

COLLECTORS = ("sac", "dreamer")
EXPLORERS = ("sac", "plan2explore")


def check_collectors(config: ConfigDict) -> None:
    """Raises InputError unless the config's collectors exist and go together."""
    collect = config.collect
    for name, choices in (("collector", COLLECTORS), ("explorer", EXPLORERS)):
        if collect[name] not in choices:
            raise InputError(
                f"collect.{name} is '{collect[name]}'; choose from {', '.join(choices)}"
            )
    dreamers = collect.collector == "dreamer" or collect.explorer == "plan2explore"
    if collect.from_snapshots and dreamers:
        raise InputError(
            "collect.from_snapshots rolls out soft actor-critics, while collect.collector "
            f"'{collect.collector}' with collect.explorer '{collect.explorer}' trains: set one of "
            "them back"
        )


def dreamer_config(
    config: ConfigDict, observation_size: int, action_size: int, explorer: bool
) -> DreamerConfig:
    """The settings of a collector: those of method "dreamer", changed by `collect.dreamer`.

    Args:
      config: as configs/dmc.py makes it; it is left as it is.
      explorer: with plan2explore's ensemble.

    Raises:
      InputError: a size, count or rate that cannot be.
    """
    changes = config.collect.dreamer
    own = config.copy_and_resolve_references()
    own.method = "dreamer"
    own.world_model.update(changes.world_model)
    own.agent.update(changes.agent)
    try:
        program = resolve(own, observation_size, action_size)
        check_counts(changes, "ensemble", "members", "units", "layers")
        check_positive(changes, "ensemble", "learning_rate")
    except InputError as error:
        raise InputError(f"collect.dreamer: {error}") from error
    ensemble = EnsembleConfig(**changes.ensemble.to_dict()) if explorer else None
    if ensemble and ensemble.members < 2:
        raise InputError("collect.dreamer.ensemble.members is 1; to disagree takes at least 2")
    return DreamerConfig(program, ensemble)


def dreamer_training(config: ConfigDict, explorer: bool) -> Training:
    """Length and density of a Dreamer-based collector's training.

    Raises:
      InputError: a count that cannot be.
    """
    settings = config.collect.dreamer
    check_counts(config.collect, "dreamer", "num_envs", "steps_per_update", "chunk")
    check_not_negative(config.collect, "dreamer", "normaliser_episodes")
    return Training(
        agent_steps=config.collect.explorer_steps if explorer else config.collect.agent_steps,
        num_envs=settings.num_envs,
        steps_per_update=settings.steps_per_update,
        chunk=settings.chunk,
        warmup=settings.warmup,
        episode_steps=settings.episode_steps,
    )
