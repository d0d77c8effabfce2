"""Speed of what feeds the train steps: shards, window sampling, simulators.

    python -m benchmarks.data --config=configs/dmc.py:cheetah_run --json=FILE

Shards of random trajectories in the config's sizes are written to a temporary directory and read
back as a run reads them; windows are sampled by the compiled function that the train step calls;
environments are stepped with random actions. Of a game (--config=configs/procgen.py:miner,small)
the shards hold what its expert does, windows are drawn on the host, as streamed, and a decoded
latent policy acts, too.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from benchmarks.control_steps import labelled_count, random_data
from benchmarks.lapo_steps import program_of
from benchmarks.report import Row
from benchmarks.timing import fastest
from benchmarks.train_steps import of_lapo
from experiments.data import expert_of
from lawm_jax.collect_procgen import Tally, record_episodes
from lawm_jax.data.frame_shards import read_frames, write_frames
from lawm_jax.data.frames import stream_windows
from lawm_jax.data.shards import read_dataset, write_dataset
from lawm_jax.data.trajectory import Trajectory
from lawm_jax.data.windows import sample_windows
from lawm_jax.envs.dmc import ControlSuite, task_spec
from lawm_jax.envs.procgen import FRAME, NUM_ACTIONS, Procgen
from lawm_jax.lapo import decode, imitation
from lawm_jax.lapo.play import make_actor
from lawm_jax.lawm.methods import resolve

SAMPLES, ENVIRONMENTS, ENVIRONMENT_STEPS = 200, 16, 200
FRAMES = 20_000


def rows(config: Any) -> list[Row]:
    """Measures shards, windows and environments of a config."""
    return frame_rows(config) if of_lapo(config) else control_rows(config)


def frame_rows(config: Any) -> list[Row]:
    """Of a game: its steps, frames in shards, and streamed windows of them."""
    envs = config.data.num_envs
    rng = np.random.default_rng(0)
    random = lambda observation: rng.integers(NUM_ACTIONS, size=len(observation))
    measured = [
        _played("step_environments", config.task, ENVIRONMENTS, random),
        _played("act", config.task, config.evaluation.envs, _decoded(config)),
    ]
    with (
        contextlib.closing(Procgen(config.task, envs, seed=0)) as env,
        tempfile.TemporaryDirectory() as directory,
    ):
        expert = expert_of(config)
        act = expert.make_act(0)
        begin = time.perf_counter()
        episodes = list(record_episodes(env, act, FRAMES, Tally(), expert.patience))
        frames = sum(len(episode.observation) for episode in episodes)
        seconds = time.perf_counter() - begin
        measured.append({"step": "record_expert", "steps_per_second": frames / seconds})
        begin = time.perf_counter()
        path = write_frames(directory, f"{config.task}/noise", episodes, episodes[:1], {})
        written = time.perf_counter() - begin
        size = sum(file.stat().st_size for file in Path(path).iterdir())
        read = fastest(lambda: read_frames(directory, f"{config.task}/noise", "train"))
        arrays = read_frames(directory, f"{config.task}/noise", "train").frames
    for name, seconds in (("write_frames", written), ("read_frames", read)):
        measured.append({
            "step": name, "steps_per_second": frames / seconds, "bytes_a_frame": size / frames,
        })  # fmt: skip
    batch = config.latent_action.rows
    draw = stream_windows(arrays, 0, range(batch), batch)
    seconds = fastest(lambda: [draw(step) for step in range(SAMPLES)])
    measured.append({
        "step": "stream_windows", "steps_per_second": SAMPLES / seconds,
        "milliseconds_per_step": 1000 * seconds / SAMPLES,
        "windows_per_second": batch * SAMPLES / seconds,
    })  # fmt: skip
    return measured


def _decoded(config: Any) -> Callable[[np.ndarray], np.ndarray]:
    """An untrained latent policy with its decoder: observation [N, H, W, 3] -> actions [N]."""
    program = program_of(config)
    policy = imitation.init(program.policy, program.latent_policy, FRAME, 0).params
    size = program.model.idm.vq.latent_size
    params = {
        "policy": policy, "decoder": decode.init(program.decoder, program.decoding, size, 0).params,
    }
    logits = functools.partial(decode.decoded_logits, program.policy, program.decoder)
    actor = make_actor(logits, config.evaluation.temperature)
    return lambda observation: np.asarray(actor(params, observation, 0, 0))


def _played(name: str, game: str, envs: int, act: Callable[[np.ndarray], np.ndarray]) -> Row:
    """Frames/s of a policy in the game, its environments' steps included."""
    with contextlib.closing(Procgen(game, envs, seed=0)) as env:

        def play() -> None:
            observation = env.reset()
            for _ in range(ENVIRONMENT_STEPS):
                observation = env.step(act(observation)).observation

        seconds = fastest(play)
    return {"step": name, "steps_per_second": envs * ENVIRONMENT_STEPS / seconds}


def control_rows(config: Any) -> list[Row]:
    """Of a control task: trajectories of noise, as the module says."""
    spec = task_spec(config.task)
    program = resolve(config, spec.observation_size, spec.action_size)
    labelled_count(config)  # it checks the sizes
    count, sizes = config.data.trajectories, program.learner
    arrays = random_data(program, count + 1, count).labelled
    trajectories = [
        Trajectory(o, a, r)
        for o, a, r in zip(arrays.observation, arrays.action, arrays.reward, strict=True)
    ]
    measured = []
    with tempfile.TemporaryDirectory() as directory:
        begin = time.perf_counter()
        write_dataset(directory, "noise/all", trajectories, {})
        written = time.perf_counter() - begin
        read = fastest(lambda: read_dataset(directory, "noise/all"))
    megabytes = sum(x.nbytes for x in arrays) / 1e6
    for name, seconds in (("write_shards", written), ("read_shards", read)):
        measured.append({
            "step": name, "steps_per_second": count * arrays.reward.shape[1] / seconds,
            "trajectories_per_second": count / seconds, "mb_per_second": megabytes / seconds,
        })  # fmt: skip

    device = jax.device_put(arrays)
    batch = sizes.labelled_rows + sizes.unlabelled_rows

    @jax.jit
    def sample(arrays: Any) -> Any:
        def body(total: jax.Array, step: jax.Array) -> tuple:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), batch)
            windows = sample_windows(arrays, keys, sizes.window)
            return total + sum(jnp.sum(x) for x in windows), None

        return jax.lax.scan(body, 0.0, jnp.arange(SAMPLES))[0]

    seconds = fastest(lambda: jax.block_until_ready(sample(device)))
    measured.append({
        "step": "sample_windows", "steps_per_second": SAMPLES / seconds,
        "milliseconds_per_step": 1000 * seconds / SAMPLES,
        "windows_per_second": batch * SAMPLES / seconds,
    })  # fmt: skip
    with contextlib.closing(ControlSuite(config.task, ENVIRONMENTS, seed=0)) as env:
        actions = np.random.default_rng(0).uniform(
            -1, 1, (ENVIRONMENT_STEPS, ENVIRONMENTS, spec.action_size)
        ).astype(np.float32)

        def play() -> None:
            env.reset()
            for action in actions:
                env.step(action)

        seconds = fastest(play)
    measured.append({
        "step": "step_environments",
        "steps_per_second": ENVIRONMENTS * ENVIRONMENT_STEPS / seconds,
    })  # fmt: skip
    return measured


COLUMNS = {
    "steps_per_second": ("steps/s", ".0f"),
    "trajectories_per_second": ("trajectories/s", ".0f"),
    "mb_per_second": ("MB/s", ".0f"),
    "bytes_a_frame": ("bytes a frame", ".0f"),
    "milliseconds_per_step": ("ms a batch", ".3f"),
    "windows_per_second": ("windows/s", ".0f"),
}


@report.command
def main() -> None:
    """Reads the command line, measures, prints a table and writes the JSON file."""
    arguments, config = report.parse(report.parser(__doc__))
    measured = rows(config)
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(report.table(device, measured, COLUMNS))
    if arguments.json:
        report.write_json(arguments.json, device, measured)


if __name__ == "__main__":
    main()
