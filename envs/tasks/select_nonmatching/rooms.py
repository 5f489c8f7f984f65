"""The two rooms of `ctrl/SelectNonmatchingObject-v0` as tables: the effect of each action, and the view from each pose.

A *pose* is the index of (room, y, x, heading). Room A is 0, y counts from the back of a room, x from the left, and
headings have the order of `HEADINGS`. A *slot* is the role of a cell, such as "left glass case". A trial decides what
each slot holds.

P is the number of poses, 2 · depth · 7 · 4.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Slots = npt.NDArray[np.uint8]

LEFT, RIGHT, FORWARD = range(3)
HEADINGS = ("north", "east", "south", "west")
_AHEAD = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])  # (y, x) of one step in each heading
WIDTH, VIEW = 7, 7

# CASES, PADS and PEDESTALS are the left slots of their pairs; add 1 for the right slot.
FREE, SOLID, CASES, PADS, PEDESTALS, NUM_SLOTS = 0, 1, 2, 4, 6, 8


class Rooms(NamedTuple):
    """Tables of both rooms."""

    plan: Slots
    """[2, depth, 7] the slot of each cell."""
    moves: Integers
    """[P, 3] the pose after each action, if it does not lead into another room."""
    meets: Slots
    """[P, 3] the slot that "forward" steps on or bumps into; FREE for the turns."""
    views: Slots
    """[P, 49] the slots in the view of 7 × 7 cells, row by row; the agent is in the middle of the last, looking up."""
    starts: tuple[int, int]
    """Poses in which room A and room B are entered."""


@lru_cache
def rooms(depth: int) -> Rooms:
    """Return the tables for rooms with `depth` cells from front to back."""
    plan = _plan(depth)
    shape = (*plan.shape, len(HEADINGS))
    room, y, x, heading = np.unravel_index(np.arange(np.prod(shape)), shape)
    walled = np.pad(plan, ((0, 0), (VIEW, VIEW), (VIEW, VIEW)), constant_values=SOLID)

    def slots(ahead: int, aside: int) -> Slots:
        """Return the slot of the cell `ahead` cells in front of each pose and `aside` cells to its right, [P]."""
        dy, dx = (ahead * _AHEAD[heading] + aside * _AHEAD[(heading + 1) % 4]).T
        return np.asarray(walled[room, y + dy + VIEW, x + dx + VIEW])

    met = slots(1, 0)
    dy, dx = (_AHEAD[heading] * ((met == FREE) | (met == PADS) | (met == PADS + 1))[:, None]).T
    moves = [(y, x, (heading - 1) % 4), (y, x, (heading + 1) % 4), (y + dy, x + dx, heading)]
    starts = [np.ravel_multi_index(place, shape) for place in ((0, 0, 3, 0), (1, depth - 1, 3, 0))]
    return Rooms(
        plan=plan,
        moves=np.stack([np.ravel_multi_index((room, *move), shape) for move in moves], axis=1),
        meets=np.stack([np.full_like(met, FREE), np.full_like(met, FREE), met], axis=1),
        views=np.stack([slots(VIEW - 1 - i, j - VIEW // 2) for i in range(VIEW) for j in range(VIEW)], axis=1),
        starts=(int(starts[0]), int(starts[1])),
    )


def _plan(depth: int) -> Slots:
    """Return the slot of each cell in both rooms, [2, depth, 7]."""
    plan = np.full((2, depth, WIDTH), FREE, dtype=np.uint8)
    plan[0, 0, [2, 4]] = CASES, CASES + 1
    plan[0, -1, [1, 5]] = PADS, PADS + 1
    plan[1, 0, [0, 6]] = PEDESTALS, PEDESTALS + 1
    return plan


def place_of(pose: int, depth: int) -> tuple[int, int, int, int]:
    """Return room, y, x and heading of a pose."""
    room, y, x, heading = np.unravel_index(pose, (2, depth, WIDTH, len(HEADINGS)))
    return int(room), int(y), int(x), int(heading)


@lru_cache
def pads_at_random(depth: int, steps: int) -> float:
    """Return the expected number of visits to the pad in `steps` steps if each action is drawn uniformly.

    The function computes the probability of each pose, step by step. It always takes the left pad, because the rooms
    are symmetric.
    """
    tables = rooms(depth)
    on_pad, touched = tables.meets == PADS, tables.meets >= PEDESTALS
    after = np.where(on_pad, tables.starts[1], np.where(touched, tables.starts[0], tables.moves))
    chance, pads = np.eye(1, len(after), tables.starts[0])[0], 0.0
    for _ in range(steps):
        each = np.repeat(chance[:, None] / 3, 3, axis=1)  # [P, 3]
        pads += float(each[on_pad].sum())
        chance = np.bincount(after.ravel(), each.ravel(), minlength=len(after))
    return pads
