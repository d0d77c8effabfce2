"""An expert for maze: the shortest way to the cheese (easy levels: 15 x 15 cells)."""

import numpy as np

from lawm_jax.envs.procgen import STAY
from lawm_jax.scripted import grid

SIZE = 15


def act(frame: np.ndarray, before: np.ndarray, rng: np.random.Generator) -> int:
    """Returns the action for a frame [64, 64, 3] uint8; STAY where it shows no mouse or cheese."""
    red, green, blue = (frame[..., channel].astype(np.int16) for channel in range(3))
    wall = (np.abs(red - 184) < 34) & (np.abs(green - 144) < 16) & (np.abs(blue - 95) < 16)
    labels = np.where(wall, 1, 0)
    labels[frame.min(axis=2) > 180] = 2
    labels[(red > 228) & (blue < 120)] = 3
    _, wall, mouse, cheese = grid.count(labels, SIZE, 4)
    if mouse.max() < 1 or cheese.max() < 1:
        return STAY
    start, goal = int(mouse.argmax()), int(cheese.argmax())
    open_ = (wall < 8).tolist()
    steps = grid.distances(SIZE, [goal], lambda cell: open_[cell])
    ways = [move for move in grid.neighbours(SIZE)[start] if open_[move[1]]]
    return min(ways, key=lambda move: steps[move[1]], default=(STAY, start))[0]
