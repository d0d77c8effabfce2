"""dm_control itself: the reference for the vectorised environments, and the renderer."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from lawm_jax.envs.dmc import task_spec
from lawm_jax.errors import InputError

BACKENDS = ("egl", "osmesa", "glfw")


def make(task: str, seed: int) -> Any:
    """dm_control's own environment of a task: one control step a step, 1,000 steps an episode.

    Raises:
        InputError: unknown task.
    """
    spec = task_spec(task)
    from dm_control import suite

    return suite.load(spec.domain, spec.name, task_kwargs={"random": seed})


def flatten(observation: Mapping[str, np.ndarray]) -> np.ndarray:
    """dm_control's observation as [O] float32, in the order of `TaskSpec.observation_keys`."""
    return np.concatenate([np.ravel(part) for part in observation.values()]).astype(np.float32)


def step(env: Any, action: np.ndarray, action_repeat: int = 2) -> tuple[np.ndarray, float]:
    """Applies an action [A] `action_repeat` times: the observation [O] and the summed reward."""
    reward = 0.0
    for _ in range(action_repeat):
        time_step = env.step(action)
        reward += time_step.reward
    return flatten(time_step.observation), reward


def renderer() -> str:
    """Finds an OpenGL backend that renders here; returns the name that MUJOCO_GL must have.

    A backend is chosen when dm_control is first imported and a wrong one can end the process, so
    each is tried in a process of its own (a second or two each).

    Raises:
        InputError: none works.
    """
    asked = os.environ.get("MUJOCO_GL")
    for backend in (asked,) if asked else BACKENDS:
        program = (
            "from dm_control import suite;"
            "suite.load('pendulum', 'swingup').physics.render(16, 16, camera_id=0)"
        )
        environment = {**os.environ, "MUJOCO_GL": backend}
        if not subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, check=False
        ).returncode:
            return backend
    raise InputError(
        f"no OpenGL to render with (MUJOCO_GL tried: {asked or ', '.join(BACKENDS)}): install "
        "libegl1 or libosmesa6, or run without --render"
    )


def render_episode(
    task: str,
    act: Any,
    carry: Any,
    seed: int,
    episode_steps: int = 500,
    size: tuple[int, int] = (240, 320),
) -> tuple[np.ndarray, float]:
    """Plays one episode and renders every agent step.

    Call `os.environ["MUJOCO_GL"] = renderer()` before anything imports dm_control.

    Args:
        task: a control-suite task.
        act: as in `rollout`: act(carry, observation [1, O], t) -> (action [1, A], carry).
        carry: the agent's state before the first step, for one environment.
        seed: of the episode.
        episode_steps: agent steps, of two control steps each.
        size: height and width of a frame.

    Returns:
        Frames [episode_steps + 1, height, width, 3] uint8 and the episode's return.
    """
    env = make(task, seed)
    observation = flatten(env.reset().observation)
    frames = [env.physics.render(*size, camera_id=0)]
    total = 0.0
    for t in range(episode_steps):
        action, carry = act(carry, observation[None], t)
        observation, reward = step(env, np.asarray(action)[0])
        total += reward
        frames.append(env.physics.render(*size, camera_id=0))
    return np.stack(frames), total
