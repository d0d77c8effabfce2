"""Recording of episodes across automatic resets, and the scripted experts' data sets."""

import itertools

import numpy as np
import pytest

from lawm_jax.collect_procgen import Tally, record_episodes, write_expert_dataset
from lawm_jax.data.frame_shards import read_frames
from lawm_jax.envs import procgen
from lawm_jax.errors import InputError
from lawm_jax.experts import scripted


class _Clock:
    """Frames that name their environment, episode and time, with EnvPool's automatic reset.

    Episode e of environment n has (n + 2 e) % 4 + 1 transitions, or `length`; the reward of a step
    is the time before it plus a tenth of its action, but for actions of 0, which earn nothing.
    """

    num_envs = 3

    def __init__(self, length=None):
        self.length = length

    def reset(self):
        self.n = np.arange(3)
        self.episode, self.t, self.done = np.zeros(3, int), np.zeros(3, int), np.zeros(3, bool)
        self.total = np.zeros(3)
        return self._frames()

    def restart(self, which):
        self.episode[which] += 1
        self.t[which] = self.total[which] = 0
        return self._frames()[which]

    def step(self, action):
        valid = ~self.done
        reward = np.where(valid & (action > 0), self.t + action / 10, 0)
        self.episode += self.done
        self.t = np.where(valid, self.t + 1, 0)
        self.total = np.where(valid, self.total + reward, 0)
        length = self.length or (self.n + 2 * self.episode) % 4 + 1
        self.done = valid & (self.t == length)
        return procgen.Step(
            self._frames(), reward.astype(np.float32), self.done.copy(), valid, self.total.copy(),
            self.t.copy(),
        )  # fmt: skip

    def _frames(self):
        frames = np.zeros((3, *procgen.FRAME), np.uint8)
        frames[:, 0, 0] = np.stack([self.n, self.episode, self.t], axis=1)
        return frames


def _act(observation, before):
    n, episode, t = observation[:, 0, 0].astype(int).T
    earlier = np.stack([n, episode, np.maximum(t - 1, 0)], 1)
    np.testing.assert_array_equal(before[:, 0, 0], earlier)
    action = 1 + (n + t) % 3
    return action, t + 0.5, -1.0 * action


def test_frames_actions_and_rewards_stay_together_across_episode_ends():
    tally = Tally()
    episodes = list(record_episodes(_Clock(), _act, 100, tally))
    seen = set()
    for episode in episodes:
        n, index, _ = episode.observation[0, 0, 0].astype(int)
        steps = (n + 2 * index) % 4 + 1
        t = np.arange(steps + 1)
        expected = np.stack([np.full(steps + 1, n), np.full(steps + 1, index), t], 1)
        np.testing.assert_array_equal(episode.observation[:, 0, 0], expected)
        np.testing.assert_array_equal(episode.action, 1 + (n + t[:-1]) % 3)
        np.testing.assert_allclose(episode.reward, t[:-1] + episode.action / 10, rtol=1e-6)
        np.testing.assert_array_equal(episode.value, t[:-1] + 0.5)
        np.testing.assert_array_equal(episode.log_prob, -episode.action)
        assert episode.episode_return == pytest.approx(episode.reward.sum())
        seen.add((n, index))
    assert len(seen) == len(episodes) == len(tally.returns) and not tally.stuck
    for n in range(3):  # no episode is left out
        indices = [index for m, index in seen if m == n]
        assert sorted(indices) == list(range(len(indices))) and len(indices) > 5
    rows = sum(len(episode.observation) for episode in episodes)
    assert 100 <= rows < 110


def test_stuck_episodes_are_cut_after_their_last_reward():
    def act(observation, before):
        n, _, t = observation[:, 0, 0].astype(int).T
        action = np.where((n == 0) | ((n == 1) & (t >= 3)), 0, 1)  # 0 never earns, 1 three times
        return action, 0 * n, 0 * n

    tally = Tally()
    episodes = list(record_episodes(_Clock(length=9), act, 60, tally, patience=4))
    by_env = {n: [e for e in episodes if e.observation[0, 0, 0, 0] == n] for n in range(3)}
    assert not by_env[0]
    for index, episode in enumerate(by_env[1]):
        np.testing.assert_array_equal(episode.observation[:, 0, 0, 2], [0, 1, 2, 3])
        np.testing.assert_array_equal(episode.observation[:, 0, 0, 1], index)
        assert episode.episode_return == pytest.approx(0.1 + 1.1 + 2.1)
    assert all(len(episode.action) == 9 for episode in by_env[2])
    assert tally.stuck > len(by_env[1]) > 2 and 0.0 in tally.returns
    assert tally.summary()["episodes"] == len(tally.returns)
    assert tally.stuck + len(by_env[2]) == len(tally.returns)


@pytest.mark.parametrize(
    "game, frames, near",
    [("chaser", 6000, 0.7), ("heist", 1500, 0.75), ("maze", 1500, 0.75), ("miner", 1500, 0.75)],
)
def test_a_scripted_data_set_is_near_the_published_expert(tmp_path, game, frames, near):
    name = f"{game}/scripted"
    told = []
    write_expert_dataset(
        tmp_path, name, scripted(game, 0.1), train_frames=frames, test_frames=200, seed=0,
        num_envs=8, report=told.append,
    )
    train = read_frames(tmp_path, name, "train", game=game)
    assert told == sorted(set(told)) and 0 < told[0] < frames
    assert {frames, frames + 200} <= {*told} and told[-1] == frames + 200
    assert train.statistics["frames"] >= frames and train.statistics["episodes"] >= 20
    played = train.metadata["played"]["train"]
    assert procgen.normalise(game, played["mean_return"]) > near
    assert train.metadata["kind"] == "scripted" and train.metadata["random_actions"] == 0.1

    frames, notes = train.frames, train.notes
    last = np.append(frames.episode[1:] != frames.episode[:-1], True)
    np.testing.assert_array_equal(frames.action == -1, last)
    totals = np.bincount(frames.episode, weights=frames.reward)
    np.testing.assert_allclose(totals, notes.episode_return[last], rtol=1e-5)
    share = (np.exp(notes.log_prob[~last]) > 0.5).mean()
    assert 0.88 < share < 0.93  # 0.9 + 0.1 / 15 chosen by the expert


def test_the_same_seed_gives_the_same_data_and_another_does_not(tmp_path):
    def fingerprints(folder, seed, **options):
        write_expert_dataset(
            tmp_path / folder, "maze/a", scripted("maze", 0.1), train_frames=150, test_frames=100,
            seed=seed, num_envs=4, **options,
        )  # fmt: skip
        return [
            read_frames(tmp_path / folder, "maze/a", split).statistics["fingerprint"]
            for split in ("train", "test")
        ]

    one, again, other = fingerprints("a", 0), fingerprints("b", 0), fingerprints("c", 1)
    assert one == again
    assert len({*one, *other}) == 4


def test_few_levels_are_held_out(tmp_path):
    write_expert_dataset(
        tmp_path, "maze/few", scripted("maze", 0.1), train_frames=200, test_frames=200, seed=0,
        num_levels=2, start_level=5, num_envs=4,
    )  # fmt: skip
    starts = []
    for split in ("train", "test"):
        frames = read_frames(tmp_path, "maze/few", split).frames
        first = np.append(True, frames.episode[1:] != frames.episode[:-1])
        starts.append({frame.tobytes() for frame in frames.observation[first]})
    assert [len(levels) for levels in starts] == [2, 2] and not starts[0] & starts[1]


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown game 'mace'.*did you mean 'maze'"):
        scripted("mace", 0.1)
    with pytest.raises(InputError, match="starpilot has no scripted expert, only .*miner"):
        scripted("starpilot", 0.1)
    with pytest.raises(InputError, match="share in 0 .. 1, not 2"):
        scripted("maze", 2)
    with pytest.raises(InputError, match="at least 1 frame"):
        write_expert_dataset(
            tmp_path, "maze/a", scripted("maze", 0.1), train_frames=10, test_frames=0, seed=0
        )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_polling_can_give_up(tmp_path):
    count = itertools.count()

    def poll():
        if next(count) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_expert_dataset(
            tmp_path, "maze/a", scripted("maze", 0.1), train_frames=9999, test_frames=10, seed=0,
            poll=poll,
        )
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
