"""How much of a control task's state space data sets cover, beside uniformly random actions.

    python -m benchmarks.coverage --task=walker_walk \\
      plan2explore=data_own/walker_walk/plan2explore_128 sac=data/walker_walk/plan2explore_400

Of every data set the same number of trajectories, evenly spread, is divided into parts without
trajectories in common, and each part's observations are thinned to the same number; a part of one
set is measured beside the parts of the others.
"""

import json
from pathlib import Path

import numpy as np

from benchmarks import report
from lawm_jax.coverage import coverage
from lawm_jax.data.shards import read_dataset
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.envs.dmc import ControlSuite
from lawm_jax.envs.rollout import rollout
from lawm_jax.errors import InputError
from lawm_jax.policies import evenly

ENVIRONMENTS = 32


def random_trajectories(task: str, count: int, seed: int) -> list[Trajectory]:
    """Episodes of actions drawn uniformly from [-1, 1]."""
    env, rng = ControlSuite(task, ENVIRONMENTS, seed), np.random.default_rng(seed)
    shape = (ENVIRONMENTS, env.spec.action_size)
    act = lambda carry, observation, t: (rng.uniform(-1, 1, shape), carry)
    trajectories: list[Trajectory] = []
    while len(trajectories) < count:
        trajectories += rollout(env, act, None)
    env.close()
    return trajectories[:count]


def measure(
    sets: dict[str, list[Trajectory]], trajectories: int, parts: int, samples: int
) -> dict[str, dict[str, list[float]]]:
    """Cells and log-distances of every part of every set.

    Raises:
        InputError: a set has fewer trajectories.
    """
    rng, thinned = np.random.default_rng(0), {}
    for name, members in sets.items():
        if len(members) < trajectories:
            raise InputError(f"{name} has {len(members)} trajectories, not {trajectories}")
        chosen = [members[i].observation for i in evenly(len(members) - 1, trajectories)]
        thinned[name] = [
            rng.choice(np.concatenate(chosen[part::parts]), samples, replace=False)
            for part in range(parts)
        ]
    rows = [coverage(list(together)) for together in zip(*thinned.values(), strict=True)]
    return {
        name: {field: [getattr(row[i], field) for row in rows] for field in rows[0][i]._fields}
        for i, name in enumerate(sets)
    }


def _read(spec: str) -> tuple[str, list[Trajectory]]:
    name, _, path = spec.partition("=")
    directory = Path(path)
    if not path or len(directory.parts) < 2:
        raise InputError(f"'{spec}' is not NAME=DATA_DIR/TASK/DATASET")
    dataset = read_dataset(directory.parent.parent, "/".join(directory.parts[-2:]))
    return name, list(dataset.trajectories)


@report.command
def main() -> None:
    """Reads the command line, measures, prints a table and writes the JSON file."""
    parser = report.parser(__doc__)
    parser.add_argument("sets", nargs="+", metavar="NAME=DATA_DIR/TASK/DATASET")
    parser.add_argument("--task", required=True)
    parser.add_argument("--trajectories", type=int, default=128, help="of every set")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--samples", type=int, default=5000, help="observations of every part")
    arguments = parser.parse_args()
    report.check(arguments)
    sets = {"random": random_trajectories(arguments.task, arguments.trajectories, seed=0)}
    sets |= dict(map(_read, arguments.sets))
    measured = measure(sets, arguments.trajectories, arguments.parts, arguments.samples)
    for name, row in measured.items():
        cells, distance = np.mean(row["cells"]), np.mean(row["log_distance"])
        print(f"{name:20} cells {cells:8.1f} {row['cells']}  mean log distance {distance:.3f}")
    if arguments.json:
        content = {"command": report.command_text(), "measured": measured}
        Path(arguments.json).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
