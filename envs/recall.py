"""`ctrl/Recall-v0`: a cue at step 0, distracting noise, and a query at the end.

An episode has `length + 1` decisions. The cue is seen at step 0, the query `length` steps later, and the action at the
query is the only one that counts: 1 if it names the cue, else 0. So one decision depends on exactly one observation,
`length` steps back; nothing else in the episode helps. It is the copy-one-symbol case of the tasks in Hochreiter &
Schmidhuber 1997, and the question that a memory must answer before any other.

Step                   one-hot symbol                                         "cue" flag   "answer" flag
0                      the cue                                                1            0
1 … length - 1         with probability `noise` one that means nothing, else 0  0            0
length                 0                                                      0            1
after the last action  0                                                      0            0
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from ctrl.envs.base import (
    Actions,
    Bools,
    Observations,
    Outcome,
    Picture,
    Rules,
    TaskEnv,
    TaskVectorEnv,
    checked_fraction,
    checked_integer,
    take,
)
from ctrl.envs.randomness import Bits, derive, happens, integers_below
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.task import Scores, Task


class RecallState(NamedTuple):
    """Where each of B copies is in its episode."""

    keys: Bits
    """[B] the episode's key: cue and noise are functions of it."""
    step: npt.NDArray[np.int64]
    """[B] from 0; `length` at the query, `length + 1` after the end."""
    cue: npt.NDArray[np.int64]
    """[B]"""
    skip: npt.NDArray[np.int64]
    """[B] steps to leave out after the cue; 0 except in the first episodes of a staggered vector env."""
    answer: npt.NDArray[np.int64]
    """[B] the action at the query, -1 before it; only shown."""


@dataclass(frozen=True)
class RecallRules(Rules[RecallState]):
    """The dynamics of `ctrl/Recall-v0` for a batch of copies."""

    length: int
    num_cues: int
    noise: float

    def __post_init__(self) -> None:
        checked_integer("length", self.length, at_least=1)
        checked_integer("num_cues", self.num_cues, at_least=2)
        checked_fraction("noise", self.noise)

    @cached_property
    def observation_space(self) -> spaces.Box[np.floating[Any]]:
        """`num_cues` one-hot entries, the "cue" flag, the "answer" flag."""
        return spaces.Box(0.0, 1.0, (self.num_cues + 2,), np.float32)

    @cached_property
    def action_space(self) -> spaces.Discrete:
        """The cue to name."""
        return spaces.Discrete(self.num_cues)

    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> RecallState:
        """Start episodes; a phase p leaves out p · length blank steps after the cue."""
        step = np.zeros(len(keys), dtype=np.int64)
        cue = integers_below(derive(keys, step), self.num_cues)
        return RecallState(keys.copy(), step, cue, (phase * self.length).astype(np.int64), step - 1)

    def observe(self, state: RecallState) -> Observations:
        """Show the cue, noise, the query or nothing."""
        bits = derive(state.keys, state.step)
        is_cue, is_query = state.step == 0, state.step == self.length
        shown = is_cue | (happens(bits, self.noise) & (state.step < self.length))
        observations = np.zeros((len(bits), self.num_cues + 2), dtype=np.float32)
        observations[np.arange(len(bits)), integers_below(bits, self.num_cues)] = shown
        observations[:, -2] = is_cue
        observations[:, -1] = is_query
        return observations

    def advance(self, state: RecallState, actions: Actions) -> Outcome:
        """Count one step; the action at the query ends the episode."""
        terminated = state.step == self.length
        success = terminated & (actions == state.cue)
        step = state.step + 1 + state.skip * (state.step == 0)
        answer = np.where(terminated, actions, -1)
        return Outcome(state._replace(step=step, answer=answer), success.astype(np.float64), terminated, success)

    def text(self, state: RecallState, row: int) -> str:
        """Return such as `step 12/64  noise 3  (cue 1)`."""
        step, cue, answer = int(state.step[row]), int(state.cue[row]), int(state.answer[row])
        symbol = self._symbol(state, row)
        if step > self.length:
            event = f"answered {answer}, {'right' if answer == cue else 'wrong'}"
        elif step == self.length:
            event = "answer now"
        else:
            event = "blank" if symbol is None else f"{'cue' if step == 0 else 'noise'} {symbol}"
        return f"step {min(step, self.length)}/{self.length}  {event}  (cue {cue})"

    def picture(self, state: RecallState, row: int) -> Picture:
        """Draw a sign (`!` cue, `?` answer now), a tile for each symbol, and the time as a bar.

        The symbol seen now is bright with a white frame. A white dot marks the tile of the cue, which only the viewer
        knows. After the end the tile of the answer has a green (right) or red (wrong) frame.
        """
        step = int(state.step[row])
        tiles = _Tiles(self.num_cues)
        symbol, answer = self._symbol(state, row), int(state.answer[row])
        for index in range(self.num_cues):
            tiles.fill(index, bright=index == symbol)
        if symbol is not None:
            tiles.frame(symbol, _WHITE)
        if answer >= 0:
            tiles.frame(answer, _GREEN if answer == state.cue[row] else _RED)
        tiles.dot(int(state.cue[row]))
        tiles.sign("!" if step == 0 else "?" if step == self.length else " ")
        tiles.bar(min(step / self.length, 1.0))
        return tiles.pixels

    def _symbol(self, state: RecallState, row: int) -> int | None:
        """Return the symbol that copy `row` sees now."""
        one_hot = self.observe(take(state, slice(row, row + 1)))[0, : self.num_cues]
        return int(one_hot.argmax()) if one_hot.any() else None


class RecallEnv(TaskEnv[RecallState]):
    """One copy of `ctrl/Recall-v0`.

    :param length: steps from the cue to the query, at least 1; an episode has `length + 1` decisions.
    :param num_cues: how many cues there are, at least 2; also the number of actions.
    :param noise: probability of a meaningless symbol at each step between cue and query.
    :param render_mode: "ansi", "rgb_array" or None.
    :raises ValueError: if an argument is out of range.
    """

    def __init__(
        self, length: int = 64, num_cues: int = 4, noise: float = 0.5, *, render_mode: str | None = None
    ) -> None:
        super().__init__(RecallRules(length, num_cues, noise), render_mode)


class RecallVectorEnv(TaskVectorEnv[RecallState]):
    """Native vector env of `ctrl/Recall-v0`; see `RecallEnv` for the other arguments.

    :param num_envs: number of copies.
    :param stagger: all episodes have the same length, so all copies would end together for good. With `stagger`, the
        first episode of copy i after `reset` lacks the first `i / num_envs` of its steps between cue and query, so that
        the ends spread evenly over time. Later episodes are complete.
    """

    def __init__(
        self,
        num_envs: int = 1,
        length: int = 64,
        num_cues: int = 4,
        noise: float = 0.5,
        *,
        stagger: bool = False,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(RecallRules(length, num_cues, noise), num_envs, render_mode, stagger)


class MemorylessRecall:
    """The best agent without memory: no observation at the query tells one cue from another, so any answer will do."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self._actions = np.zeros(envs.num_envs, dtype=np.int64)

    def __call__(self, observations: npt.NDArray[Any], reset: Bools) -> Actions:
        """Return cue 0."""
        return self._actions


class PerfectRecall:
    """Remembers the symbol that came with the "cue" flag."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self._cue = np.zeros(envs.num_envs, dtype=np.int64)

    def __call__(self, observations: npt.NDArray[Any], reset: Bools) -> Actions:
        """Return the remembered cue."""
        self._cue = np.where(observations[:, -2] > 0, observations[:, :-2].argmax(axis=1), self._cue)
        return self._cue


def _scores(arguments: Mapping[str, Any]) -> Scores:
    chance = 1.0 / arguments["num_cues"]
    return Scores(random=chance, memoryless=chance, perfect=1.0)


TASK = Task(
    id="ctrl/Recall-v0",
    summary="name a cue that was shown once, `length` steps ago, through noise",
    env=RecallEnv,
    vector_env=RecallVectorEnv,
    score_rule=_scores,
    memory_rule=lambda arguments: int(arguments["length"]),
    agents={"random": RandomAgent, "memoryless": MemorylessRecall, "perfect": PerfectRecall},
)


_WHITE, _GREEN, _RED, _GREY, _DARK = (255, 255, 255), (60, 220, 90), (235, 60, 60), (110, 110, 110), (24, 24, 28)
_SIGNS = {
    "!": ("..#..", "..#..", "..#..", ".....", "..#.."),
    "?": (".###.", "...#.", "..##.", ".....", "..#.."),
    " ": (".....", ".....", "..#..", ".....", "....."),
}
_TILE, _GAP, _DOT = 28, 4, 5  # pixels


class _Tiles:
    """Pixels with one tile for each symbol, at most 8 in a row, below a sign and above a bar."""

    def __init__(self, count: int) -> None:
        self.columns = min(count, 8)
        rows = -(-count // self.columns)
        self.pitch = _TILE + 2 * _GAP
        self.pixels: Picture = np.empty(((rows + 2) * self.pitch, self.columns * self.pitch, 3), dtype=np.uint8)
        self.pixels[:] = _DARK
        self.hues = [index / count for index in range(count)]

    def fill(self, index: int, *, bright: bool) -> None:
        """Fill a tile with its symbol's colour."""
        colour = colorsys.hsv_to_rgb(self.hues[index], 0.75, 1.0 if bright else 0.28)
        self._tile(index)[_GAP:-_GAP, _GAP:-_GAP] = np.round(np.array(colour) * 255)

    def frame(self, index: int, colour: tuple[int, int, int]) -> None:
        """Frame a tile."""
        tile, width = self._tile(index), _GAP - 1
        for edge in (tile[:width], tile[-width:], tile[:, :width], tile[:, -width:]):
            edge[:] = colour

    def dot(self, index: int) -> None:
        """Put a white dot in the middle of a tile."""
        middle = slice((self.pitch - _DOT) // 2, (self.pitch + _DOT) // 2)
        self._tile(index)[middle, middle] = _WHITE

    def sign(self, name: str) -> None:
        """Draw a sign of 5 × 5 dots at the top, in the middle."""
        dots = np.array([[mark == "#" for mark in line] for line in _SIGNS[name]]).repeat(_DOT, 0).repeat(_DOT, 1)
        left = (self.pixels.shape[1] - dots.shape[1]) // 2
        top = (self.pitch - dots.shape[0]) // 2
        self.pixels[top : top + dots.shape[0], left : left + dots.shape[1]][dots] = _WHITE

    def bar(self, fraction: float) -> None:
        """Draw the part of the episode that is over."""
        strip = self.pixels[-self.pitch // 2 - _DOT : -self.pitch // 2, _GAP:-_GAP]
        strip[:] = _GREY
        strip[:, : round(fraction * strip.shape[1])] = _WHITE

    def _tile(self, index: int) -> Picture:
        """Return a view of a tile and its margin."""
        row, column = divmod(index, self.columns)
        top, left = (row + 1) * self.pitch, column * self.pitch
        return self.pixels[top : top + self.pitch, left : left + self.pitch]
