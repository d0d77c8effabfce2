"""An expert for miner: diamonds by the shortest way, then the exit (easy levels: 10 x 10 cells).

Boulders and diamonds fall into empty cells below, roll off each other, and kill what they fall on;
boulders can be pushed sideways into an empty cell. The expert plays out what a move would do before
it makes it.
"""

import numpy as np

from lawm_jax.envs.procgen import DOWN, LEFT, RIGHT, STAY, UP
from lawm_jax.scripted import grid

SIZE = 10
AREA = SIZE * SIZE
SPACE, DIRT, BOULDER, DIAMOND, WALL = range(5)
LOOKAHEAD = 3  # moves
_OFFSET = {LEFT: -1, RIGHT: 1, UP: -SIZE, DOWN: SIZE, STAY: 0}
_COLOURS = (  # of the surfaces of boulder, diamond, miner and exit
    (0x97A9AA,),
    (0x69C5EB, 0x2FB2E9, 0x1EA7E1),
    (0x6FC4A9, 0x80D4BA),
    (0xBBCBCC,),
)
_PUSH_COST = 4  # steps that a boulder on the way is reckoned as


def act(frame: np.ndarray, before: np.ndarray, rng: np.random.Generator) -> int:
    """Returns the action for a frame [64, 64, 3] uint8, given the one before it.

    Of ways of equal length it takes the first in the order of `grid.MOVES`: a policy that regresses
    latent actions would else learn the mean of several, which may be none of them.
    """
    cells, miner, goal = read(frame)
    if miner is None:
        return STAY
    targets = [cell for cell in range(AREA) if cells[cell] == DIAMOND]
    if not targets:
        targets = [] if goal is None else [goal]
    steps = grid.distances(SIZE, targets, lambda cell: cells[cell] != BOULDER)
    if steps[miner] == grid.FAR:  # walled in: as if boulders were not there, to push or loosen them
        steps = grid.distances(SIZE, targets, lambda cell: True)
    falling = _falling(cells, read(before)[0])
    moves = []
    for action, cell in grid.neighbours(SIZE)[miner]:
        if cells[cell] != BOULDER:
            moves.append((steps[cell], action))
        elif _move(cells.copy(), falling, miner, action) == cell:
            moves.append((steps[cell] + _PUSH_COST, action))
    order = [action for _, action in sorted([*moves, (steps[miner] + 1.5, STAY)])]
    return next((a for a in order if survives(cells, falling, miner, a, LOOKAHEAD)), order[0])


@grid.remembering
def read(frame: np.ndarray) -> tuple[list[int], int | None, int | None]:
    """Returns the cells [100], the miner's cell and the exit's; None where it shows none."""
    code = grid.colour_codes(frame)
    red, green, blue = code >> 16, code >> 8 & 255, code & 255
    # Dirt is one brown, lighter and darker.
    labels = (np.abs(1000 * green - 633 * red) < 3000) & (np.abs(1000 * blue - 308 * red) < 3000)
    labels = (labels & (red > 80)).astype(np.int8)
    for label, colours in enumerate(_COLOURS, 2):
        for colour in colours:
            labels[code == colour] = label
    _, dirt, boulder, diamond, miner, goal = grid.count(labels, SIZE, 2 + len(_COLOURS))
    cells = np.where(dirt >= 28, DIRT, SPACE)
    cells[diamond >= 8], cells[boulder >= 4] = DIAMOND, BOULDER
    return (
        cells.tolist(),
        int(miner.argmax()) if miner.max() >= 6 else None,
        int(goal.argmax()) if goal.max() >= 5 else None,
    )


def _falling(cells: list[int], before: list[int]) -> set[int]:
    """What came to its cell from above in the last step, from the cells now and a step before."""
    falling = set()
    kinds = (BOULDER, DIAMOND)
    for cell in range(AREA - 1, SIZE - 1, -1):
        left = before[cell] == SPACE or cell + SIZE in falling  # what was here fell too
        if left and cells[cell] in kinds and before[cell - SIZE] in kinds:
            falling.add(cell)
    return falling


def survives(cells: list[int], falling: set[int], miner: int, action: int, moves: int) -> bool:
    """Whether some way of going on after this action is still alive after so many moves."""
    cells, falling = cells.copy(), falling.copy()
    miner = _move(cells, falling, miner, action)
    if not _fall(cells, falling, miner):
        return False
    if moves == 1 or not falling:
        return True
    return any(survives(cells, falling, miner, a, moves - 1) for a in (STAY, LEFT, RIGHT, UP, DOWN))


def _move(cells: list[int], falling: set[int], miner: int, action: int) -> int:
    """Moves the miner, digs what it enters and pushes a boulder; returns the miner's cell."""
    to = miner + _OFFSET[action]
    column = miner % SIZE + (action == RIGHT) - (action == LEFT)
    if not (0 <= to < AREA and 0 <= column < SIZE):
        return miner
    if cells[to] == BOULDER:
        beyond = to + _OFFSET[action]
        inside = 0 <= column + (action == RIGHT) - (action == LEFT) < SIZE
        if action not in (LEFT, RIGHT) or not inside or cells[beyond] != SPACE or to in falling:
            return miner
        cells[beyond] = BOULDER
    cells[to] = SPACE
    return to


def _fall(cells: list[int], falling: set[int], miner: int) -> bool:
    """Lets everything fall or roll by a cell, lowest first; returns whether the miner lives."""

    def free(cell: int) -> bool:
        return cells[cell] == SPACE and cell != miner

    alive = True
    for row in range(SIZE - 1, -1, -1):
        for cell in range(row * SIZE, row * SIZE + SIZE):
            kind = cells[cell]
            if kind != BOULDER and kind != DIAMOND:
                continue
            below, column = cell + SIZE, cell % SIZE
            under = cells[below] if below < AREA else WALL
            if under == SPACE and below != miner:
                cells[cell], cells[below] = SPACE, kind
                falling.discard(cell)
                falling.add(below)
                continue
            if below == miner and cell in falling:
                alive = False
            elif under in (BOULDER, DIAMOND):
                for side in (-1, 1):
                    if 0 <= column + side < SIZE and free(cell + side) and free(below + side):
                        cells[cell], cells[cell + side] = SPACE, kind
                        break
            falling.discard(cell)
    return alive
