"""What the main job says of bad input: one line, exit code 2, and nothing is written."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.lawm import main
from lawm_jax.data.shards import write_dataset
from lawm_jax.data.trajectory import Trajectory

ROOT = Path(__file__).parent.parent
OBSERVATION, ACTION = 24, 6  # of walker_walk


def make_trajectories(count, length=60, observation=OBSERVATION, action=ACTION):
    rng = np.random.default_rng(0)
    return [
        Trajectory(
            rng.standard_normal((length + 1, observation)).astype(np.float32),
            rng.uniform(-1, 1, (length, action)).astype(np.float32),
            rng.uniform(0, 1, length).astype(np.float32),
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Data sets that are well, too short, of another task, and damaged."""
    directory = tmp_path_factory.mktemp("data")
    write_dataset(directory, "toy/good", make_trajectories(20), {})
    write_dataset(directory, "toy/short", make_trajectories(20, length=10), {})
    write_dataset(directory, "toy/cheetah", make_trajectories(20, observation=17), {})
    write_dataset(directory, "toy/hopper", make_trajectories(20, action=4), {})
    shutil.copytree(directory / "toy/good", directory / "toy/damaged")
    (shard,) = (directory / "toy/damaged").glob("*/*.array_record*")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    return directory


@pytest.fixture
def run(run_main, data_dir):
    """Runs the job in this process; returns (exit code, stderr)."""
    return lambda arg, *args: run_main(
        main, f"--config=configs/dmc.py:{arg}", f"--data_dir={data_dir}", *args
    )


GOOD = "--config.data.name=toy/good"


@pytest.mark.parametrize(
    ("arg", "args", "message"),
    [
        ("walker_wlak,tiny", [], "unknown task 'walker_wlak': did you mean 'walker_walk'? choose"),
        ("walker_walk,expert,tiny,medium", [], "configs/dmc.py: 'medium' is one too many; name on"),
        (
            "walker_walk,tiny", ["--config.world_model.latent_kl_weight=-1.0"],
            "world_model.latent_kl_weight is -1.0; it must be >= 0",
        ),
        (
            "walker_walk,tiny", ["--config.world_model.kl_balance=3.0"],
            "world_model.kl_balance is 3.0; it must be in",
        ),
        (
            "walker_walk,tiny", ["--config.world_model.gradient_clip=-1.0"],
            "world_model.gradient_clip is -1.0; it must be positive",
        ),
        ("walker_walk,medum", [], "configs/dmc.py: 'medum' is neither a dataset (expert, medium,"),
        (
            "walker_walk,tiny", ["--config.data.name=toy/missing"],
            r"no data set 'toy/missing' in \S+; it has toy/cheetah, toy/damaged, toy/good,",
        ),
        ("walker_walk,tiny", ["--config.data.name=good"], "data set name 'good': must look like"),
        (
            "walker_walk,tiny", ["--config.data.name=toy/cheetah"],
            "toy/cheetah: trajectory 0: observation has 17 numbers a step, not 24",
        ),
        (
            "walker_walk,tiny", ["--config.data.name=toy/hopper"],
            "toy/hopper: trajectory 0: action has 4 numbers a step, not 6",
        ),
        (
            "walker_walk,tiny", ["--config.data.name=toy/short"],
            "a trajectory holds 11 observations, fewer than a window of 16",
        ),
        (
            "walker_walk,tiny", ["--config.data.name=toy/damaged"],
            r"\S+array_record\S*: record 0 of 20 cannot be read: the file is damaged or truncated",
        ),
        (
            "walker_walk,tiny", [GOOD, "--config.data.label_fraction=0.0"],
            "data.label_fraction is 0.0, which is not in (0, 1]",
        ),
        (
            "walker_walk,tiny", [GOOD, "--config.data.label_fraction=0.01"],
            "data.label_fraction 0.01 of 20 trajectories selects none; 0.05 selects one",
        ),
        (
            "walker_walk,tiny", [GOOD, "--config.data.label_fraction=1.0"],
            "data.label_fraction 1.0 leaves no trajectory without labels for method 'lawm'",
        ),
        (
            "walker_walk,tiny", ["--config.method=lap"],
            "method is 'lap'; choose from lawm, c_lap, dreamer",
        ),
        (
            "walker_walk,tiny", ["--config.run.checkpoint_every=15"],
            "run.checkpoint_every is 15, not a multiple of run.steps_per_call (10)",
        ),
        (
            "walker_walk,tiny", ["--config.world_model.dtype=float16"],
            "world_model.dtype is 'float16'; choose float32 or bfloat16",
        ),
        (
            "walker_walk,tiny", ["--config.world_model.units=0"],
            "world_model.units is 0; it must be >= 1",
        ),
        (
            "walker_walk,tiny", ["--config.world_model.unlabelled_rows=-8"],
            "world_model.unlabelled_rows is -8; it must be >= 0",
        ),
        (
            "walker_walk,tiny", ["--config.seed=-1"],
            "seed is -1; it must be at least 0 and below 2^31",
        ),
        (
            "walker_walk,tiny", ["--config.agent.seed=-2"],
            "agent.seed is -2; it must be -1 (the run's) or at least 0, and below 2^31",
        ),
        (
            "walker_walk,tiny", [GOOD, "--config.world_model.pretrained=no/such"],
            "world_model.pretrained: no/such is no work directory of a run: it has no config.json",
        ),
    ],
)
def test_bad_input_is_one_clear_line(run, tmp_path, arg, args, message):
    code, error = run(arg, *args)
    assert code == 2
    if "\\" not in message:
        message = re.escape(message)
    assert re.match(f"error: {message}", error), error
    assert error.count("\n") == 1
    assert {x.name for x in (tmp_path / "run").glob("*")} <= {".lock"}  # nothing is claimed


def test_a_run_on_all_labels_needs_a_method_for_them(run):
    """The oracle is C-LAP on all labels: label_fraction = 1 is no mistake there."""
    code, error = run("walker_walk,tiny", "--config.data.name=toy/short",
                      "--config.data.label_fraction=1.0", "--config.method=c_lap")
    assert code == 2
    assert error.startswith("error: a trajectory holds 11 observations")  # and not the labels
