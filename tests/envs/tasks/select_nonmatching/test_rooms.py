"""Tables of the two rooms: shortest paths, walls, and views compared with a slow reference."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ctrl.envs.tasks.select_nonmatching.rooms import (
    CASES,
    FORWARD,
    FREE,
    LEFT,
    PADS,
    PEDESTALS,
    RIGHT,
    SOLID,
    pads_at_random,
    place_of,
    rooms,
)

MARKS = {
    ".": FREE,
    "#": SOLID,
    "c": CASES,
    "C": CASES + 1,
    "o": PADS,
    "O": PADS + 1,
    "p": PEDESTALS,
    "P": PEDESTALS + 1,
}


def steps_to(slot: int, depth: int) -> int:
    """Return the smallest number of steps that meet a slot, by breadth-first search."""
    tables = rooms(depth)
    reached, seen, steps = {tables.starts[int(slot >= PEDESTALS)]}, set[int](), 1
    while not any(tables.meets[pose, FORWARD] == slot for pose in reached):
        seen |= reached
        reached = {int(pose) for each in reached for pose in tables.moves[each]} - seen
        steps += 1
    return steps


def reachable(depth: int, room: int) -> set[int]:
    tables = rooms(depth)
    found, fresh = set[int](), {tables.starts[room]}
    while fresh:
        found |= fresh
        fresh = {int(pose) for each in fresh for pose in tables.moves[each]} - found
    return found


def pose_at(room: int, x: int, y: int, heading: int, depth: int) -> int:
    return next(pose for pose in reachable(depth, room) if place_of(pose, depth) == (room, y, x, heading))


@pytest.mark.parametrize("depth", [2, 3, 6, 7, 8, 10, 15])
def test_shortest_ways(depth: int) -> None:
    """The shortest paths to both sides have the same length."""
    assert [steps_to(slot, depth) for slot in (PADS, PADS + 1)] == [depth + 4] * 2
    assert [steps_to(slot, depth) for slot in (PEDESTALS, PEDESTALS + 1)] == [depth + 3] * 2


def test_a_guess_where_the_pad_is_saves_nothing() -> None:
    """Turning to one side before the last row takes one step more: the cases block the way along the first row."""
    depth, tables = 10, rooms(10)
    for slot, heading in ((PADS, LEFT), (PADS + 1, RIGHT)):
        pose, steps = tables.starts[0], 0
        turn_back = RIGHT if heading == LEFT else LEFT
        way = [heading, heading, FORWARD, turn_back, FORWARD, FORWARD, heading, *[FORWARD] * (depth - 2)]
        for action in way:
            met = tables.meets[pose, action]
            pose, steps = tables.moves[pose, action], steps + 1
        assert met == slot
        assert steps == depth + 5


@pytest.mark.parametrize("depth", [2, 10])
def test_nobody_walks_through_what_is_solid(depth: int) -> None:
    tables = rooms(depth)
    for room in (0, 1):
        poses = reachable(depth, room)
        assert len(poses) == 4 * (7 * depth - 2)  # two cells are taken by cases or pedestals
        slots = {int(tables.plan[room, place_of(pose, depth)[1], place_of(pose, depth)[2]]) for pose in poses}
        assert slots == ({FREE, PADS, PADS + 1} if room == 0 else {FREE})


def test_moves_by_hand() -> None:
    depth, tables = 5, rooms(5)
    at = [(3, 2, heading) for heading in range(4)]
    ahead = [(3, 1), (4, 2), (3, 3), (2, 2)]
    for (x, y, heading), (x_ahead, y_ahead) in zip(at, ahead, strict=True):
        left, right, forward = tables.moves[pose_at(0, x, y, heading, depth)]
        assert place_of(left, depth) == (0, y, x, (heading - 1) % 4)
        assert place_of(right, depth) == (0, y, x, (heading + 1) % 4)
        assert place_of(forward, depth) == (0, y_ahead, x_ahead, heading)
    assert [place_of(start, depth) for start in tables.starts] == [(0, 0, 3, 0), (1, 4, 3, 0)]


@pytest.mark.parametrize("depth", [2, 4, 10])
def test_views_turn_with_the_agent(depth: int) -> None:
    """The slow reference cuts 13 × 13 cells around the agent from the plan, and rotates them."""
    tables = rooms(depth)
    for room in (0, 1):
        walled = np.pad(tables.plan[room], 6, constant_values=SOLID)
        for pose in reachable(depth, room):
            _, y, x, heading = place_of(pose, depth)
            upright = np.rot90(walled[y : y + 13, x : x + 13], heading)
            np.testing.assert_array_equal(tables.views[pose].reshape(7, 7), upright[:7, 3:10])


@pytest.mark.parametrize(
    ("room", "x", "y", "heading", "expected"),
    [
        (0, 3, 0, 0, ["#######", "#######", "#######", "#######", "#######", "#######", "..c.C.."]),
        (0, 3, 0, 1, ["#######", "#######", "#######", "###....", "###...O", "###C...", "###...."]),
        (0, 3, 0, 2, ["#######", "#######", "#######", ".O...o.", ".......", ".......", "..C.c.."]),
        (0, 4, 1, 3, ["#######", "#######", "#....##", "#o...##", "#...c##", "#....##", "#...C##"]),
        (1, 1, 2, 0, ["#######", "#######", "#######", "#######", "##p....", "##.....", "##....."]),
    ],
)
def test_views_by_hand(room: int, x: int, y: int, heading: int, expected: list[str]) -> None:
    view = rooms(4).views[pose_at(room, x, y, heading, 4)].reshape(7, 7)
    assert view.tolist() == [[MARKS[mark] for mark in line] for line in expected]


def test_pads_at_random_are_those_of_all_sequences_of_actions() -> None:
    """The shortest path to the pad has 6 steps. The next pad takes at least 11 more, so 9 steps reach only one."""
    steps, tables, pads = 9, rooms(2), 0
    for sequence in product(range(3), repeat=steps):
        pose = tables.starts[0]
        for action in sequence:
            if tables.meets[pose, action] == PADS:
                pads += 1
                break
            pose = int(tables.moves[pose, action])
    assert pads_at_random(2, steps) == pytest.approx(pads / 3**steps)
    assert pads_at_random(2, 5) == 0
    assert pads_at_random(2, 6) == pytest.approx(2 / 3**6)
