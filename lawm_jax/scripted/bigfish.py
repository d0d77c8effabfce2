"""An expert for bigfish: eats what is smaller and stays clear of the rest.

Positions are in pixels. Fish swim sideways at a constant speed of 0.5 to 1.3 pixels a step; the
player's velocity is the half of what it was plus 0.8 pixels a step in the direction of the action.
Whoever is wider eats the other.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from lawm_jax.envs.procgen import STAY
from lawm_jax.scripted import grid

HORIZON = 12  # steps that each action is held in thought
PUSH, DRAG = 0.8, 0.5
CLEARANCE = 4.0  # pixels that are kept between the player and a larger fish where possible
_PLAYER = (0x2CC66D, 0x25A65B, 0x27AE60, 0x1D8548)
# Colours of each kind, and its width for a height: of a fish at the border only a part is seen.
_KINDS = (
    ((0xBF3D31, 0xF5503F, 0xE74C3C), 1.25),
    ((0xEC8D00, 0xFF9900, 0xFCB245), 1.75),
    ((0xC985D0, 0xE599EE, 0xD890E0), 1.75),
)
_PUSHES = np.array([(1 - a % 3, a // 3 - 1) for a in range(9)], np.float32)  # down, right


class _Fish(NamedTuple):
    """Centres [F, 2] and half sizes [F, 2] of boxes as (row, column), and kinds [F]."""

    centre: np.ndarray
    half: np.ndarray
    kind: np.ndarray


def act(frame: np.ndarray, before: np.ndarray, rng: np.random.Generator) -> int:
    """Returns the action for a frame [64, 64, 3] uint8, given the one before it."""
    player, fish = _read(frame)
    if player is None:
        return STAY
    player_before, fish_before = _read(before)
    centre, half = player.centre[0], player.half[0]
    velocity = centre - (centre if player_before is None else player_before.centre[0])
    path = _paths(centre, velocity, half)
    # Larger fish come in from the sides, where they are seen last.
    cost = np.clip(np.abs(path[:, -1, 1] - 32) - 18, 0, None) + 0.02 * np.abs(path[:, -1, 0] - 32)
    if len(fish.kind):
        times = np.arange(1, HORIZON + 1, dtype=np.float32)
        swum = _speeds(fish, fish_before)[None] * times[:, None]
        columns = fish.centre[:, 1] + swum
        down = np.abs(path[:, :, None, 0] - fish.centre[:, 0]) - half[0] - fish.half[:, 0]
        right = np.abs(path[:, :, None, 1] - columns) - half[1] - fish.half[:, 1]
        gap = np.maximum(down, right)  # [actions, steps, fish], negative where boxes overlap
        smaller = fish.half[:, 1] < half[1] - 0.3
        inside = np.abs(columns - 32) < 34
        food = np.where(smaller & inside, np.maximum(gap, 0) + 0.5 * times[:, None], 60)
        cost += food.min(axis=(1, 2))
        close = np.clip(1 - gap / CLEARANCE, 0, 2) ** 2 * ~smaller
        cost += 25 * (close.max(axis=2) * 0.85 ** times).sum(axis=1)
    return int((cost + 1e-3 * rng.random(9)).argmin())


def _paths(centre: np.ndarray, velocity: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Where holding each of the 9 actions leads; [9, HORIZON, 2]."""
    position, speed = np.tile(centre, (9, 1)), np.tile(velocity, (9, 1))
    path = []
    for _ in range(HORIZON):
        speed = DRAG * speed + PUSH * _PUSHES
        position = np.clip(position + speed, half, 64 - half)
        path.append(position)
    return np.stack(path, axis=1)


def _speeds(fish: _Fish, before: _Fish) -> np.ndarray:
    """Pixels to the right a step for each fish, by the nearest of its kind a step before."""
    inwards = np.sign(32 - fish.centre[:, 1]) * 0.9
    if not len(before.kind):
        return inwards
    moved = fish.centre[:, None] - before.centre[None]
    far = np.abs(moved).sum(axis=2) + 99 * (fish.kind[:, None] != before.kind)
    nearest = far.argmin(axis=1)
    sideways = moved[np.arange(len(nearest)), nearest, 1]
    return np.where(far.min(axis=1) < 3, np.clip(sideways, -1.3, 1.3), inwards)


@grid.remembering
def _read(frame: np.ndarray) -> tuple[_Fish | None, _Fish]:
    """Returns the player as the largest green fish (None where there is none) and the others."""
    code = grid.colour_codes(frame)
    green = _boxes(_has(code, _PLAYER), 0.0, 0)
    largest = max(green, key=lambda box: box[2] * box[3], default=None)
    others = [
        box for n, (colours, ratio) in enumerate(_KINDS)
        for box in _boxes(_has(code, colours), ratio, n)
    ]  # fmt: skip
    return _fish([largest]) if largest else None, _fish(others)


def _has(code: np.ndarray, colours: tuple[int, ...]) -> np.ndarray:
    return np.any([code == colour for colour in colours], axis=0)


def _boxes(mask: np.ndarray, ratio: float, kind: int) -> list[tuple[float, ...]]:
    """(row, column, half height, half width, kind) of each connected part of a mask."""
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    boxes = []
    for rows, columns in ndimage.find_objects(parts):
        top, bottom, left, right = rows.start, rows.stop, columns.start, columns.stop
        width = max(right - left, ratio * (bottom - top)) if left == 0 or right == 64 else (
            right - left
        )
        column = right - width / 2 if left == 0 else left + width / 2
        boxes.append(((top + bottom) / 2, column, (bottom - top) / 2, width / 2, kind))
    return boxes


def _fish(boxes: list[tuple[float, ...]]) -> _Fish:
    table = np.array(boxes, np.float32).reshape(-1, 5)
    return _Fish(table[:, :2], table[:, 2:4], table[:, 4])
