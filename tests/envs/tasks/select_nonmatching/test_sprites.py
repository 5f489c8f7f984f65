"""Sprites of the cells: all kinds differ from each other, in both forms."""

from __future__ import annotations

import numpy as np
import pytest

from ctrl.envs.tasks.select_nonmatching import sprites


def test_kinds_differ_in_both_forms() -> None:
    for table in (sprites.channels(), sprites.tiles()):
        assert len(table) == sprites.NUM_KINDS == 77
        assert len(np.unique(table.reshape(sprites.NUM_KINDS, -1), axis=0)) == sprites.NUM_KINDS


def test_shapes_differ_in_many_pixels() -> None:
    """Two shapes differ in at least 8 of their 36 pixels."""
    shapes = np.array([[list(line) for line in lines] for lines in sprites.SHAPES.values()])
    assert shapes.shape == (12, 6, 6)
    differences = (shapes[:, None] != shapes[None]).sum(axis=(2, 3))
    assert (differences + 36 * np.eye(12, dtype=int)).min() == 8


def test_colours_differ_in_their_strongest_part() -> None:
    assert sorted(int(np.argmax(colour)) for colour in sprites.COLOURS.values()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (sprites.BLANK, []),
        (sprites.FLOOR, ["floor"]),
        (sprites.WALL, ["wall"]),
        (sprites.PAD, ["pad"]),
        (sprites.EMPTY_CASE, ["glass"]),
        (sprites.CASE, ["glass", "square", "red"]),
        (sprites.CASE + 35, ["glass", "pillars", "blue"]),
        (sprites.PEDESTAL + 7, ["pedestal", "ring", "green"]),
    ],
)
def test_channels_of_a_kind(kind: int, names: list[str]) -> None:
    ones = np.flatnonzero(sprites.channels()[kind])
    assert [sprites.CHANNELS[channel] for channel in ones] == names


def test_an_object_looks_alike_in_its_case_and_on_its_pedestal() -> None:
    """Only the background differs."""
    tiles = sprites.tiles()
    for index in range(sprites.NUM_OBJECTS):
        colour = list(sprites.COLOURS.values())[index % 3]
        case, pedestal = ((tiles[first + index] == colour).all(-1) for first in (sprites.CASE, sprites.PEDESTAL))
        assert case.any()
        np.testing.assert_array_equal(case, pedestal)
    assert sprites.object_name(7) == "green ring"


def test_arrow_points_where_it_goes() -> None:
    """Its tip is thin, its tail wide."""
    for heading, tip in enumerate([np.s_[0], np.s_[:, -1], np.s_[-1], np.s_[:, 0]]):
        assert sprites.arrow(heading)[tip].tolist() == [False] * 3 + [True] * 2 + [False] * 3


def test_scene_has_room_for_every_part() -> None:
    """Tall and flat rooms are tested; cells are 24 pixels wide."""
    for depth, rows in ((2, 7 + 1 + 2 + 4), (20, 22 + 4)):
        plan, view = np.full((depth, 7), sprites.FLOOR), np.full((7, 7), sprites.WALL)
        drawn = sprites.scene(plan, agent=(0, 0, 2), view=view, shown=sprites.CASE, time=0.5, reward=0)
        assert drawn.shape == (24 * rows, 24 * (9 + 7 + 3), 3)
        bar = drawn[-2 * 24, 24:-24]
        assert (bar == 255).all(-1).mean() == 0.5


@pytest.mark.parametrize("form", ["symbolic", "pixels"])
def test_every_kind_is_recognised(form: sprites.Form) -> None:
    kinds = np.arange(98).reshape(2, 7, 7) % sprites.NUM_KINDS
    np.testing.assert_array_equal(sprites.recognise(sprites.drawn(kinds, form), form), kinds)
