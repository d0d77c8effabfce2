"""An expert for heist: keys that can be reached, then the gem (easy levels: 9 x 9 cells).

The thief slides: its velocity is the half of what it was plus 0.375 cells a step in the direction
of the action, and it fits into a corridor only within an eighth of a cell of its middle.
"""

from functools import cache
from itertools import product

import numpy as np

from lawm_jax.envs.procgen import STAY
from lawm_jax.scripted import grid

SIZE = 9
PUSH, DRAG = 0.375, 0.5
_THIEF = (0xFFFFFF, 0xE0E0E0, 0xFF9900, 0xE58900)
_GEM = (0xFFD83C, 0xFFCC00, 0xFEE481)
_LOCKS = ((0x1EA7E1,), (0x73CD4B, 0x59B432), (0xE86A17,))  # blue, green and red keys and doors


def act(frame: np.ndarray, before: np.ndarray, rng: np.random.Generator) -> int:
    """Returns the action for a frame [64, 64, 3] uint8, given the one before it."""
    code = grid.colour_codes(frame)
    position = _thief(code)
    if position is None:
        return STAY
    open_, keys, gem = _read(code)
    here = int(position[0]) * SIZE + int(position[1])
    steps = grid.distances(SIZE, gem, lambda cell: open_[cell])
    if steps[here] == grid.FAR:
        steps = grid.distances(SIZE, keys, lambda cell: open_[cell])
    ways = [(steps[cell], cell) for _, cell in grid.neighbours(SIZE)[here] if open_[cell]]
    if not ways or steps[here] == grid.FAR:
        return int(rng.integers(9))
    there = min(ways)[1] if steps[here] else here
    was = _thief(grid.colour_codes(before))
    velocity = position - (position if was is None else was)
    down, right = there // SIZE - here // SIZE, there % SIZE - here % SIZE
    offset = position - np.floor(position) - 0.5
    if down:
        right = _steer(offset[1], velocity[1])
    elif right:
        down = _steer(offset[0], velocity[0])
    else:
        down, right = _steer(offset[0], velocity[0]), _steer(offset[1], velocity[1])
    return 3 * (right + 1) + 1 - down


def _thief(code: np.ndarray) -> np.ndarray | None:
    """The thief's (row, column) in cells, to about a tenth; None where the frame has none."""
    pixels = np.argwhere(np.isin(code, _THIEF))
    return (pixels.mean(axis=0) + 0.5) * SIZE / 64 if len(pixels) >= 4 else None


def _read(code: np.ndarray) -> tuple[list[bool], list[int], list[int]]:
    """Returns which cells one may enter now, the cells of keys and that of the gem."""
    red, green, blue = code >> 16, code >> 8 & 255, code & 255
    stone = (np.abs(red - 187) < 14) & (np.abs(green - 201) < 14) & (np.abs(blue - green) < 3)
    labels = stone.astype(np.int8)
    for label, colours in enumerate((_GEM, *_LOCKS), 2):
        for colour in colours:
            labels[code == colour] = label
    labels[:4, 52:] *= labels[:4, 52:] < 3  # keys in the pocket are shown in this corner
    _, stone, gem, *locks = grid.count(labels, SIZE, 6)
    open_ = stone < 25
    keys = []
    for lock in locks:
        on_floor = np.flatnonzero((lock >= 3) & (lock < 20)).tolist()
        if on_floor:  # not taken yet
            open_ &= lock < 20
        keys += on_floor
    return open_.tolist(), keys, [int(gem.argmax())] if gem.max() >= 4 else []


def _steer(offset: float, velocity: float) -> int:
    """The push, -1, 0 or 1, that soonest brings an offset from the middle to nothing."""
    return _best_push(round(offset * 20), round(velocity * 20))


@cache
def _best_push(offset: int, velocity: int) -> int:
    def cost(pushes: tuple[int, ...]) -> float:
        x, v, total = offset / 20, velocity / 20, 0.0
        for push in pushes:
            v = DRAG * v + PUSH * push
            x += v
            total += abs(x)
        return total

    return min(product((0, -1, 1), repeat=4), key=cost)[0]
