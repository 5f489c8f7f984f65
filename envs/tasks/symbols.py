"""Common base of the tasks that show symbols and ask for them: observations, pictures and scripted agents.

An observation is a one-hot symbol, or none, and two flags. The "cue" flag says that the symbol must be remembered, the
"answer" flag that the action must name a symbol. Action k names symbol k.
"""

from __future__ import annotations

import colorsys
from abc import abstractmethod
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from ctrl.envs.base import Actions, Bools, Observations, Picture, Rules, StateT, take

Symbols = npt.NDArray[np.int64]
NO_ANSWER = -1


class SymbolState(Protocol):
    """Fields that the state of every such task has, for display."""

    @property
    def answer(self) -> Symbols:
        """[B] the symbol that the last step's action named, NO_ANSWER where no answer was asked for."""

    @property
    def right(self) -> Bools:
        """[B] True where that answer was right."""


class SymbolRules(Rules[StateT]):
    """Rules of a task with `num_symbols` symbols to see and to name. Its state has the fields of `SymbolState`."""

    num_cues: int

    @property
    def num_symbols(self) -> int:
        """Number of symbols: one for each cue, unless `num_symbols` is an argument of the task."""
        return self.num_cues

    @cached_property
    def observation_space(self) -> spaces.Box[Any]:
        """Space of `num_symbols` one-hot entries, the "cue" flag and the "answer" flag."""
        return spaces.Box(0.0, 1.0, (self.num_symbols + 2,), np.float32)

    @cached_property
    def action_space(self) -> spaces.Discrete:
        """Space of the symbols that an action can name."""
        return spaces.Discrete(self.num_symbols)

    @abstractmethod
    def wanted(self, state: StateT) -> Symbols:
        """Return the symbol that the current query asks for, or else the next query, [B]."""

    @abstractmethod
    def progress(self, state: StateT) -> tuple[Symbols, int]:
        """Return each copy's step of its episode, [B], and the last step that an episode can have."""

    def show_symbols(self, symbols: Symbols, shown: Bools, *, cue: Bools, answer: Bools) -> Observations:
        """Return observations [B, num_symbols + 2].

        :param symbols: [B] below `num_symbols`
        :param shown: [B] True where the symbol is visible
        :param cue: [B] True where it must be remembered
        :param answer: [B] True where an answer is asked for
        """
        observations = np.zeros((len(symbols), self.num_symbols + 2), dtype=np.float32)
        observations[np.arange(len(symbols)), symbols] = shown
        observations[:, -2] = cue
        observations[:, -1] = answer
        return observations

    def text(self, state: StateT, row: int) -> str:
        """Return a line such as `step 12/64  noise 3  (cue 1)`."""
        one = take(state, slice(row, row + 1))
        (step,), end = self.progress(one)
        seen = _name(self.observe(one)[0])
        answer, right = _last_answer(one)
        if answer is not None:
            answered = f"answered {answer}, {'right' if right else 'wrong'}"
            seen = answered if seen == "blank" else f"{answered}; {seen}"
        return f"step {step}/{end}  {seen}  (cue {self.wanted(one)[0]})"

    def picture(self, state: StateT, row: int) -> Picture:
        """Draw a sign (`!` cue, `?` answer now), a tile for each symbol, and a time bar.

        The visible symbol is bright with a white frame. A white dot, for the viewer only, marks the symbol that an
        answer must name. After an answer, the tile of the named symbol has a green (right) or red (wrong) frame.
        """
        one = take(state, slice(row, row + 1))
        observation, board = self.observe(one)[0], _Board(self.num_symbols)
        seen, (answer, right) = _seen(observation), _last_answer(one)
        for index in range(self.num_symbols):
            board.fill(index, bright=index == seen)
        if seen is not None:
            board.frame(seen, _WHITE)
        if answer is not None:
            board.frame(answer, _GREEN if right else _RED)
        board.dot(int(self.wanted(one)[0]))
        board.sign("!" if observation[-2] else "?" if observation[-1] else " ")
        (step,), end = self.progress(one)
        board.bar(step / end)
        return board.pixels


def _seen(observation: Observations) -> int | None:
    """Return the symbol in one observation [num_symbols + 2], None if it shows no symbol."""
    return int(observation[:-2].argmax()) if observation[:-2].any() else None


def _name(observation: Observations) -> str:
    """Return a short description of one observation."""
    if observation[-1]:
        return "answer now"
    seen = _seen(observation)
    return "blank" if seen is None else f"{'cue' if observation[-2] else 'noise'} {seen}"


def _last_answer(one: Any) -> tuple[int | None, bool]:
    answer = int(one.answer[0])
    return None if answer == NO_ANSWER else answer, bool(one.right[0])


class Guess:
    """Best memoryless agent if all queries look alike and no answer is likelier than symbol 0: names symbol 0."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self._actions = np.zeros(envs.num_envs, dtype=np.int64)

    def __call__(self, observations: Observations, reset: Bools) -> Actions:
        """Return symbol 0."""
        return self._actions


class LatestCue:
    """Agent that remembers and names the last symbol with the "cue" flag."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self._cue = np.zeros(envs.num_envs, dtype=np.int64)

    def __call__(self, observations: Observations, reset: Bools) -> Actions:
        """Return the remembered symbol."""
        self._cue = np.where(observations[:, -2] > 0, observations[:, :-2].argmax(axis=1), self._cue)
        return self._cue


class AllCues:
    """Agent that remembers all symbols with the "cue" flag and names them in order at the queries.

    After a step without a query it starts again with the first symbol.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self._cues: list[list[int]] = [[] for _ in range(envs.num_envs)]
        self._next = [0] * envs.num_envs

    def __call__(self, observations: Observations, reset: Bools) -> Actions:
        """Return the next symbol where an answer is asked for, else 0."""
        actions = np.zeros(len(observations), dtype=np.int64)
        for row, observation in enumerate(observations):
            if reset[row]:
                self._cues[row] = []
            if observation[-2]:
                self._cues[row].append(int(observation[:-2].argmax()))
            if observation[-1]:
                actions[row] = self._cues[row][self._next[row]]
                self._next[row] += 1
            else:
                self._next[row] = 0
        return actions


_WHITE, _GREEN, _RED, _GREY, _DARK = (255, 255, 255), (60, 220, 90), (235, 60, 60), (110, 110, 110), (24, 24, 28)
_SIGNS = {
    "!": ("..#..", "..#..", "..#..", ".....", "..#.."),
    "?": (".###.", "...#.", "..##.", ".....", "..#.."),
    " ": (".....", ".....", "..#..", ".....", "....."),
}
_TILE, _GAP, _DOT = 28, 4, 5  # pixels


class _Board:
    """Picture with a sign at the top, one tile for each symbol, at most 8 in a row, and a bar at the bottom."""

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
        """Draw a bar that shows the elapsed fraction of the episode."""
        strip = self.pixels[-self.pitch // 2 - _DOT : -self.pitch // 2, _GAP:-_GAP]
        strip[:] = _GREY
        strip[:, : round(fraction * strip.shape[1])] = _WHITE

    def _tile(self, index: int) -> Picture:
        """Return a view of a tile and its margin."""
        row, column = divmod(index, self.columns)
        top, left = (row + 1) * self.pitch, column * self.pitch
        return self.pixels[top : top + self.pitch, left : left + self.pitch]
