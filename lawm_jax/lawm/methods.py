"""LAWM, C-LAP and Dreamer as configurations of one program."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from lawm_jax.config_checks import (
    check_below_one,
    check_counts,
    check_not_negative,
    check_positive,
    check_run,
    check_share,
)
from lawm_jax.errors import InputError
from lawm_jax.lawm.actor_critic import AgentConfig
from lawm_jax.lawm.elbo import ElboConfig
from lawm_jax.lawm.learner import LearnerConfig
from lawm_jax.lawm.world_model import WorldModel
from lawm_jax.runner import rows_per_device


@dataclasses.dataclass(frozen=True)
class Method:
    """What sets a method apart."""

    latent_action: bool  # the policy chooses u, which the model decodes to a
    learned_prior: bool  # p(u | s) is an MLP, not the standard normal
    unlabelled: bool  # learns from trajectories without actions as well


METHODS = {
    "lawm": Method(latent_action=True, learned_prior=False, unlabelled=True),
    "c_lap": Method(latent_action=True, learned_prior=True, unlabelled=False),
    "dreamer": Method(latent_action=False, learned_prior=False, unlabelled=False),
}


class Program(NamedTuple):
    """A method with its sizes and settings, resolved from a config."""

    method: Method
    model: WorldModel
    elbo: ElboConfig
    learner: LearnerConfig
    agent: AgentConfig


def resolve(config: ConfigDict, observation_size: int, action_size: int) -> Program:
    """Turns a config as configs/dmc.py makes it into the program for data of these sizes.

    Raises:
      InputError: unknown method or dtype, or a size or count that cannot be.
    """
    if config.method not in METHODS:
        raise InputError(f"method is '{config.method}'; choose from {', '.join(METHODS)}")
    method, world, agent = METHODS[config.method], config.world_model, config.agent
    if world.dtype not in ("float32", "bfloat16"):
        raise InputError(f"world_model.dtype is '{world.dtype}'; choose float32 or bfloat16")
    _check(config)
    latent_size = world.latent_action or action_size
    model = WorldModel(
        observation_size=observation_size,
        action_size=action_size,
        latent_action_size=latent_size,
        latent_action=method.latent_action,
        learned_prior=method.learned_prior,
        dtype=jnp.dtype(world.dtype),
        **_fields(world, "units", "layers", "deterministic", "stochastic", "min_std"),
    )
    elbo = ElboConfig(**_fields(world, *ElboConfig.__dataclass_fields__))
    if not method.unlabelled:
        elbo = dataclasses.replace(elbo, inverse_on_labelled=0.0)
    learner = LearnerConfig(**_fields(world, *LearnerConfig.__dataclass_fields__))
    if not method.unlabelled:
        learner = dataclasses.replace(
            learner,
            labelled_rows=learner.labelled_rows + learner.unlabelled_rows,
            unlabelled_rows=0,
        )
    policy_size = latent_size if method.latent_action else action_size
    names = set(AgentConfig.__dataclass_fields__) - {"policy_size"}
    settings = AgentConfig(policy_size=policy_size, **_fields(agent, *names))
    if not method.latent_action:
        settings = dataclasses.replace(settings, entropy=agent.action_entropy, prior=0.0)
    return Program(method, model, elbo, learner, settings)


def check_rows(program: Program, mesh: Mesh) -> None:
    """Raises InputError unless the mesh's devices divide every batch of the program."""
    sizes = program.learner
    both = "" if sizes.unlabelled_rows else " + world_model.unlabelled_rows"
    rows_per_device(sizes.labelled_rows, mesh, f"world_model.labelled_rows{both}")
    rows_per_device(sizes.unlabelled_rows, mesh, "world_model.unlabelled_rows")
    rows_per_device(program.agent.start_rows, mesh, "agent.start_rows")


def _fields(config: ConfigDict, *names: str) -> dict:
    return {name: config[name] for name in names}


def _check(config: ConfigDict) -> None:
    check_counts(
        config, "world_model", "deterministic", "stochastic", "units", "layers", "steps",
        "labelled_rows",
    )
    check_counts(
        config, "agent", "steps", "start_rows", "horizon", "units", "layers", "value_networks"
    )
    check_counts(config, "run", "steps_per_call", "checkpoint_every", "evaluate_every")
    if config.world_model.window < 2:
        raise InputError(f"world_model.window is {config.world_model.window}; it must be >= 2")
    check_below_one(config, "agent", "discount")
    check_positive(
        config, "world_model", "observation_std", "reward_std", "action_std", "min_std",
        "learning_rate", "gradient_clip",
    )
    check_positive(config, "agent", "learning_rate", "gradient_clip")
    check_not_negative(
        config, "agent", "disagreement", "epsilon", "entropy", "prior", "action_entropy"
    )
    check_share(config, "agent", "lambda_", "target_rate")
    check_share(config, "world_model", "kl_balance", "learning_rate_end")
    check_not_negative(
        config, "world_model", "latent_kl_weight", "driving_noise", "free_nats",
        "inverse_on_labelled", "weight_decay", "latent_action", "warmup_steps",
    )
    if config.agent.disagreement and config.agent.value_networks < 2:
        raise InputError(
            "agent.disagreement needs agent.value_networks of at least 2, which can disagree"
        )
    check_not_negative(config, "world_model", "unlabelled_rows")
    check_run(config)
