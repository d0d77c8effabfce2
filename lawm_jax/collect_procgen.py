"""Data sets of Procgen frames: episodes of an expert, recorded and written as shards.

    experts.Expert -> record_episodes -> frame_shards.write_frames
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

from lawm_jax.data import records
from lawm_jax.data.frame_shards import Episode, write_frames
from lawm_jax.envs.procgen import RETURNS, Procgen
from lawm_jax.errors import InputError
from lawm_jax.experts import Act, Expert


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


def record_episodes(
    env: Procgen,
    act: Act,
    num_frames: int,
    tally: Tally,
    patience: int | None = None,
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
        poll: called every step; it may raise to give up.
    """
    kept: list[list[tuple]] = [[] for _ in range(env.num_envs)]  # of the running episodes
    waited = np.zeros(env.num_envs, int)
    observation = before = env.reset()
    recorded = 0
    while recorded < num_frames:
        poll()
        action, value, log_prob = act(observation, before)
        step = env.step(action)
        waited = np.where(step.valid & (step.reward <= 0), waited + 1, 0)
        for n in np.flatnonzero(step.valid):
            row = (observation[n].copy(), action[n], step.reward[n], value[n], log_prob[n])
            kept[n].append(row)
        for n in np.flatnonzero(step.done):
            tally.returns.append(float(step.episode_return[n]))
            yield _episode(kept[n], step.observation[n], step.episode_return[n])
            recorded += len(kept[n]) + 1
            kept[n] = []
        before = np.where(step.valid[:, None, None, None], observation, step.observation)
        observation = step.observation
        stuck = np.flatnonzero(~step.done & (waited >= (patience or np.inf)))
        if len(stuck):
            first = env.restart(stuck)
            for n in stuck:
                tally.returns.append(float(step.episode_return[n]))
                tally.stuck += 1
                if good := kept[n][: -waited[n]]:
                    yield _episode(good, kept[n][len(good)][0], step.episode_return[n])
                    recorded += len(good) + 1
                kept[n] = []
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
    poll: Callable[[], None] = lambda: None,
    report: Callable[[int], None] = lambda frames: None,
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
        poll: called every step; it may raise to give up.
        report: called as an episode is recorded, with how many of the frames asked for, of both
            splits, there are.

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
    starts = {"train": start_level, "test": start_level + num_levels if num_levels else 0}
    metadata = {
        "game": game,
        "kind": expert.kind,
        "seed": seed,
        **expert.about,
        "num_envs": num_envs,
        "asked_frames": {"train": train_frames, "test": test_frames},
        "levels": {split: {"start": start, "number": num_levels or None}
                   for split, start in starts.items()},
        "published_returns": dict(zip(("random", "expert"), RETURNS[game], strict=True)),
        "played": {},
    }  # fmt: skip

    def episodes(split: str, num_frames: int, before: int) -> Iterator[Episode]:
        seeds = np.random.SeedSequence([seed, int(split == "test")]).generate_state(2) >> 1
        env = Procgen(game, num_envs, int(seeds[0]), num_levels, starts[split])
        act = expert.make_act(int(seeds[1]))
        tally = Tally()
        recorded = 0
        for episode in record_episodes(env, act, num_frames, tally, expert.patience, poll):
            yield episode
            recorded += len(episode.observation)
            if recorded < num_frames:
                report(before + recorded)
        report(before + num_frames)
        env.close()
        metadata["played"][split] = tally.summary()

    return write_frames(
        data_dir,
        name,
        episodes("train", train_frames, 0),
        episodes("test", test_frames, train_frames),
        metadata,
    )
