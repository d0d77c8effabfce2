"""Stages of LAPO that another run has finished, taken instead of training them again.

Decoders, distilled policies and online decoding are tried so with other settings on the same latent
actions; stages that do not need each other are trained side by side so, and put together. Such runs
are of one seed: WORKDIR/pretrained.json and results.json say whose stages they have.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from experiments import other_run
from experiments.identity import complete, differences, flatten
from experiments.launch import Run
from experiments.training import Session
from lawm_jax import runner
from lawm_jax.checkpoint import state_digest
from lawm_jax.errors import InputError, first_line
from lawm_jax.metrics import read_metrics

KEY = "pretrained"
FILE = "pretrained.json"
# What must be the same for a stage to be the run's own, besides the frames' fingerprint: these,
SAME = ("task", "seed", "dtype", "data.max_frames")
# and these sections or keys; of `evaluation` what the stage's metrics, which are taken too, go by.
MEASURED = ("evaluation.windows", "evaluation.merge")
SECTIONS = {
    "latent_action": ("idm", "fdm", "vq", "latent_action", *MEASURED),
    "latent_policy": ("idm", "fdm", "vq", "latent_action", "policy", "latent_policy", *MEASURED),
    "cloning": ("policy", "cloning", "evaluation"),
    "supervised_idm": ("idm", "supervised_idm", *MEASURED),
}
State = dict[str, Any]


class Taken(NamedTuple):
    """Finished stages: phase -> train state, and phase -> whose it is."""

    state: State
    workdirs: dict[str, str]


def find(
    run: Run, state: State, fingerprint: str, fresh: Callable[[ConfigDict], State]
) -> Taken:
    """The finished stages of the runs that `pretrained` names, each of the first that has it.

    They are those of SECTIONS that both runs have, with the same settings. None where the key is
    empty, or the run has taken them before.

    Args:
      state: this run's, fresh.
      fingerprint: of the frames.
      fresh: config -> a fresh train state for each phase.

    Raises:
      InputError: another run is missing, of other data, or has no finished stage with this run's
        settings that those before it lack; the message says what differs.
    """
    taken = Taken({}, {})
    names = _others(run)
    if not names or _has_taken(run):
        return taken
    missing: dict[str, list[str]] = defaultdict(list)
    for name in names:
        finished, apart = _finished(run, name, state, fingerprint, fresh)
        _check_latents(finished, apart, taken.state)
        new = {phase: x for phase, x in finished.items() if phase not in taken.state}
        left = {phase: ", ".join(apart[phase]) for phase in apart if phase not in taken.state}
        if not new:
            why = "; ".join(f"{phase}: {x}" for phase, x in left.items())
            raise InputError(
                f"{KEY}: {name} has no finished stage with this run's settings"
                + (" that those before it lack" if finished else "")
                + (f" ({why})" if why else "")
            )
        for phase, part in new.items():
            step, digest = runner.step_of(part), state_digest(part)[:12]
            _say(f"{phase} of {name}: {step} steps, digest {digest}")
        taken.state.update(new)
        taken.workdirs.update(dict.fromkeys(new, name))
        for phase in left.keys() - new.keys():
            missing[phase].append(left[phase] + (f" in {name}" if len(names) > 1 else ""))
    for phase, why in missing.items():
        if phase not in taken.state:
            _say(f"{phase} is trained here: {'; '.join(why)}")
    return taken


def _finished(
    run: Run, name: str, state: State, fingerprint: str, fresh: Callable[[ConfigDict], State]
) -> tuple[State, dict[str, list[str]]]:
    """The stages that another run has for this one, and of each phase what speaks against it."""
    theirs = runner.all_or_none(lambda: other_run.config_of(KEY, name, "lapo"))
    apart = _apart(theirs, json.loads(run.config.to_json_best_effort()), state)
    template = _template(run.config, theirs, fresh, state)
    restored = other_run.newest(KEY, name, template, fingerprint).state
    for phase, why in apart.items():
        step = runner.step_of(restored[phase]) if phase in restored else 0
        if step < (steps := theirs[phase]["steps"]):
            why.append(f"there it has {step} of {steps} steps")
    return {phase: restored[phase] for phase, why in apart.items() if not why}, apart


def _check_latents(finished: State, apart: dict[str, list[str]], taken: State) -> None:
    """Strikes out a finished latent policy that regressed other latents than those taken before.

    The same settings do not make them so: another machine or version may round otherwise.
    """
    before, theirs = taken.get("latent_action"), finished.get("latent_action")
    if "latent_policy" not in finished or before is None or theirs is None:
        return
    if state_digest(before) != state_digest(theirs):
        del finished["latent_policy"]
        apart["latent_policy"].append("it regresses another latent_action than the one taken")


def keep(run: Run, session: Session, taken: Taken) -> None:
    """Notes in a session that began with the stages taken what they are; saves it.

    Their metrics are logged as if they had been trained here. From here on the other runs are not
    needed.
    """
    if not taken.state:
        return
    names = _others(run)
    if not session.restored:
        for name in names if session.logger else ():
            for record in read_metrics(epath.Path(name)):
                if taken.workdirs.get(record["phase"]) == name:
                    values = {key: x for key, x in record.items() if key not in ("step", "phase")}
                    session.logger.log(record["step"], record["phase"], values)
        session.save()
    digests = {phase: state_digest(part) for phase, part in taken.state.items()}
    about = {"workdirs": taken.workdirs, "digests": digests}
    part = run.workdir / f"{FILE}.part"
    part.write_text(json.dumps(about))
    part.replace(run.workdir / FILE)


def origin(run: Run) -> dict[str, Any] | None:
    """What results.json says of the stages that were taken; None where there are none.

    Raises:
      InputError: the file that says so is damaged.
    """
    path = run.workdir / FILE
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text())
        return {"workdirs": dict(about["workdirs"]), "digests": dict(about["digests"])}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{run.address}/{FILE} is damaged ({first_line(error)}): it says whose stages the run "
            f"has; delete it to take them from {KEY} again, or choose another --workdir"
        ) from error


def _has_taken(run: Run) -> bool:
    """Whether the run has taken its stages before; every host must call it."""
    return runner.on_any_process(runner.all_or_none(lambda: origin(run) is not None))


def _apart(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], phases: Iterable[str]
) -> dict[str, list[str]]:
    """Each of these phases that could be taken -> what sets its settings in the two apart."""
    before, now = complete(theirs), complete(ours)
    pick = lambda flat, sections: {
        key: x for key, x in flat.items()
        if key in SAME or key in sections or key.split(".")[0] in sections
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
    # Keys that its config lacks and LATER does not have matter to no phase of it.
    whole = ConfigDict(config.to_dict())
    known = flatten(config.to_dict())
    flat = {key: x for key, x in complete(theirs).items() if key in known}
    whole.update_from_flattened_dict(flat)
    sharding = jax.tree.leaves(ours)[0].sharding
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: fresh(whole)),
    )


def _others(run: Run) -> list[str]:
    """The other runs' work directories, or gs:// addresses."""
    names = [name.strip().rstrip("/") for name in run.config.pretrained.split(",")]
    return [name for name in names if name]


def _say(text: str) -> None:
    if runner.is_main():
        print(text, flush=True)
