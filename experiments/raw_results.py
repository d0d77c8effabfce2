"""The raw results of runs, one small JSON file each, and what several of them say together."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.identity import LATER, agent_seed, complete, differences, flatten, read_by
from lawm_jax import statistics
from lawm_jax.errors import InputError

Result = dict[str, Any]
Cells = dict[tuple[str, str, str], dict[str, list[Result]]]

# What is known of the paper's Table 1 at 5% labels: LAWM's return / 10.
PAPER = {
    ("walker_walk", "expert", "5%"): "94.3 ± 0.6",
    ("cheetah_run", "expert", "5%"): "52.4 ± 23.5",
}
DATA_KEYS = ("name", "dataset", "trajectories", "train_frames")  # of a config: what names its data
# What configs/table.py sets apart from an experiment's default: one value a method.
TABLE_KEYS = (
    "td3_bc.critic_layer_norm", "world_model.latent_kl_weight", "agent.prior", "agent.entropy"
)
# What of a result tables and figures use of every run; of some there is more.
NEEDED_OF_LAPO = {
    "dataset.fingerprint", *(f"{policy}_policy.{key}" for policy in ("data", "random")
                             for key in ("return_mean", "return_ci95"))
}
NEEDED = {
    "dataset.fingerprint", "evaluation.return_mean", "evaluation.return_ci95", "wall_clock_seconds"
}
LAPO_METHODS = {  # name -> what of configs/procgen.py makes it
    "lapo": {},
    "lapo_without_vq": {"vq.enabled": False},
}


# ---- files


def file_name(result: Result) -> str:
    """The name under which a result is kept: data set, method, labels where it has them, seed.

    And the agent's seed where it is another one.
    """
    config = result["config"]
    dataset = result["dataset"]["name"].replace("/", "_")
    if is_lapo(result):
        return f"{dataset}_{lapo_method(config)}_seed{result['seed']}.json"
    labels = f"{100 * config['data']['label_fraction']:g}pct"
    agent = agent_seed(config, result["seed"])
    further = "" if agent == result["seed"] else f"_agent{agent}"
    return f"{dataset}_{config['method']}_{labels}_seed{result['seed']}{further}.json"


def is_lapo(result: Result) -> bool:
    """Whether a result is one of experiments.lapo."""
    return "data_policy" in result


def lapo_method(config: Mapping[str, Any]) -> str:
    """Which of LAPO_METHODS a config of configs/procgen.py is."""
    return "lapo" if config["vq"]["enabled"] else "lapo_without_vq"


def add(directory: Path, workdir: Path) -> list[Path]:
    """Copies a finished run's results.json into the directory of raw results, a file a seed.

    Raises:
      InputError: the run is not finished or its policy was not evaluated, or the directory holds
        the result of another configuration under this name.
    """
    source = workdir / "results.json"
    if not source.exists():
        raise InputError(f"{source} not found: the run is not finished")
    result = whole(source)
    read(directory, is_lapo(result))  # so that none of the other kind joins it
    targets = {directory / file_name(one): one for one in of_seeds(result)}
    for target, one in targets.items():
        kept = whole(target)["config"] if target.exists() else None
        if kept and (other := differing(kept, one["config"])):
            raise InputError(
                f"{target} holds the result of another configuration ({', '.join(other)}); use "
                "another directory"
            )
    directory.mkdir(parents=True, exist_ok=True)
    for target, one in targets.items():
        part = target.with_suffix(".part")
        part.write_text(json.dumps(one, indent=1) + "\n")
        part.replace(target)
    return list(targets)


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config its run reads, flat, by today's names, later keys included."""
    flat = complete(config)
    return read_by(config["method"], flat) if "method" in config else flat


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What sets two runs of a method apart, of what they read, as "key before -> now"."""
    return differences(_read(before), _read(now))


def takes_name_of(config: Mapping[str, Any], kept: Result) -> bool:
    """Whether a run of this config would be kept under the name of a kept result."""
    data = [
        (tree.get("task"), *(tree["data"].get(key) for key in DATA_KEYS))
        for tree in (config, kept["config"])
    ]
    if data[0] != data[1]:
        return False
    return file_name(kept | {"config": config, "seed": config["seed"]}) == file_name(kept)


def of_seeds(result: Result) -> list[Result]:
    """A result for each seed of a run whose seeds learned side by side (num_seeds)."""
    if "seeds" not in result:
        return [result]
    shared = {name: value for name, value in result.items() if name != "seeds"}
    return [
        shared | {
            "seed": one["seed"],
            "evaluation": one["evaluation"],
            "metrics": result["metrics"] | one["metrics"],
        }
        for one in result["seeds"]
    ]


def read(directory: Path, lapo: bool = False) -> list[Result]:
    """All raw results of a directory; none where it is missing.

    lapo: those of experiments.lapo, which have a directory of their own; else of the control suite.

    Raises:
      InputError: a file that is damaged, or of the other kind, or has what another one has.
    """
    results: dict[str, tuple[Path, Result]] = {}
    for path in sorted(directory.glob("*.json")):
        result = whole(path)
        name, of_lapo = file_name(result), is_lapo(result)
        if of_lapo != lapo:
            kind = "is of LAPO, and the others are not" if of_lapo else "is not of LAPO"
            raise InputError(f"{path} {kind}; keep it in another directory")
        if name in results:
            raise InputError(f"{path} and {results[name][0]} are results of one run; remove one")
        results[name] = path, result
    return [result for _, result in results.values()]


def whole(path: Path) -> Result:
    """A file's result; InputError unless it has what tables and figures use of every run."""
    try:
        result = json.loads(path.read_text())
        needed = NEEDED_OF_LAPO if is_lapo(result) else NEEDED
        if missing := needed - flatten(result).keys():
            raise KeyError(", ".join(sorted(missing)))
        file_name(result)  # which needs more of it
        return result
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no whole result of a run ({type(error).__name__}: {error}); put it "
            "back, or remove it"
        ) from error


def read_cells(directory: Path) -> Cells:
    """The raw results of a directory by (task, data set, labels as "5%") and method.

    Those at 100% labels have "_oracle" behind the method's name. Agents on one world model count as
    one seed: they are one result, their mean.

    Raises:
      InputError: there are none, those of a row come from different data, those of a method have
        different TABLE_KEYS, or agents of one seed have different settings.
    """
    cells: Cells = defaultdict(lambda: defaultdict(list))
    for result in read(directory):
        config, oracle = result["config"], result["config"]["data"]["label_fraction"] == 1.0
        method = config["method"] + ("_oracle" if oracle else "")
        labels = "100%" if oracle else f"{100 * config['data']['label_fraction']:g}%"
        name = result["dataset"]["name"].removesuffix(f"_{config['data']['trajectories']}")
        dataset = name.removeprefix(f"{config['task']}/")
        cells[config["task"], dataset, labels][method].append(result)
    if not cells:
        raise InputError(f"{directory} holds no results")
    _check_comparable(directory, cells)
    for by_method in cells.values():
        for method, results in by_method.items():
            by_method[method] = _one_a_seed(directory, results)
    return cells


def _check_comparable(directory: Path, cells: Cells) -> None:
    """Refuses results that say nothing together: of different data or of other TABLE_KEYS."""
    fingerprints, settings = defaultdict(set), defaultdict(set)
    for (task, dataset, _), by_method in cells.items():
        for name, results in by_method.items():
            found = {result["dataset"]["fingerprint"] for result in results}
            fingerprints[f"{task}/{dataset}"] |= found
            method = name.removesuffix("_oracle")
            for result in results:
                flat = _read(result["config"])
                for key in flat.keys() & TABLE_KEYS:
                    settings[method, key].add(flat[key])
    for (method, key), values in settings.items():
        if len(values) > 1:  # also where it is two cells: they are averaged
            raise InputError(
                f"{directory}: {method} has results with {key} "
                f"{' and '.join(map(str, sorted(values)))}; keep them in different directories"
            )
    check_one_data_set(directory, fingerprints)


def check_one_data_set(directory: Path, fingerprints: Mapping[str, set[str]]) -> None:
    """Raises InputError where what is compared has several fingerprints: name -> those found."""
    for name, found in fingerprints.items():
        if len(found) > 1:
            raise InputError(
                f"{directory}: the results on {name} come from {len(found)} different "
                "data sets (their fingerprints differ); remove those of the old one"
            )


def _one_a_seed(directory: Path, results: Sequence[Result]) -> list[Result]:
    """The results of a cell with those of further agents averaged into their seed's."""
    by_seed: dict[int, list[Result]] = defaultdict(list)
    for result in results:
        by_seed[result["seed"]].append(result)
    for agents in by_seed.values():
        first, *others = map(_settings, agents)
        for other in others:
            if found := differences(first, other):
                raise InputError(
                    f"{directory}: {file_name(agents[0])} and other agents of that seed differ in "
                    f"{', '.join(found)}; keep their results in another directory"
                )
    return [_mean(agents) for agents in by_seed.values()]


def _settings(result: Result) -> dict[str, Any]:
    """What agents of one seed must share: all that makes world model and agent, but its seed."""
    own = ("world_model.pretrained", "agent.seed")
    flat = {key: value for key, value in LATER.items() if key.startswith("agent.")}
    flat |= flatten(result["config"])
    groups = ("world_model.", "agent.")
    return {key: value for key, value in flat.items() if key.startswith(groups) and key not in own}


def _mean(agents: Sequence[Result]) -> Result:
    """The result of one seed, the mean over its agents; a single agent's as it is.

    The interval is over episodes, the wall-clock of the longest run: it trained the world model.
    Where only that run has a metric, as those of training, it is that one.
    """
    if len(agents) == 1:
        return agents[0]
    mean = {
        section: {
            key: average([a for a in agents if key in a[section]], section, key)
            for key in agents[0][section]
        }
        for section in ("evaluation", "metrics")
    }
    halves = [agent["evaluation"]["return_ci95"] for agent in agents]
    mean["evaluation"]["return_ci95"] = float(np.linalg.norm(halves)) / len(agents)
    seconds = max(agent["wall_clock_seconds"] for agent in agents)
    return agents[0] | mean | {"wall_clock_seconds": seconds}


# ---- estimates


class Estimate(NamedTuple):
    """A mean with the ends of its 95% interval."""

    mean: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Estimate":
        """In another unit."""
        return Estimate(*(factor * value for value in self))


def placed(
    policy: Mapping[str, Any], random: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[float, float]:
    """A policy's mean return, the random one at 0 and the data's at 1, and its 95% half-width.

    Each has return_mean and return_ci95; the two references' means must differ.
    """
    return statistics.between(
        *((x["return_mean"], x["return_ci95"]) for x in (policy, random, data))
    )


def mean_and_interval(results: Sequence[Result]) -> tuple[float, float]:
    """Mean final return of seeds and the half-width of its 95% interval.

    Over seeds by Student's t, or over the one run's episodes.
    """
    means = [result["evaluation"]["return_mean"] for result in results]
    if len(means) == 1:
        return means[0], results[0]["evaluation"]["return_ci95"]
    return float(np.mean(means)), statistics.student_half_width(means)


def estimate(results: Sequence[Result]) -> Estimate:
    """Mean final return of a cell's seeds; its interval by the bootstrap where there are many."""
    if len(results) >= statistics.BOOTSTRAP_FROM:
        return aggregate(statistics.mean, [results])
    mean, half = mean_and_interval(results)
    return Estimate(mean, mean - half, mean + half)


def aggregate(
    statistic: Callable[[statistics.Strata], np.ndarray], cells: Sequence[Sequence[Result]]
) -> Estimate:
    """A statistic of the final returns of several cells, by the stratified bootstrap.

    A cell of one run varies by its episodes alone.
    """
    strata = [np.array([r["evaluation"]["return_mean"] for r in results]) for results in cells]
    errors = [results[0]["evaluation"]["return_ci95"] / 1.96 for results in cells]
    low, high = statistics.bootstrap_interval(statistic, strata, errors)
    return Estimate(statistic(strata), low, high)


def difference(a: Sequence[Result], b: Sequence[Result]) -> tuple[float, float] | None:
    """Mean of a's return minus b's over the seeds that both have, with its 95% interval.

    Seeds share their labelled trajectories, so the difference is taken seed by seed (paired). None
    where no seed is shared.
    """
    gains, error = _gains(a, b)
    if len(gains) < 2:
        return (float(gains[0]), 1.96 * error) if len(gains) else None
    return float(gains.mean()), statistics.student_half_width(gains)


def average_difference(
    cells: Sequence[tuple[Sequence[Result], Sequence[Result]]]
) -> Estimate | None:
    """The mean over cells (a, b) of `difference`; None where one shares no seed.

    Its interval is the stratified bootstrap's over cells of paired differences.
    """
    found = [_gains(a, b) for a, b in cells]
    if not found or any(not len(gains) for gains, _ in found):
        return None
    strata, errors = zip(*found, strict=True)
    low, high = statistics.bootstrap_interval(statistics.mean, strata, errors)
    return Estimate(float(statistics.mean(strata)), float(low), float(high))


def _gains(a: Sequence[Result], b: Sequence[Result]) -> tuple[np.ndarray, float]:
    """Returns of a minus those of b by seed, and the standard error by episodes of the first."""
    other = {result["seed"]: result["evaluation"] for result in b}
    pairs = [(r["evaluation"], other[r["seed"]]) for r in a if r["seed"] in other]
    gains = np.array([x["return_mean"] - y["return_mean"] for x, y in pairs])
    halves = [one["return_ci95"] for one in pairs[0]] if pairs else []
    return gains, float(np.linalg.norm(halves)) / 1.96


def average(results: Sequence[Result], section: str, key: str) -> float:
    """Mean of a figure over results; NaN where one lacks it."""
    values = [result[section].get(key, np.nan) for result in results]
    return float(np.mean(values)) if values else float("nan")
