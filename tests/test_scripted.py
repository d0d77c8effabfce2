"""What the scripted experts see and do. That they play well is tested where they are recorded."""

import numpy as np
import pytest

from lawm_jax.envs import procgen
from lawm_jax.envs.procgen import DOWN, LEFT, RIGHT, STAY, UP
from lawm_jax.scripted import chaser, grid, heist, miner
from lawm_jax.scripted.experts import EXPERTS, expert_for


def test_distances_go_around_walls():
    walls = {1, 4}  # of a 3 x 3 grid: start 0, target 2
    assert grid.distances(3, [2], lambda cell: cell not in walls) == [6, 1, 0, 5, 2, 1, 4, 3, 2]
    assert grid.distances(3, [2], lambda cell: False)[0] == grid.FAR
    assert grid.neighbours(3)[0] == [(RIGHT, 1), (DOWN, 3)]
    assert dict(grid.neighbours(3)[4]) == {LEFT: 3, RIGHT: 5, UP: 1, DOWN: 7}


def test_pixels_are_counted_by_cell():
    labels = np.zeros((64, 64), int)
    labels[:32, 32:] = 2
    labels[63, 0] = 1
    counts = grid.count(labels, 2, 3)
    np.testing.assert_array_equal(counts, [[1024, 0, 1023, 1024], [0, 0, 1, 0], [0, 1024, 0, 0]])
    assert grid.count(labels, 15, 3).sum() == 4096


def test_a_frame_is_read_once():
    calls = []
    read = grid.remembering(lambda frame: calls.append(frame.copy()) or int(frame.sum()))
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    for frame in (frames[0], frames[0].copy(), frames[1], frames[0]):
        assert read(frame) == frame.sum()
    np.testing.assert_array_equal(calls, frames)


def world(*rows):
    """Cells from a drawing: '#' dirt, 'O' boulder, 'd' diamond, 'A' the miner."""
    text = "".join(rows).ljust(miner.AREA, "#")
    return ["X#Od".find(c) if c in "#Od" else miner.SPACE for c in text], text.find("A")


def after(cells, at, action, falling=()):
    falling = set(falling)
    at = miner._move(cells, falling, at, action)
    alive = miner._fall(cells, falling, at)
    return at, alive, falling


def test_boulders_fall_when_the_miner_leaves_and_kill_who_stays_below():
    cells, at = world("####O#####", "####A#####", "####.#####")
    assert miner.survives(cells, set(), at, STAY, 3)  # it rests on the miner
    assert not miner.survives(cells, {4}, at, STAY, 1)  # it was falling already
    at, alive, falling = after(cells, at, DOWN)
    assert (at, alive, cells[14], falling) == (24, True, miner.BOULDER, {14})
    assert not miner.survives(cells, falling, at, STAY, 1)
    assert miner.survives(cells, falling, at, LEFT, 3)


def test_boulders_roll_off_and_are_pushed():
    cells, at = world("###O######", "##.O######", "##.A######")
    cells[2] = miner.SPACE
    after(cells, at, STAY)
    assert cells[2] == miner.BOULDER and cells[3] == miner.SPACE  # off the lower one, to the left

    cells, at = world("#AO.######")
    at, _, _ = after(cells, at, RIGHT)
    assert at == 2 and cells[3] == miner.BOULDER and cells[2] == miner.SPACE
    assert miner._move(cells, set(), at, RIGHT) == at  # against dirt
    assert miner._move(cells, set(), at, UP) == at  # against the border


def corridor(*cells):
    """Which cells are open where only these (row, column) are."""
    open_ = np.zeros((chaser.SIZE, chaser.SIZE), bool)
    open_[tuple(zip(*cells, strict=True))] = True
    return open_.ravel().tolist()


def test_enemies_may_go_either_way():
    row = [(0, column) for column in range(6)]
    danger = chaser._danger([(0.0, 2.5)], corridor(*row))
    assert danger[:6] == [2.5, 1.5, 0.5, 0.5, 1.5, 2.5]
    both = chaser._danger([(0.0, 0.0), (0.0, 4.0)], corridor(*row))
    assert both[:6] == [0, 1, 2, 1, 0, 1]
    assert both[-1] == grid.FAR


def test_the_player_takes_no_way_that_an_enemy_is_on_first():
    # a cross: orbs at the ends of all arms but the one that an enemy comes from are safe
    arms = [(0, 3), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1), (3, 0), (3, 4), (3, 5), (3, 6)]
    open_ = corridor(*arms)
    danger = chaser._danger([(3.0, 5.0)], open_)
    safe = chaser._reach(chaser._ways((3.0, 3.0), open_), danger, open_, 1.0)
    assert set(safe) == {0 * 11 + 3, 11 + 3, 22 + 3, 33 + 2, 33 + 1, 33}
    assert safe[3] == (3.0, UP) and safe[33] == (3.0, LEFT)
    # between two cells there is only on and back
    assert chaser._ways((2.5, 3.0), open_) == [(0.5, UP, 25), (0.5, DOWN, 36)]


def test_the_chaser_expert_sees_where_it_goes():
    """The player it reads moves half a cell its way a step, and the walls stay."""
    rng, env = np.random.default_rng(0), procgen.Procgen("chaser", 4, seed=2)
    frames = before = env.reset()
    seen, ways = 0, {action: np.array([down, right]) for action, down, right in grid.MOVES}
    for _ in range(60):
        read = [chaser.read(frame) for frame in frames]
        actions = [chaser.act(*pair, rng) for pair in zip(frames, before, strict=True)]
        before, step = frames, env.step(np.array(actions))
        frames = step.observation
        for i in np.flatnonzero(step.valid & ~step.done):
            (cells, place, _), (then, there, enemies) = read[i], chaser.read(frames[i])
            np.testing.assert_array_equal(np.subtract(there, place), 0.5 * ways[actions[i]])
            assert [x == chaser.WALL for x in cells] == [x == chaser.WALL for x in then]
            seen += len(enemies)
    assert seen  # it met enemies


@pytest.mark.parametrize("velocity", [-0.75, 0.0, 0.75])
@pytest.mark.parametrize("offset", [-0.4, 0.0, 0.3])
def test_steering_brings_the_thief_to_the_middle(offset, velocity):
    offsets = []
    for _ in range(6):
        velocity = heist.DRAG * velocity + heist.PUSH * heist._steer(offset, velocity)
        offset += velocity
        offsets.append(abs(offset))
    assert min(offsets) < 0.125


@pytest.mark.parametrize("game", EXPERTS)
def test_experts_give_an_action_for_every_frame(game):
    expert, rng = expert_for(game), np.random.default_rng(0)
    blank = np.zeros(procgen.FRAME, np.uint8)
    noise = rng.integers(0, 256, procgen.FRAME).astype(np.uint8)
    env = procgen.Procgen(game, 2, seed=0)
    for frame in (blank, noise, 255 - blank, *env.reset()):
        action = expert.act(frame, frame, rng)
        assert isinstance(action, int) and 0 <= action < procgen.NUM_ACTIONS


def test_the_bigfish_expert_eats_and_lives():
    def rewards(choose):
        env = procgen.Procgen("bigfish", 4, seed=1)
        frames = before = env.reset()
        total = 0.0
        for _ in range(300):
            step = env.step(np.array([choose(*pair) for pair in zip(frames, before, strict=True)]))
            before = np.where(step.valid[:, None, None, None], frames, step.observation)
            frames = step.observation
            total += step.reward.sum()
        return total

    rng = np.random.default_rng(0)
    expert = EXPERTS["bigfish"].act
    random = rewards(lambda frame, before: rng.integers(15))
    assert rewards(lambda frame, before: expert(frame, before, rng)) > 2 * random + 10
