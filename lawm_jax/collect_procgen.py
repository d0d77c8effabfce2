"""Data sets of Procgen frames: episodes of an expert, recorded and written as shards.

    experts.Expert -> record_episodes -> frame_shards.write_frames
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from lawm_jax.data import records
from lawm_jax.data.frame_shards import Episode, write_frames
from lawm_jax.envs.procgen import NUM_ACTIONS, RETURNS, Procgen, Step
from lawm_jax.errors import InputError
from lawm_jax.experts import Act, Expert

HOLD = 0.75  # probability that a random start keeps its action for another step


@dataclasses.dataclass
class Tally:
    """What was played for a data set, whether or not it was kept.

    Attributes:
        returns: of every episode, those that were given up included.
        stuck: how many were given up.
    """

    returns: list[float] = dataclasses.field(default_factory=list)
    stuck: int = 0

    def summary(self) -> dict[str, float | int]:
        """Returns JSON values: episodes, stuck, mean_return."""
        return {
            "episodes": len(self.returns),
            "stuck": self.stuck,
            "mean_return": float(np.mean(self.returns)),
        }


class RandomStart:
    """Random steps that take an episode off the ways of whoever plays the rest of it.

    What learns from an expert that never leaves its way does not know what to do beside it. Each
    episode starts with 0 .. `most` steps, drawn uniformly, of actions that are drawn uniformly and
    held for a while, as an action drawn anew at every step hardly leads away.

    Args:
        num_envs: N environments, all at the start of an episode.
        most: at most so many steps.
        seed: of the random numbers.

    Attributes:
        earned: [N] what the start of the episode under way has earned so far.
    """

    def __init__(self, num_envs: int, most: int, seed: int) -> None:
        self._most = most
        self._rng = np.random.default_rng(seed)
        self._left, self._held = np.zeros(num_envs, int), np.zeros(num_envs, int)
        self.earned = np.zeros(num_envs)
        self.begin(np.arange(num_envs))

    def begin(self, which: np.ndarray) -> None:
        """An episode begins in the environments [K]."""
        self._left[which] = self._rng.integers(0, self._most + 1, len(which))
        self._held[which] = self._rng.integers(0, NUM_ACTIONS, len(which))
        self.earned[which] = 0.0

    def play(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where an episode starts still [N] bool, and the actions [N], the start's own there."""
        size = len(action)
        fresh = self._rng.random(size) > HOLD
        self._held = np.where(fresh, self._rng.integers(0, NUM_ACTIONS, size), self._held)
        starting = self._left > 0
        return starting, np.where(starting, self._held, action)

    def stepped(self, step: Step) -> None:
        """Takes note of a step with actions from `play`."""
        starting = self._left > 0
        self.earned = np.where(starting, step.episode_return, self.earned)
        self._left -= starting
        self.begin(np.flatnonzero(~step.valid))


def record_episodes(
    env: Procgen,
    act: Act,
    num_frames: int,
    tally: Tally,
    patience: int | None = None,
    start: RandomStart | None = None,
    poll: Callable[[], None] = lambda: None,
) -> Iterator[Episode]:
    """Plays until at least `num_frames` frames are recorded; yields episodes as they end.

    Args:
        env: is reset.
        act: the behaviour.
        num_frames: rows in all, T + 1 for an episode of T transitions.
        tally: is told of every episode.
        patience: steps without a reward after which an episode is given up; what followed its
            last reward is dropped, all of it where it had none. None: never.
        start: plays the first steps of every episode, of which nothing is recorded or told.
        poll: called every step; it may raise to give up.
    """
    kept: list[list[tuple]] = [[] for _ in range(env.num_envs)]  # of the running episodes
    waited = np.zeros(env.num_envs, int)
    start = start or RandomStart(env.num_envs, 0, seed=0)
    observation = before = env.reset()
    recorded = 0
    while recorded < num_frames:
        poll()
        action, value, log_prob = act(observation, before)
        starting, action = start.play(action)
        step = env.step(action)
        start.stepped(step)
        recording = step.valid & ~starting
        earned = step.episode_return - start.earned
        waited = np.where(recording & (step.reward <= 0), waited + 1, 0)
        for n in np.flatnonzero(recording):
            row = (observation[n].copy(), action[n], step.reward[n], value[n], log_prob[n])
            kept[n].append(row)
        for n in np.flatnonzero(step.done & recording):
            tally.returns.append(float(earned[n]))
            yield _episode(kept[n], step.observation[n], earned[n])
            recorded += len(kept[n]) + 1
            kept[n] = []
        before = np.where(step.valid[:, None, None, None], observation, step.observation)
        observation = step.observation
        stuck = np.flatnonzero(~step.done & (waited >= (patience or np.inf)))
        if len(stuck):
            first = env.restart(stuck)
            for n in stuck:
                tally.returns.append(float(earned[n]))
                tally.stuck += 1
                if good := kept[n][: -waited[n]]:
                    yield _episode(good, kept[n][len(good)][0], earned[n])
                    recorded += len(good) + 1
                kept[n] = []
            start.begin(stuck)
            waited[stuck] = 0
            observation[stuck] = before[stuck] = first


def _episode(rows: list[tuple], last_frame: np.ndarray, episode_return: float) -> Episode:
    observation, action, reward, value, log_prob = zip(*rows, strict=True)
    return Episode(
        np.stack([*observation, last_frame]),
        np.array(action),
        np.array(reward),
        np.array(value),
        np.array(log_prob),
        float(episode_return),
    )


def write_expert_dataset(
    data_dir: epath.PathLike,
    name: str,
    expert: Expert,
    *,
    train_frames: int,
    test_frames: int,
    seed: int,
    num_levels: int = 0,
    start_level: int = 0,
    num_envs: int = 64,
    random_start: int = 0,
    poll: Callable[[], None] = lambda: None,
) -> epath.Path:
    """Lets an expert play and writes what it did; the same arguments give the same data.

    Args:
        data_dir: where data sets lie.
        name: "GAME/CONFIG".
        expert: from `experts.choose`.
        train_frames: at least so many.
        test_frames: likewise, on other levels.
        seed: of the environments and the expert's random numbers.
        num_levels: of the training split, 0 for all there are (2^31); the test split has as many,
            the next ones. With 0 the two meet the same level with negligible probability.
        start_level: the first of the training split's levels.
        num_envs: environments side by side.
        random_start: most steps of a random start, see `RandomStart`.
        poll: called every step; it may raise to give up.

    Returns:
        The directory that holds the shards.

    Raises:
        InputError: the data set exists or a number is out of range.
    """
    game = expert.game
    records.refuse_existing(data_dir, name)
    if min(train_frames, test_frames) < 1:
        raise InputError(
            f"a data set needs at least 1 frame a split, not {train_frames} and {test_frames}"
        )
    if random_start < 0:
        raise InputError(f"random_start is a number of steps, at least 0, not {random_start}")
    starts = {"train": start_level, "test": start_level + num_levels if num_levels else 0}
    metadata = {
        "game": game,
        "kind": expert.kind,
        "seed": seed,
        **expert.about,
        "num_envs": num_envs,
        "random_start": random_start,
        "levels": {split: {"start": start, "number": num_levels or None}
                   for split, start in starts.items()},
        "published_returns": dict(zip(("random", "expert"), RETURNS[game], strict=True)),
        "played": {},
    }  # fmt: skip

    def episodes(split: str, num_frames: int) -> Iterator[Episode]:
        seeds = np.random.SeedSequence([seed, int(split == "test")]).generate_state(3) >> 1
        env = Procgen(game, num_envs, int(seeds[0]), num_levels, starts[split])
        act = expert.make_act(int(seeds[1]))
        start = RandomStart(num_envs, random_start, int(seeds[2]))
        tally = Tally()
        yield from record_episodes(env, act, num_frames, tally, expert.patience, start, poll)
        env.close()
        metadata["played"][split] = tally.summary()

    return write_frames(
        data_dir, name, episodes("train", train_frames), episodes("test", test_frames), metadata
    )
