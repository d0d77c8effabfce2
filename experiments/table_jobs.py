"""The runs that a config of configs/table.py asks for."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments import command_line
from experiments.methods import experiment_of
from experiments.raw_results import LAPO_METHODS
from experiments.sweep import Job
from lawm_jax.config_checks import check_whole_numbers
from lawm_jax.errors import InputError
from lawm_jax.lawm.methods import METHODS
from lawm_jax.offline.methods import BASELINES

# Those that can see all actions: what learns from unlabelled trajectories has none left then.
ORACLES = (
    *(name for name, method in METHODS.items() if not method.unlabelled),
    *(name for name, method in BASELINES.items() if not method.inverse_dynamics),
)
# Keys by which jobs of the control suite, or of LAPO, and their results are told apart.
OF_A_JOB = {
    "method", "data.label_fraction", "seed", "num_seeds", "agent.seed", "data.name",
    "data.trajectories", "world_model.pretrained",
}
OF_A_LAPO_JOB = {"seed", "stages", "vq.enabled", "data.name", "data.train_frames", "pretrained"}


def jobs_of(config: ConfigDict, workdir: Path) -> list[Job]:
    """The jobs of a config, each once, first seeds first, further agents of a world model last.

    workdir: where the jobs' work directories are; those of further agents name one of them.

    Raises:
      InputError: an unknown row, method, preset or game, an oracle that has none, a fraction
        outside (0, 1], settings that cannot be or a seed below 0.
    """
    _check(config)
    jobs: dict[str, Job] = {}
    for job in (*_control(config.dmc), *_lapo(config.lapo)):
        if jobs.setdefault(job.name, job) != job:
            raise InputError(
                f"two jobs are called {job.name}: label fractions are told apart by six digits"
            )
    if not jobs:
        raise InputError("the config asks for no run")
    agents = [
        _agent_job(job, seed, workdir)
        for job in jobs.values() if job.experiment == "lawm"
        for seed in config.dmc.agent_seeds if seed != job.config["seed"]
    ]
    return sorted([*jobs.values(), *agents], key=lambda job: (job.needs > "", job.config["seed"]))


def _check(config: ConfigDict) -> None:
    """What no job's config would refuse before it runs."""
    for section, key in (
        ("dmc", "seeds"), ("dmc", "repeated_seeds"), ("dmc", "agent_seeds"), ("lapo", "seeds")
    ):
        check_whole_numbers(config[section][key], f"{section}.{key}", at_least=0)
    for key in ("label_fractions", "curve_fractions"):
        for x in config.dmc[key]:
            if not isinstance(x, (int, float)) or not 0.0 < x <= 1.0:
                raise InputError(f"dmc.{key} has {x!r}; it must be in (0, 1]")
    settings = config.dmc.settings
    forms = {"dmc": ("method", "label fraction or None", "key", "value"), "lapo": ("key", "value")}
    for section, form in forms.items():
        for x in config[section].settings:
            if not isinstance(x, tuple) or len(x) != len(form):
                form = f"(({', '.join(form)}), ...)"
                raise InputError(f"{section}.settings has {x!r}; write {form}")
    if wrong := sorted({key for key, _ in config.lapo.settings} & OF_A_LAPO_JOB):
        raise InputError(f"lapo.settings has '{wrong[0]}', which tells jobs apart; leave it out")
    if wrong := sorted({name for name, *_ in settings} - {*METHODS, *BASELINES}):
        raise InputError(
            f"dmc.settings has '{wrong[0]}'; choose from {', '.join((*METHODS, *BASELINES))}"
        )
    if wrong := sorted({key for *_, key, _ in settings} & OF_A_JOB):
        raise InputError(f"dmc.settings has '{wrong[0]}', which tells jobs apart; leave it out")
    if wrong := sorted(set(config.dmc.oracles) - set(ORACLES)):
        raise InputError(f"dmc.oracles has '{wrong[0]}'; choose from {', '.join(ORACLES)}")


def _control(dmc: ConfigDict) -> Iterator[Job]:
    if unknown := sorted({*dmc.repeated_rows, *dmc.curve_rows} - set(dmc.rows)):
        raise InputError(f"'{unknown[0]}' is not one of dmc.rows, {', '.join(dmc.rows)}")
    for row in dmc.rows:
        seeds = [*dmc.seeds, *(dmc.repeated_seeds if row in dmc.repeated_rows else ())]
        for seed in seeds:
            for method in dmc.oracles:
                yield _control_job(dmc, row, method, 1.0, seed)
            for fraction in dmc.label_fractions:
                for method in dmc.methods:
                    yield _control_job(dmc, row, method, fraction, seed)
        for seed in dmc.seeds if row in dmc.curve_rows else ():
            for fraction in dmc.curve_fractions:
                for method in dmc.curve_methods:
                    yield _control_job(dmc, row, method, fraction, seed)


def _control_job(dmc: ConfigDict, row: str, method: str, fraction: float, seed: int) -> Job:
    preset = dmc.preset
    task, _, dataset = row.partition("/")
    if not dataset:
        raise InputError(f"dmc.rows has '{row}'; write TASK/DATASET, as walker_walk/medium_replay")
    settings = {"method": method, "data.label_fraction": fraction, "seed": seed}
    settings |= {
        key: value for name, of, key, value in dmc.settings
        if name == method and of in (None, fraction)
    }
    chosen = f"configs/dmc.py:{task},{dataset}" + ("" if preset == "default" else f",{preset}")
    name = f"{task}_{dataset}_{preset}_{method}_{100 * fraction:g}pct_seed{seed}"
    return _job(name, experiment_of(method), _flags(chosen, settings), "dmc")


def _agent_job(job: Job, seed: int, workdir: Path) -> Job:
    """A further agent on the world model of a job."""
    flags = (
        *job.flags,
        f"--config.agent.seed={seed}",
        f"--config.world_model.pretrained={workdir / job.name}",
    )
    further = _job(f"{job.name}_agent{seed}", job.experiment, flags, job.group)
    return dataclasses.replace(further, needs=job.name)


def _lapo(lapo: ConfigDict) -> Iterator[Job]:
    for game in lapo.games:
        for seed in lapo.seeds:
            for method in lapo.methods:
                if method not in LAPO_METHODS:
                    raise InputError(
                        f"lapo.methods has '{method}'; choose from {', '.join(LAPO_METHODS)}"
                    )
                settings = {**LAPO_METHODS[method], "seed": seed}
                if lapo.stages:
                    settings["stages"] = lapo.stages
                settings |= dict(lapo.settings)
                chosen = f"configs/procgen.py:{game},{lapo.preset}"
                name = f"{game}_{lapo.preset}_{method}_seed{seed}"
                yield _job(name, "lapo", _flags(chosen, settings), "lapo")


def _flags(chosen: str, settings: dict[str, Any]) -> tuple[str, ...]:
    return f"--config={chosen}", *(f"--config.{key}={x}" for key, x in settings.items())


def _job(name: str, experiment: str, flags: tuple[str, ...], group: str) -> Job:
    """A job whose config is what its flags come to; raises InputError where they are wrong."""
    parsed = command_line.parse([experiment, *flags])
    config = json.loads(parsed.config.to_json_best_effort())
    return Job(name, experiment, flags, config, group)
