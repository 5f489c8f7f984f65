"""The objects and cells of `ctrl/SelectNonmatchingObject-v0`: cells as channels and as tiles of 8 × 8 pixels.

A cell is one number, its *kind*. Below, o is an object: shape · 3 + colour.

Kind             Channels that are 1
BLANK            none; all cells in the corridor
FLOOR            "floor"
WALL             "wall"
PAD              "pad"
EMPTY_CASE       "glass"
CASE + o         "glass", the object's shape and its colour
PEDESTAL + o     "pedestal", the object's shape and its colour
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ctrl.envs.base import Observations, Picture

Integers = npt.NDArray[np.int64]
Split = Literal["train", "held_out", "all"]
Form = Literal["symbolic", "pixels"]
SHAPES: dict[str, tuple[str, ...]] = {
    "square": ("######", "######", "######", "######", "######", "######"),
    "frame": ("######", "#....#", "#....#", "#....#", "#....#", "######"),
    "ring": (".####.", "##..##", "#....#", "#....#", "##..##", ".####."),
    "checkers": ("##..##", "##..##", "..##..", "..##..", "##..##", "##..##"),
    "plus": ("..##..", "..##..", "######", "######", "..##..", "..##.."),
    "cross": ("#....#", ".#..#.", "..##..", "..##..", ".#..#.", "#....#"),
    "triangle": ("......", "..##..", "..##..", ".####.", ".####.", "######"),
    "hourglass": ("######", ".####.", "..##..", "..##..", ".####.", "######"),
    "heart": ("##..##", "######", "######", ".####.", "..##..", "......"),
    "moon": ("..###.", ".##...", "##....", "##....", ".##...", "..###."),
    "stairs": ("....##", "....##", "..####", "..####", "######", "######"),
    "pillars": ("##..##", "##..##", "##..##", "##..##", "##..##", "##..##"),
}
"""Each shape by name, as 6 × 6 pixels."""
COLOURS: dict[str, tuple[int, int, int]] = {"red": (240, 60, 60), "green": (60, 210, 80), "blue": (90, 130, 255)}
NUM_OBJECTS = len(SHAPES) * len(COLOURS)

BLANK, FLOOR, WALL, PAD, EMPTY_CASE, CASE = range(6)
PEDESTAL = CASE + NUM_OBJECTS
NUM_KINDS = PEDESTAL + NUM_OBJECTS

CHANNELS = ("floor", "wall", "pad", "glass", "pedestal", *SHAPES, *COLOURS)
"""Names of the channels, in their order."""
TILE = 8
"""Side of a tile in pixels."""


def object_name(index: int) -> str:
    """Return the name of an object, such as "red ring"."""
    shape, colour = divmod(index, len(COLOURS))
    return f"{list(COLOURS)[colour]} {list(SHAPES)[shape]}"


@lru_cache
def objects_of(split: Split) -> Integers:
    """Return the objects of a split.

    "held_out" has 9 of the 36 objects: one of each of the first 9 shapes, 3 of each colour. So "train" still has each
    shape and each colour.
    """
    shape, colour = np.divmod(np.arange(NUM_OBJECTS), len(COLOURS))
    held_out = (shape < 9) & (colour == shape % len(COLOURS))
    return np.flatnonzero({"train": ~held_out, "held_out": held_out, "all": shape >= 0}[split])


@lru_cache
def looks(form: Form) -> npt.NDArray[Any]:
    """Return the appearance of each kind of cell, [NUM_KINDS, height, width, channels]; a symbolic cell is 1 × 1."""
    return tiles() if form == "pixels" else channels()[:, None, None]


def drawn(kinds: Integers, form: Form) -> Observations:
    """Return the observations that show the kinds of cells [B, rows, columns]."""
    count, rows, columns = kinds.shape
    _, height, width, layers = looks(form).shape
    lines = kinds[:, :, None, :] * height + np.arange(height)[:, None]  # [B, rows, height, columns]
    seen: Observations = looks(form).reshape(-1, width * layers).take(lines, axis=0)
    return seen.reshape(count, rows * height, columns * width, layers)


def recognise(observations: Observations, form: Form) -> Integers:
    """Return the kinds of cells that observations show, [B, rows, columns]; the inverse of `drawn`."""
    kinds, height, width, layers = looks(form).shape
    weights = np.random.default_rng(0).integers(1, 2**20, height * width * layers).astype(np.float64)
    sums = looks(form).reshape(kinds, -1) @ weights  # exact, and different for each kind
    count, high, wide, _ = observations.shape
    shape = (count, high // height, height, wide // width, width, layers)
    cells = observations.reshape(shape).swapaxes(2, 3).reshape(count, high // height, wide // width, -1)
    order = np.argsort(sums)
    return np.asarray(order[np.searchsorted(sums[order], cells @ weights)])


def channels() -> npt.NDArray[np.float32]:
    """Return the channels of each kind of cell, [NUM_KINDS, len(CHANNELS)]."""
    table = np.zeros((NUM_KINDS, len(CHANNELS)), dtype=np.float32)
    for kind, name in ((FLOOR, "floor"), (WALL, "wall"), (PAD, "pad"), (EMPTY_CASE, "glass")):
        table[kind, CHANNELS.index(name)] = 1
    for first, name in ((CASE, "glass"), (PEDESTAL, "pedestal")):
        for index in range(NUM_OBJECTS):
            names = (name, *object_name(index).split())
            table[first + index, [CHANNELS.index(each) for each in names]] = 1
    return table


def tiles() -> Picture:
    """Return the tile of each kind of cell, [NUM_KINDS, TILE, TILE, 3]."""
    table: Picture = np.zeros((NUM_KINDS, TILE, TILE, 3), dtype=np.uint8)
    for kind, name in ((FLOOR, "floor"), (WALL, "wall"), (PAD, "pad"), (EMPTY_CASE, "empty case")):
        table[kind] = _painted(name)
    shapes = np.array([[[mark == "#" for mark in line] for line in lines] for lines in SHAPES.values()])
    for first, name in ((CASE, "case"), (PEDESTAL, "pedestal")):
        for index in range(NUM_OBJECTS):
            shape, colour = divmod(index, len(COLOURS))
            table[first + index] = _painted(name)
            table[first + index, 1:-1, 1:-1][shapes[shape]] = list(COLOURS.values())[colour]
    return table


def arrow(heading: int) -> npt.NDArray[np.bool_]:
    """Return a mask [TILE, TILE] of the agent's pixels; headings are north, east, south, west."""
    return np.rot90([[mark == "#" for mark in line] for line in _ARROW], -heading)


def _painted(name: str) -> Picture:
    """Return the tile with this name, with its letters replaced by the colours in `_PAINT`."""
    return np.array([[_PAINT[mark] for mark in line] for line in _TILES[name]], dtype=np.uint8)


_PAINT = {
    ".": (46, 46, 54),  # floor
    ",": (38, 38, 45),  # joints of the floor
    "B": (112, 112, 124),  # bricks
    "-": (80, 80, 90),  # mortar
    "Y": (255, 205, 60),  # the pad
    "y": (150, 120, 40),
    "G": (170, 225, 240),  # glass
    "g": (24, 40, 52),  # behind glass
    "P": (150, 105, 60),  # wood
    "p": (46, 32, 22),  # in the shade of the wood
}
_TILES = {
    "floor": (*(".......,",) * 7, ",,,,,,,,"),
    "wall": ("BBBBBBB-", "BBBBBBB-", "BBBBBBB-", "--------", "BBB-BBBB", "BBB-BBBB", "BBB-BBBB", "--------"),
    "pad": ("yyyyyyyy", "yYYYYYYy", "yYyyyyYy", "yYyYYyYy", "yYyYYyYy", "yYyyyyYy", "yYYYYYYy", "yyyyyyyy"),
    "empty case": ("GGGGGGGG", "GggggGgG", "GgggGggG", "GggGgggG", "GgGggggG", "GGgggggG", "GggggggG", "GGGGGGGG"),
    "case": ("GGGGGGGG", *("GggggggG",) * 6, "GGGGGGGG"),
    "pedestal": ("PPPPPPPP", *("PppppppP",) * 6, "PPPPPPPP"),
}
_ARROW = ("...##...", "...##...", "..####..", "..####..", ".######.", ".######.", "####.###", "##....##")


_ZOOM = 3
_CELL = TILE * _ZOOM
_WHITE, _GREY, _DARK = (255, 255, 255), (110, 110, 110), (24, 24, 28)
_FRAMES = {0: _DARK, 1: (255, 205, 60), 10: (60, 220, 90), -10: (235, 60, 60)}  # by the last reward


def scene(
    plan: Integers,
    *,
    agent: tuple[int, int, int],
    view: Integers,
    shown: int,
    time: float,
    reward: int,
) -> Picture:
    """Draw a map, the view beside it, a single cell below the view, and a time bar at the bottom, in one frame.

    :param plan: [height, width] kinds of the cells in the room; a wall is drawn around them
    :param agent: the agent's row, column and heading on the map
    :param view: [7, 7] kinds of the cells in view
    :param shown: kind of the single cell
    :param time: elapsed part of the bar, from 0 to 1
    :param reward: +1, +10, −10 or 0; chooses the colour of the frame
    """
    row, column, heading = agent
    left = _zoomed(np.pad(plan, 1, constant_values=WALL))
    _put_agent(left, row + 1, column + 1, heading)
    right = _zoomed(view)
    _put_agent(right, len(view) - 1, len(view) // 2, 0)
    single = _zoomed(np.array([[shown]])).repeat(2, axis=0).repeat(2, axis=1)
    height = max(len(left), len(right) + len(single) + _CELL)
    pixels: Picture = np.empty((height + 4 * _CELL, left.shape[1] + right.shape[1] + 3 * _CELL, 3), dtype=np.uint8)
    pixels[:] = _FRAMES[reward]
    pixels[_CELL // 2 : -_CELL // 2, _CELL // 2 : -_CELL // 2] = _DARK
    _paste(pixels, left, _CELL, _CELL)
    _paste(pixels, right, _CELL, left.shape[1] + 2 * _CELL)
    _paste(pixels, single, len(right) + 2 * _CELL, left.shape[1] + 2 * _CELL + (right.shape[1] - single.shape[1]) // 2)
    bar = pixels[-2 * _CELL : -3 * _CELL // 2, _CELL:-_CELL]
    bar[:] = _GREY
    bar[:, : round(time * bar.shape[1])] = _WHITE
    return pixels


def _zoomed(kinds: Integers) -> Picture:
    """Return the tiles of cells [height, width] as one picture."""
    height, width = kinds.shape
    joined = tiles()[kinds].swapaxes(1, 2).reshape(height * TILE, width * TILE, 3)
    return joined.repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)


def _put_agent(pixels: Picture, row: int, column: int, heading: int) -> None:
    mask = arrow(heading).repeat(_ZOOM, axis=0).repeat(_ZOOM, axis=1)
    pixels[row * _CELL : (row + 1) * _CELL, column * _CELL : (column + 1) * _CELL][mask] = _WHITE


def _paste(pixels: Picture, part: Picture, top: int, left: int) -> None:
    pixels[top : top + part.shape[0], left : left + part.shape[1]] = part
