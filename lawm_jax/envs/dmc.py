"""The DeepMind Control suite from state, vectorised by EnvPool, with summed action repeat.

All environments of a `ControlSuite` run in lock step: they start together and no episode ends
before the time limit, so a reset only ever happens for all of them at once.

EnvPool's own `frame_skip` returns the reward of the last control step only; the action repeat here
steps the simulator that many times and adds the rewards, as dm_control's benchmarks do.
"""

import dataclasses
import difflib
import os

import numpy as np

from lawm_jax.errors import InputError

# Domain -> tasks that EnvPool offers, in dm_control's spelling. Written out, because importing
# either library to list them takes seconds.
SUITE = {
    "acrobot": ("swingup", "swingup_sparse"),
    "ball_in_cup": ("catch",),
    "cartpole": (
        "balance",
        "balance_sparse",
        "swingup",
        "swingup_sparse",
        "three_poles",
        "two_poles",
    ),
    "cheetah": ("run",),
    "dog": ("fetch", "run", "stand", "trot", "walk"),
    "finger": ("spin", "turn_easy", "turn_hard"),
    "fish": ("swim", "upright"),
    "hopper": ("hop", "stand"),
    "humanoid": ("run", "run_pure_state", "stand", "walk"),
    "humanoid_CMU": ("run", "stand", "walk"),
    "lqr": ("lqr_2_1", "lqr_6_2"),
    "manipulator": ("bring_ball", "bring_peg", "insert_ball", "insert_peg"),
    "pendulum": ("swingup",),
    "point_mass": ("easy", "hard"),
    "quadruped": ("escape", "fetch", "run", "walk"),
    "reacher": ("easy", "hard"),
    "stacker": ("stack_2", "stack_4"),
    "swimmer": ("swimmer15", "swimmer6"),
    "walker": ("run", "stand", "walk"),
}
TASKS = tuple(f"{domain}_{name}" for domain, names in SUITE.items() for name in names)


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """Names and sizes of a task.

    Attributes:
        task: our name, "walker_walk".
        envpool_id: EnvPool's name, "WalkerWalk-v1".
        domain: dm_control's domain, "walker".
        name: dm_control's task, "walk".
        observation_keys: parts of the observation in the order in which they are flattened and
            concatenated: the order of dm_control's observation spec.
        observation_size: length O of an observation.
        action_size: length A of an action in [-1, 1].
    """

    task: str
    envpool_id: str
    domain: str
    name: str
    observation_keys: tuple[str, ...]
    observation_size: int
    action_size: int


def task_spec(task: str) -> TaskSpec:
    """Looks up a control-suite task by a name like "walker_walk".

    Raises:
        InputError: no such task; the message has the nearest name and lists the choices.
    """
    if task not in TASKS:
        near = difflib.get_close_matches(task, TASKS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise InputError(f"unknown task '{task}': {hint}choose from {', '.join(TASKS)}")
    import envpool

    domain = next(
        d for d, names in SUITE.items() if task[len(d) + 1 :] in names and task.startswith(f"{d}_")
    )
    words = task.split("_")
    envpool_id = "".join(word[:1].upper() + word[1:] for word in words) + "-v1"
    spec = envpool.make_spec(envpool_id)
    parts = spec.observation_space.spaces
    return TaskSpec(
        task=task,
        envpool_id=envpool_id,
        domain=domain,
        name=task[len(domain) + 1 :],
        observation_keys=tuple(parts),
        observation_size=sum(int(np.prod(part.shape)) for part in parts.values()),
        action_size=int(np.prod(spec.action_space.shape)),
    )


class ControlSuite:
    """N environments of one task in lock step.

    Args:
        task: a name like "walker_walk".
        num_envs: N.
        seed: the same seed gives the same episodes whatever the number of threads.
        action_repeat: control steps an agent step; their rewards are added.
        episode_steps: agent steps an episode (500 x 2 control steps: a perfect return is 1000).
        num_threads: simulator threads; by default min(2, CPUs this process may use).

    Raises:
        InputError: unknown task.
    """

    def __init__(
        self,
        task: str,
        num_envs: int,
        seed: int,
        action_repeat: int = 2,
        episode_steps: int = 500,
        num_threads: int | None = None,
    ) -> None:
        self.spec = task_spec(task)
        self.num_envs = num_envs
        self.episode_steps = episode_steps
        self._action_repeat = action_repeat
        import envpool

        self._env = envpool.make(
            self.spec.envpool_id,
            env_type="gymnasium",
            num_envs=num_envs,
            seed=seed,
            num_threads=num_threads or min(2, len(os.sched_getaffinity(0))),
            # One more than we ever take: EnvPool never ends an episode by itself, so no call
            # returns a reset observation beside a stale reward.
            max_episode_steps=episode_steps * action_repeat + 1,
        )
        self._steps_left = 0

    def reset(self) -> np.ndarray:
        """Begins a new episode in every environment; returns observations [N, O] float32."""
        observation, _ = self._env.reset()
        self._steps_left = self.episode_steps
        return self._flatten(observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Applies actions [N, A] in [-1, 1] for `action_repeat` control steps.

        Returns:
            Observations [N, O] float32 after the last control step and the summed rewards [N]
            float32.

        Raises:
            RuntimeError: the episode is over (or none was begun): call `reset`.
        """
        if self._steps_left == 0:
            raise RuntimeError("the episode is over: call reset() before step()")
        self._steps_left -= 1
        action = np.asarray(action, np.float64)
        reward = np.zeros(self.num_envs, np.float32)
        for _ in range(self._action_repeat):
            observation, part, *_ = self._env.step(action)
            reward += part
        return self._flatten(observation), reward

    def close(self) -> None:
        """Frees the simulators."""
        self._env.close()

    def _flatten(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        parts = [
            np.reshape(observation[key], (self.num_envs, -1)) for key in self.spec.observation_keys
        ]
        return np.concatenate(parts, axis=1).astype(np.float32)
