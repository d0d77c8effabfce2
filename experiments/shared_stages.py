"""Stages of LAPO that another run has finished, taken instead of training them again.

Decoders, distilled policies and online decoding are tried so with other settings on the same latent
actions. Such runs are of one seed: WORKDIR/pretrained.json and results.json say whose stages they
have.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from experiments import other_run
from experiments.identity import LATER, differences, flatten
from experiments.launch import Run
from experiments.training import Session
from lawm_jax import runner
from lawm_jax.checkpoint import state_digest
from lawm_jax.errors import InputError
from lawm_jax.metrics import read_metrics

KEY = "pretrained"
FILE = "pretrained.json"
# What must be the same for a stage to be the run's own, besides the frames' fingerprint: these,
SAME = ("task", "seed", "dtype", "data.max_frames")
# and these sections; `evaluation` as the stage's metrics are taken, too.
SECTIONS = {
    "latent_action": ("idm", "fdm", "vq", "latent_action", "evaluation"),
    "latent_policy": (
        "idm", "fdm", "vq", "latent_action", "policy", "latent_policy", "evaluation",
    ),
    "cloning": ("policy", "cloning", "evaluation"),
    "supervised_idm": ("idm", "supervised_idm", "evaluation"),
}
State = dict[str, Any]


def take(
    run: Run, session: Session, fingerprint: str, fresh: Callable[[ConfigDict], State]
) -> None:
    """Puts the finished stages of the run that `pretrained` names into a session that is new.

    Taken are those of SECTIONS that both runs have, with the same settings; their metrics come
    with them. A session that has begun holds them already.

    Args:
      fingerprint: of the frames.
      fresh: config -> a fresh train state for each phase.

    Raises:
      InputError: the other run is missing, of other data, or has no finished stage with this run's
        settings; the message says what differs.
    """
    name = run.config.pretrained.rstrip("/")
    if not name or any(runner.step_of(part) for part in session.state.values()):
        return
    theirs = runner.all_or_none(lambda: other_run.config_of(KEY, name, "lapo"))
    found = _same(theirs, json.loads(run.config.to_json_best_effort()), session.state)
    template = _template(run.config, theirs, fresh, session.state)
    restored = other_run.newest(KEY, name, template, fingerprint).state
    taken = []
    for phase, different in found.items():
        part = restored.get(phase)
        step, steps = 0 if part is None else runner.step_of(part), theirs[phase]["steps"]
        if step < steps:
            different = [f"there it has {step} of {steps} steps"]
        if different:
            _say(f"{phase} is trained here: {', '.join(different)}")
            continue
        _say(f"{phase} of {name}: {step} steps, digest {state_digest(part)[:12]}")
        session.state[phase] = part
        taken.append(phase)
    if not taken:
        why = "; ".join(f"{phase}: {', '.join(x)}" for phase, x in found.items() if x)
        raise InputError(f"{KEY}: {name} has no finished stage with this run's settings ({why})")
    if session.logger:
        _note(run, session, name, taken)
    session.save()  # from here on the other run is not needed


def origin(run: Run) -> dict[str, Any] | None:
    """What results.json says of the stages that were taken; None where there are none."""
    path = run.workdir / FILE
    return json.loads(path.read_text()) if path.exists() else None


def _same(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], phases: Iterable[str]
) -> dict[str, list[str]]:
    """Each of these phases that could be taken -> what sets its settings in the two apart."""
    before, now = LATER | flatten(dict(theirs)), LATER | flatten(dict(ours))
    pick = lambda flat, sections: {
        key: x for key, x in flat.items() if key in SAME or key.split(".")[0] in sections
    }
    return {
        phase: differences(pick(before, sections), pick(now, sections))
        for phase, sections in SECTIONS.items()
        if phase in phases
    }


def _template(
    config: ConfigDict, theirs: Mapping[str, Any], fresh: Callable[[ConfigDict], State], ours: State
) -> State:
    """Shapes of the other run's state, whose networks may have other sizes, placed as ours is."""
    whole = ConfigDict(config.to_dict())  # keys that its config lacks matter to no phase of it
    known = flatten(config.to_dict())
    flat = {key: x for key, x in flatten(dict(theirs)).items() if key in known}
    whole.update_from_flattened_dict(flat)
    sharding = jax.tree.leaves(ours)[0].sharding
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: fresh(whole)),
    )


def _note(run: Run, session: Session, name: str, taken: list[str]) -> None:
    """Keeps whose stages they are, and logs their metrics as if they had been trained here."""
    digests = {phase: state_digest(session.state[phase]) for phase in taken}
    (run.workdir / FILE).write_text(json.dumps({"workdir": name, "digests": digests}))
    for record in read_metrics(epath.Path(name)):
        if record["phase"] in taken:
            values = {key: x for key, x in record.items() if key not in ("step", "phase")}
            session.logger.log(record["step"], record["phase"], values)


def _say(text: str) -> None:
    if runner.is_main():
        print(text, flush=True)
