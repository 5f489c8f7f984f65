"""`ctrl/TMaze-v0`: a sign at one end of a corridor says which way to turn at the other end.

The corridor has `length` steps from the start to the junction, and all of its cells look alike. At the junction any
action ends the episode. A turn to the side that the sign showed brings 1, any other action 0. `rules` selects one of
three variants:

"passive"   The agent is carried along; the sign is seen at the start. Actions: north, south. Tests memory alone.
"active"    The agent is carried along, but must look to see the sign. The action "look" at the first step shows it and
            costs one step at the start. Actions: north, south, look. Also tests if the agent gathers the information
            that it will need, which takes one decision.
"original"  The passive T-maze of Ni et al. 2023 (https://arxiv.org/abs/2307.03864, section 4.1), after Bakker 2001. The
            agent walks by itself, and the episode ends after `length + 1` steps. Every action other than east loses a
            step for good. Each step on which the agent is behind costs 1 / length. Actions: east, north, west, south.
            Also tests exploration: an agent that explores seldom reaches the junction in time, so a bad score says
            little about its memory.

An observation is four flags: the sign says north, the sign says south, at the start, at the junction.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from ctrl.envs.arguments import checked_integer
from ctrl.envs.base import Actions, Bools, Observations, Outcome, Picture, Rules, TaskEnv, TaskVectorEnv
from ctrl.envs.randomness import Bits, derive, integers_below
from ctrl.envs.scores import Scores
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.task import Task

Walk = Literal["passive", "active", "original"]
ACTIONS: dict[str, tuple[str, ...]] = {
    "passive": ("north", "south"),
    "active": ("north", "south", "look"),
    "original": ("east", "north", "west", "south"),
}
"""Names of the actions of each variant, in their order."""


class TMazeState(NamedTuple):
    """State of B copies, each at its own step of its own episode."""

    north: Bools
    """[B] True where the sign says north."""
    step: npt.NDArray[np.int64]
    """[B] step of the episode, from 0."""
    place: npt.NDArray[np.int64]
    """[B] number of cells from the start; `length` at the junction, `length + 1` after the end."""
    looking: Bools
    """[B] True where the sign is seen at this step."""
    skip: npt.NDArray[np.int64]
    """[B] cells to leave out after the start; 0 except in the first episodes of a staggered vector env."""
    turn: npt.NDArray[np.int64]
    """[B] +1 after a turn to the north, -1 to the south, else 0; only for display."""


@dataclass(frozen=True)
class TMazeRules(Rules[TMazeState]):
    """The dynamics of `ctrl/TMaze-v0` for a batch of copies."""

    length: int = 64
    """Steps from the start to the junction, at least 1."""
    rules: Walk = "passive"
    """Variant of the task: "passive", "active" or "original"; see the module's docstring."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("length", self.length, at_least=1)
        if self.rules not in get_args(Walk):
            raise ValueError(f"rules must be one of {get_args(Walk)}, got {self.rules!r}.")

    @cached_property
    def observation_space(self) -> spaces.Box[Any]:
        """Space of four flags: sign says north, sign says south, at the start, at the junction."""
        return spaces.Box(0.0, 1.0, (4,), np.float32)

    @cached_property
    def action_space(self) -> spaces.Discrete:
        """Space of the variant's actions, whose names are in `ACTIONS`."""
        return spaces.Discrete(len(ACTIONS[self.rules]))

    @property
    def scores(self) -> Scores:
        """Expected returns. Without memory a turn is a guess. The random agent also takes actions that are no turns."""
        count = len(ACTIONS[self.rules])
        if self.rules != "original":
            return Scores(random=1 / count, memoryless=0.5, perfect=1.0)
        in_time = (1 / count) ** np.arange(1, self.length + 1)  # probability that the first 1, 2, … steps all go east
        return Scores(random=float(in_time[-1] / count - np.mean(1 - in_time)), memoryless=0.5, perfect=1.0)

    @property
    def return_is_success(self) -> bool:  # type: ignore[override]
        """True in the variants without a cost of walking."""
        return self.rules != "original"

    @property
    def memory_steps(self) -> int:
        """Number of steps from the sign to the junction."""
        return self.length

    @property
    def max_episode_steps(self) -> int:
        """Number of steps for the walk, the turn and, in the "active" variant, the look."""
        return self.length + 1 + (self.rules == "active")

    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> TMazeState:
        """Start episodes; a phase p leaves out p · length cells after the start, except in "original"."""
        zero = np.zeros(len(keys), dtype=np.int64)
        north = integers_below(derive(keys, zero), 2) == 0
        looking = np.full(len(keys), self.rules != "active")
        skip = (phase * self.length).astype(np.int64)
        return TMazeState(north, zero, zero.copy(), looking, skip, zero.copy())

    def observe(self, state: TMazeState) -> Observations:
        """Show the sign, if it is seen, and the flags of the start and of the junction."""
        flags = (
            state.looking & state.north,
            state.looking & ~state.north,
            state.place == 0,
            state.place == self.length,
        )
        return np.stack(flags, axis=1).astype(np.float32)

    def advance(self, state: TMazeState, actions: Actions) -> Outcome:
        """Carry the agent along or let it walk, or turn at the junction."""
        turn = self._turn(actions) * (state.place == self.length)
        step = state.step + 1
        looks = self._looks(state, actions)
        place = self._next_place(state, actions, looks)
        ended = (step > self.length) if self.rules == "original" else (state.place == self.length)
        success = (turn != 0) & ((turn > 0) == state.north)
        rewards = success.astype(np.float64)
        if self.rules == "original":
            rewards -= (~ended & (place < step)) / self.length
        after = state._replace(step=step, place=np.where(ended, self.length + 1, place), looking=looks, turn=turn)
        return Outcome(after, rewards, ended, np.zeros_like(ended), success)

    def text(self, state: TMazeState, row: int) -> str:
        """Return a line such as `step 12, cell 12/64  corridor  (sign north)`."""
        place, turn = int(state.place[row]), int(state.turn[row])
        names = {0: "start", self.length: "junction", self.length + 1: "the end"}
        event = names.get(place, "corridor")
        if turn:
            event = (
                f"turned {'north' if turn > 0 else 'south'}, {'right' if (turn > 0) == state.north[row] else 'wrong'}"
            )
        elif state.looking[row]:
            event += ", sees the sign"
        sign = "north" if state.north[row] else "south"
        return f"step {state.step[row]}, cell {min(place, self.length)}/{self.length}  {event}  (sign {sign})"

    def picture(self, state: TMazeState, row: int) -> Picture:
        """Draw the maze with the sign (bright while it is seen), the goal arm (outlined) and the agent.

        Long corridors are drawn with fewer cells. After a turn the arm is green (right) or red (wrong).
        """
        return _draw(self, state, row)

    def _turn(self, actions: Actions) -> npt.NDArray[np.int64]:
        """Return +1 where the action turns to the north, -1 where to the south, else 0, [B]."""
        return np.subtract(self._is(actions, "north"), self._is(actions, "south"), dtype=np.int64)

    def _looks(self, state: TMazeState, actions: Actions) -> Bools:
        if self.rules != "active":
            return np.zeros(len(actions), dtype=np.bool_)
        looks: Bools = (state.step == 0) & self._is(actions, "look")
        return looks

    def _next_place(self, state: TMazeState, actions: Actions, looks: Bools) -> npt.NDArray[np.int64]:
        """Return the cell after a step that is no turn at the junction, [B]."""
        if self.rules != "original":
            leave = (state.place == 0) & ~looks
            return np.asarray(np.minimum(state.place + ~looks + state.skip * leave, self.length))
        move = np.subtract(self._is(actions, "east"), self._is(actions, "west"), dtype=np.int64)
        return np.clip(state.place + move, 0, self.length)

    def _is(self, actions: Actions, name: str) -> Bools:
        chosen: Bools = actions == ACTIONS[self.rules].index(name)
        return chosen


class TMazeEnv(TaskEnv[TMazeState]):
    """One copy of `ctrl/TMaze-v0`; the fields of `TMazeRules` are its arguments."""

    rules_class = TMazeRules


class TMazeVectorEnv(TaskVectorEnv[TMazeState]):
    """Native vector env of `ctrl/TMaze-v0`; the fields of `TMazeRules` are its arguments."""

    rules_class = TMazeRules


class PerfectTMaze:
    """Agent that looks if it can, walks east, and turns as the sign said."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        names = _action_names(envs)
        self._north, self._south = names.index("north"), names.index("south")
        self._start = names.index("look" if "look" in names else "east" if "east" in names else "north")
        self._walk = names.index("east") if "east" in names else self._north
        self._sign = np.zeros(envs.num_envs, dtype=np.bool_)

    def __call__(self, observations: Observations, reset: Bools) -> Actions:
        """Return the actions."""
        seen = observations[:, 0] + observations[:, 1] > 0
        self._sign = np.where(seen, observations[:, 0] > 0, self._sign)
        walk = np.where(observations[:, 2] > 0, self._start, self._walk)
        return np.where(observations[:, 3] > 0, np.where(self._sign, self._north, self._south), walk)


class MemorylessTMaze:
    """Best memoryless agent: it walks east, and always turns to the north."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        names = _action_names(envs)
        self._north = names.index("north")
        self._walk = names.index("east") if "east" in names else self._north

    def __call__(self, observations: Observations, reset: Bools) -> Actions:
        """Return the actions."""
        return np.where(observations[:, 3] > 0, self._north, self._walk)


def _action_names(envs: VectorEnv[Any, Any, Any]) -> tuple[str, ...]:
    count = int(envs.single_action_space.n)  # type: ignore[attr-defined]
    return next(names for names in ACTIONS.values() if len(names) == count)


TASK = Task(
    id="ctrl/TMaze-v0",
    summary="turn at the junction as a sign said at the start of the corridor",
    env=TMazeEnv,
    vector_env=TMazeVectorEnv,
    agents={"random": RandomAgent, "memoryless": MemorylessTMaze, "perfect": PerfectTMaze},
)


_WALL, _FLOOR, _AGENT, _SIGN, _DIM = (24, 24, 28), (88, 88, 96), (255, 255, 255), (255, 205, 60), (120, 100, 50)
_GREEN, _RED, _GOAL = (60, 220, 90), (235, 60, 60), (70, 130, 220)
_CELL, _MOST_CELLS = 24, 15


def _draw(rules: TMazeRules, state: TMazeState, row: int) -> Picture:
    cells = min(rules.length, _MOST_CELLS - 1) + 1
    pixels: Picture = np.empty((5 * _CELL, (cells + 2) * _CELL, 3), dtype=np.uint8)
    pixels[:] = _WALL
    for column in range(1, cells + 1):
        _fill(pixels, 2, column, _FLOOR)
    north, turn = bool(state.north[row]), int(state.turn[row])
    for arm in (1, -1):
        right = (arm > 0) == north
        colour = _FLOOR if turn != arm else _GREEN if right else _RED
        _fill(pixels, 2 - arm, cells, colour)
        if right and not turn:
            _frame(pixels, 2 - arm, cells, _GOAL)
    _fill(pixels, 1 if north else 3, 1, _SIGN if state.looking[row] else _DIM, margin=6)
    place = min(int(state.place[row]), rules.length)
    column = 1 + round(place / rules.length * (cells - 1))
    _fill(pixels, 2 - turn, column, _AGENT, margin=7)
    return pixels


def _fill(pixels: Picture, row: int, column: int, colour: tuple[int, int, int], margin: int = 1) -> None:
    cell = _cell(pixels, row, column)
    cell[margin:-margin, margin:-margin] = colour


def _frame(pixels: Picture, row: int, column: int, colour: tuple[int, int, int]) -> None:
    cell = _cell(pixels, row, column)
    for edge in (cell[1:4], cell[-4:-1], cell[:, 1:4], cell[:, -4:-1]):
        edge[:] = colour


def _cell(pixels: Picture, row: int, column: int) -> Picture:
    return pixels[row * _CELL : (row + 1) * _CELL, column * _CELL : (column + 1) * _CELL]
