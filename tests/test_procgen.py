"""Procgen: every game runs, seeds reproduce, and bookkeeping across EnvPool's auto-reset."""

import subprocess
import sys

import numpy as np
import pytest

from lawm_jax.envs import procgen
from lawm_jax.errors import InputError


@pytest.mark.parametrize("game", procgen.GAMES)
def test_every_game_resets_and_steps(game):
    env = procgen.Procgen(game, 2, seed=0)
    first = env.reset()
    assert first.shape == (2, 64, 64, 3) and first.dtype == np.uint8
    assert not np.array_equal(first[0], first[1])
    steps = [env.step(np.array([t % 9, 14 - t % 15])) for t in range(20)]
    assert any(not np.array_equal(step.observation, first) for step in steps)
    assert all(step.observation.shape == first.shape for step in steps)
    assert steps[0].valid.all() and steps[0].reward.dtype == np.float32


def test_unknown_games_and_sizes_are_refused():
    with pytest.raises(InputError, match="did you mean 'bigfish'.*coinrun.*starpilot") as caught:
        procgen.Procgen("bigfsh", 1, seed=0)
    assert all(game in str(caught.value) for game in procgen.GAMES) and len(procgen.GAMES) == 16
    with pytest.raises(InputError, match="num_levels >= 0"):
        procgen.Procgen("maze", 1, seed=0, num_levels=-1)
    with pytest.raises(RuntimeError, match="reset"):
        procgen.Procgen("maze", 1, seed=0).step(np.zeros(1))


def play(seed, steps=150, **options):
    env = procgen.Procgen("maze", 3, seed, **options)
    rng = np.random.default_rng(0)
    frames = [env.reset()]
    done = []
    for _ in range(steps):
        step = env.step(rng.integers(0, 9, 3))
        frames.append(step.observation)
        done.append(step.done)
    return np.stack(frames), np.stack(done)


def test_seeds_reproduce_and_resets_vary():
    frames, done = play(5, num_threads=1)
    again, _ = play(5, num_threads=2)
    np.testing.assert_array_equal(frames, again)
    other, _ = play(6)
    assert not np.array_equal(frames[0], other[0])
    assert done[:-1].any()
    t, n = np.argwhere(done)[0]
    assert not np.array_equal(frames[t + 2, n], frames[0, n])  # the next episode's level
    env = procgen.Procgen("maze", 3, 5)
    assert not np.array_equal(env.reset(), env.reset())


def test_levels_are_those_asked_for():
    one = procgen.Procgen("maze", 4, seed=0, num_levels=1, start_level=7).reset()
    assert (one == one[:1]).all()  # the same level everywhere, whatever the seed
    np.testing.assert_array_equal(
        one, procgen.Procgen("maze", 4, seed=9, num_levels=1, start_level=7).reset()
    )
    other = procgen.Procgen("maze", 4, seed=0, num_levels=1, start_level=8).reset()
    assert not np.array_equal(one, other)


def test_bookkeeping_across_the_automatic_reset():
    """On one level every episode starts alike: the frame after `done` must be that start."""
    env = procgen.Procgen("maze", 4, seed=0, num_levels=1, start_level=2)
    start = env.reset()
    rng = np.random.default_rng(0)
    total, length, ended = np.zeros(4), np.zeros(4), np.zeros(4, bool)
    episodes = 0
    for _ in range(1200):
        step = env.step(rng.integers(0, 9, 4))
        np.testing.assert_array_equal(step.valid, ~ended)
        np.testing.assert_array_equal(step.observation[ended], start[ended])
        assert not step.reward[ended].any() and not step.done[ended].any()
        total = np.where(ended, 0, total + step.reward)
        length = np.where(ended, 0, length + 1)
        np.testing.assert_array_equal(step.episode_return, total)
        np.testing.assert_array_equal(step.episode_length, length)
        assert not (step.done & ((step.observation == start).all((1, 2, 3)))).any()
        assert ((step.episode_return == 10) | (step.episode_length == 500))[step.done].all()
        ended = step.done
        episodes += ended.sum()
    assert episodes > 8


def test_some_environments_can_be_restarted():
    env = procgen.Procgen("maze", 4, seed=0, num_levels=1, start_level=2)
    start = env.reset()
    stay = np.full(4, procgen.STAY)
    for _ in range(7):
        step = env.step(np.full(4, procgen.UP))
    first = env.restart(np.array([1, 3]))
    np.testing.assert_array_equal(first, start[:2])
    np.testing.assert_array_equal(step.episode_length, 7)  # what was returned stays as it was
    step = env.step(stay)
    np.testing.assert_array_equal(step.episode_length, [8, 1, 8, 1])
    np.testing.assert_array_equal(step.observation[[1, 3]], start[:2])
    assert step.valid.all()


def test_the_time_limit_ends_an_episode():
    env = procgen.Procgen("leaper", 1, seed=0)
    env.reset()
    for t in range(1, 501):
        step = env.step(np.array([procgen.STAY]))
        assert step.done[0] == (t == 500)
    assert step.episode_length[0] == 500
    assert not env.step(np.array([0])).valid[0]


class _Lengths:
    """Environment n always plays episodes of n + 1 steps that return 10 * (n + 1)."""

    num_envs = 3

    def reset(self):
        self.t = np.zeros(3, int)
        return self.t

    def step(self, action):
        self.t += 1
        done = self.t == np.arange(3) + 1
        result = procgen.Step(self.t, None, done, None, 10.0 * self.t, None)
        self.t = np.where(done, 0, self.t)
        return result


def test_evaluation_takes_equal_shares_of_every_environment():
    returns = procgen.episode_returns(_Lengths(), lambda o: o, 7)
    assert sorted(returns) == [10, 10, 10, 20, 20, 30, 30]


def test_normalised_returns():
    assert procgen.normalise("maze", 4.27) == 0 and procgen.normalise("maze", 9.97) == 1
    np.testing.assert_allclose(procgen.normalise("fruitbot", np.array([-2.53, 13.7])), [0, 0.5])


@pytest.mark.parametrize("first", ["dmc.task_spec('walker_walk')", "None"])
def test_qt_loads_whether_envpool_was_imported_before_or_not(first):
    program = (
        "from lawm_jax.envs import dmc, procgen\n"
        f"{first}\nprint(procgen.Procgen('maze', 1, 0).reset().shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "(1, 64, 64, 3)\n", done.stderr


def test_missing_qt_is_one_line(monkeypatch):
    monkeypatch.setattr(procgen.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install PyQt5-Qt5"):
        procgen._load_qt()
    monkeypatch.undo()

    def fail(name, mode):
        raise OSError("libGL.so.1: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(procgen.ctypes, "CDLL", fail)
    with pytest.raises(InputError, match="cannot be loaded: libGL.so.1: .* apt install libgl1"):
        procgen._load_qt()
