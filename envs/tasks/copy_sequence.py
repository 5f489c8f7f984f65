"""`ctrl/CopySequence-v0`: several symbols in a row, a delay, and queries for all of them in order.

The task tests how much a memory holds: `length` symbols, each to be named `length + delay` steps after it was seen. It
is the copy task of Hochreiter & Schmidhuber 1997 and of Graves, Wayne and Danihelka 2014 (https://arxiv.org/abs/1410.5401),
section 4.1, with one symbol a step. Each right answer brings 1 / length, so the return is the share of right answers.

Step                                 one-hot symbol                                      "cue" flag   "answer" flag
0 … length - 1                       the next symbol                                     1            0
`delay` steps                        a noise symbol with probability `noise`, else 0     0            0
the last `length` steps              0                                                   0            1
after the last action                0                                                   0            0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ctrl.envs.arguments import checked_fraction, checked_integer
from ctrl.envs.base import Actions, Bools, Observations, Outcome, TaskEnv, TaskVectorEnv
from ctrl.envs.randomness import Bits, derive, happens, integers_below
from ctrl.envs.scores import Scores
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.task import Task
from ctrl.envs.tasks.symbols import NO_ANSWER, AllCues, Guess, SymbolRules, Symbols


class CopyState(NamedTuple):
    """State of B copies, each at its own step of its own episode."""

    keys: Bits
    """[B] the episode's key: symbols and noise are functions of it."""
    step: npt.NDArray[np.int64]
    """[B] step of the episode, from 0; `2 * length + delay` after the end."""
    mistakes: npt.NDArray[np.int64]
    """[B] number of wrong answers so far."""
    skip: npt.NDArray[np.int64]
    """[B] steps of the delay to leave out; 0 except in the first episodes of a staggered vector env."""
    answer: Symbols
    right: Bools


@dataclass(frozen=True)
class CopyRules(SymbolRules[CopyState]):
    """The dynamics of `ctrl/CopySequence-v0` for a batch of copies."""

    length: int = 8
    """Number of symbols to copy, at least 1."""
    delay: int = 16
    """Steps between the last symbol and the first query, at least 0."""
    num_symbols: int = 4
    """Number of different symbols, at least 2; also the number of actions."""
    noise: float = 0.0
    """Probability of a noise symbol at each step of the delay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("length", self.length, at_least=1)
        checked_integer("delay", self.delay, at_least=0)
        checked_integer("num_symbols", self.num_symbols, at_least=2)
        checked_fraction("noise", self.noise)

    @property
    def scores(self) -> Scores:
        """Expected share of right answers. Without memory every answer is a guess among `num_symbols`."""
        return Scores(random=1 / self.num_symbols, memoryless=1 / self.num_symbols, perfect=1.0)

    @property
    def memory_steps(self) -> int:
        """Number of steps from a symbol to its query."""
        return self.length + self.delay

    @property
    def max_episode_steps(self) -> int:
        """Number of steps in every episode."""
        return 2 * self.length + self.delay

    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> CopyState:
        """Start episodes; a phase p shortens the delay by p · delay steps."""
        zero = np.zeros(len(keys), dtype=np.int64)
        skip = (phase * self.delay).astype(np.int64)
        return CopyState(keys.copy(), zero, zero.copy(), skip, np.full_like(zero, NO_ANSWER), zero > 0)

    def observe(self, state: CopyState) -> Observations:
        """Show the next symbol, noise, a query or nothing."""
        bits = derive(state.keys, state.step)
        is_cue = state.step < self.length
        in_gap = ~is_cue & (state.step < self.length + self.delay)
        shown = is_cue | (happens(bits, self.noise) & in_gap)
        return self.show_symbols(
            integers_below(bits, self.num_symbols), shown, cue=is_cue, answer=self._is_query(state.step)
        )

    def advance(self, state: CopyState, actions: Actions) -> Outcome:
        """Take one step; at the last `length` steps the action must name a symbol."""
        is_query = self._is_query(state.step)
        right = is_query & (actions == self.wanted(state))
        after = state._replace(
            step=state.step + 1 + state.skip * (state.step == self.length - 1),
            mistakes=state.mistakes + (is_query & ~right),
            answer=np.where(is_query, actions, NO_ANSWER),
            right=right,
        )
        terminated = after.step >= self.max_episode_steps
        never = np.zeros_like(terminated)
        return Outcome(after, right / self.length, terminated, never, terminated & (after.mistakes == 0))

    def wanted(self, state: CopyState) -> Symbols:
        """Return the symbol of the current query; before the queries the first symbol, after them the last."""
        asked = np.clip(state.step - self.length - self.delay, 0, self.length - 1)
        return integers_below(derive(state.keys, asked), self.num_symbols)

    def progress(self, state: CopyState) -> tuple[Symbols, int]:
        """Return the step of the episode, and the episode's length."""
        return np.minimum(state.step, self.max_episode_steps), self.max_episode_steps

    def _is_query(self, step: npt.NDArray[np.int64]) -> Bools:
        is_query: Bools = (step >= self.length + self.delay) & (step < self.max_episode_steps)
        return is_query


class CopySequenceEnv(TaskEnv[CopyState]):
    """One copy of `ctrl/CopySequence-v0`; the fields of `CopyRules` are its arguments."""

    rules_class = CopyRules


class CopySequenceVectorEnv(TaskVectorEnv[CopyState]):
    """Native vector env of `ctrl/CopySequence-v0`; the fields of `CopyRules` are its arguments."""

    rules_class = CopyRules


TASK = Task(
    id="ctrl/CopySequence-v0",
    summary="repeat `length` symbols in their order after a gap of `delay` steps",
    env=CopySequenceEnv,
    vector_env=CopySequenceVectorEnv,
    agents={"random": RandomAgent, "memoryless": Guess, "perfect": AllCues},
)
