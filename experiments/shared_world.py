"""A world model that another run has trained, taken instead of training one.

Policies with other settings or of another seed are tried so without training it again. Agents that
share a world model count as one seed: results.json says whose it is.
"""

import dataclasses
import json
from typing import Any

import jax

from experiments import other_run
from experiments.identity import complete, differences, flatten
from experiments.launch import Run
from experiments.training import Session
from lawm_jax import runner
from lawm_jax.checkpoint import state_digest
from lawm_jax.errors import InputError
from lawm_jax.lawm import actor_critic
from lawm_jax.lawm.methods import Program

PyTree = Any
KEY = "world_model.pretrained"
# Besides the settings of the world model, what must be the same for it to be the run's own; the
# trajectories themselves are told by their fingerprint.
SAME = ("task", "method", "seed", "num_seeds", "data.label_fraction", "data.heldout_fraction")


def open_session(
    run: Run, program: Program, state: dict[str, PyTree], fingerprint: str
) -> Session:
    """The run's session, with the world model that world_model.pretrained names, if it does.

    Args:
      state: fresh train states "world_model" and "agent", of one seed or several.
      fingerprint: of the data.

    Raises:
      InputError: what `Session` raises; the other run is missing, was set otherwise or has not
        finished its world model, or the one that this run was begun on is no longer there.
    """
    name = run.config.world_model.pretrained
    if not name:
        return Session(run, state, fingerprint)
    world = _take(run, program, state, fingerprint)
    digest = state_digest(world)
    if runner.is_main():
        step = runner.step_of(world)
        print(f"world model of {name}: {step} steps, digest {digest[:12]}", flush=True)
    session = Session(run, state | {"world_model": world}, fingerprint)
    begun_on = state_digest(session.state["world_model"])
    if begun_on != digest:
        session.close()
        raise InputError(
            f"{run.address} was begun on another world model than {name} now holds (digest "
            f"{begun_on[:12]}, now {digest[:12]}); choose another --workdir"
        )
    return session


def origin(run: Run, session: Session) -> dict[str, Any]:
    """What results.json says of the world model: its digest, and where it came from if shared."""
    name = run.config.world_model.pretrained
    about = {"shared": bool(name), "digest": state_digest(session.state["world_model"])}
    return about | ({"pretrained": name} if name else {})


def _take(run: Run, program: Program, state: dict[str, PyTree], fingerprint: str) -> PyTree:
    """The world model's train state in the other run's newest checkpoint, placed as `state` is."""
    agent = runner.all_or_none(lambda: _checked(run))
    template = {
        "world_model": state["world_model"],
        "agent": _template(program, agent, state["agent"]),
    }
    restored = other_run.newest(KEY, _other(run), template, fingerprint)
    step, steps = runner.step_of(restored.state["world_model"]), program.learner.steps
    if step < steps:
        raise InputError(
            f"{KEY}: {_other(run)} has trained its world model for {step} of {steps} steps: let "
            "that run go on first"
        )
    return restored.state["world_model"]


def _checked(run: Run) -> dict[str, Any]:
    """The flat config of the other run, which is one that has the same world model.

    Raises InputError, which names what differs.
    """
    theirs = other_run.config_of(KEY, _other(run), "lawm")
    ours = json.loads(run.config.to_json_best_effort())
    if found := differences(_settings(theirs), _settings(ours)):
        raise InputError(f"{KEY}: {_other(run)} holds another world model ({', '.join(found)})")
    return flatten(theirs)


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """All that decides what a world model becomes, but for the data."""
    flat = complete(config)
    del flat["world_model.pretrained"]
    return {key: x for key, x in flat.items() if key in SAME or key.startswith("world_model.")}


def _template(program: Program, settings: dict[str, Any], ours: PyTree) -> PyTree:
    """Shapes of the other run's agent, whose networks may have other sizes than this run's."""
    sizes = {name: settings[f"agent.{name}"] for name in ("units", "layers", "value_networks")}
    config = dataclasses.replace(program.agent, **sizes)
    one = jax.eval_shape(lambda: actor_critic.init(program.model, config, 0))
    seeds, sharding = ours.step.shape, ours.step.sharding  # seeds: an axis, or none for one seed
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*seeds, *x.shape), x.dtype, sharding=sharding), one
    )


def _other(run: Run) -> str:
    """The other run's work directory, or gs:// address."""
    return run.config.world_model.pretrained.rstrip("/")
