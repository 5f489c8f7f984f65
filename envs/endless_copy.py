"""`ctrl/EndlessCopy-v0`: a sequence that grows by one symbol a round and is asked for whole, until the first mistake.

Round r (from 1) shows one new symbol, then `delay` blank steps, then asks for all r symbols in their order. Each right
answer brings 1; a wrong one ends the episode, the last answer of round `max_length` cuts it off. So the first symbol
must be kept for the whole episode while the load grows: the game "Simon", and the form of the endless tasks of Pleines
et al. 2023 (https://arxiv.org/abs/2309.17207). What is seen is as in `ctrl/CopySequence-v0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ctrl.envs.base import Actions, Bools, Observations, Outcome, TaskEnv, TaskVectorEnv, checked_integer
from ctrl.envs.randomness import Bits, derive, integers_below
from ctrl.envs.scores import Scores, until_first_mistake
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.symbols import NO_ANSWER, AllCues, Guess, SymbolRules, Symbols
from ctrl.envs.task import Task


class EndlessCopyState(NamedTuple):
    """Where each of B copies is in its episode."""

    keys: Bits
    """[B] the episode's key: the symbols are functions of it."""
    round: npt.NDArray[np.int64]
    """[B] from 1: how many symbols there are; `max_length + 1` after the last."""
    step: npt.NDArray[np.int64]
    """[B] in the round, from 0; the first query is at `1 + delay`."""
    skip: npt.NDArray[np.int64]
    """[B] steps of the first gap to leave out; 0 except in the first episodes of a staggered vector env."""
    answer: Symbols
    right: Bools


@dataclass(frozen=True)
class EndlessCopyRules(SymbolRules[EndlessCopyState]):
    """The dynamics of `ctrl/EndlessCopy-v0` for a batch of copies."""

    delay: int = 4
    """Blank steps between a new symbol and the first query, at least 0."""
    num_symbols: int = 4
    """How many symbols there are, at least 2; also the number of actions."""
    max_length: int = 16
    """Symbols after which an episode is cut off, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("delay", self.delay, at_least=0)
        checked_integer("num_symbols", self.num_symbols, at_least=2)
        checked_integer("max_length", self.max_length, at_least=1)

    @property
    def scores(self) -> Scores:
        """Right answers in a row. Naming always the same symbol is better than drawing: what was right stays right.

        So in round r the r - 1 old symbols are right again if they all were that symbol, and then the new one may be.
        """
        answers = self.max_length * (self.max_length + 1) // 2
        chance = 1 / self.num_symbols
        same = sum((r - 1) * chance ** (r - 1) + chance**r for r in range(1, self.max_length + 1))
        return Scores(random=until_first_mistake(chance, answers), memoryless=same, perfect=answers)

    @property
    def memory_steps(self) -> int:
        """From the first query of the last round to the first symbol."""
        return self._rounds_end(self.max_length - 1) + 1 + self.delay

    @property
    def max_episode_steps(self) -> int:
        """All rounds."""
        return self._rounds_end(self.max_length)

    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> EndlessCopyState:
        """Start episodes; a phase p leaves out p · delay steps of the first gap."""
        zero = np.zeros(len(keys), dtype=np.int64)
        skip = (phase * self.delay).astype(np.int64)
        return EndlessCopyState(keys.copy(), zero + 1, zero, skip, np.full_like(zero, NO_ANSWER), zero > 0)

    def observe(self, state: EndlessCopyState) -> Observations:
        """Show the new symbol, a query or nothing; nothing after the end."""
        running = ~self._ended(state)
        is_cue = running & (state.step == 0)
        symbols = self._symbol(state.keys, state.round - 1)
        return self.show_symbols(symbols, is_cue, cue=is_cue, answer=running & (state.step > self.delay))

    def advance(self, state: EndlessCopyState, actions: Actions) -> Outcome:
        """Count one step; after the gap each action must name a symbol."""
        is_query = state.step > self.delay
        right = is_query & (actions == self.wanted(state))
        complete = right & (state.step == self.delay + state.round)
        first = (state.step == 0) & (state.round == 1)
        after = state._replace(
            round=state.round + complete,
            step=np.where(complete, 0, state.step + 1 + state.skip * first),
            answer=np.where(is_query, actions, NO_ANSWER),
            right=right,
        )
        truncated = complete & (state.round == self.max_length)
        return Outcome(after, right.astype(np.float64), is_query & ~right, truncated, truncated.copy())

    def wanted(self, state: EndlessCopyState) -> Symbols:
        """Return the symbol that is asked for, or will be first; after a mistake the one that was asked for."""
        asked = state.step - 1 - self.delay - self._mistaken(state)
        return self._symbol(state.keys, np.maximum(asked, 0))

    def progress(self, state: EndlessCopyState) -> tuple[Symbols, int]:
        """Return the step of the episode."""
        complete = state.round - 1
        return complete * (1 + self.delay) + complete * state.round // 2 + state.step, self.max_episode_steps

    def _rounds_end(self, rounds: int) -> int:
        """Return the steps that the first `rounds` rounds take."""
        return rounds * (1 + self.delay) + rounds * (rounds + 1) // 2

    def _symbol(self, keys: Bits, index: npt.NDArray[np.int64]) -> Symbols:
        return integers_below(derive(keys, index), self.num_symbols)

    def _mistaken(self, state: EndlessCopyState) -> Bools:
        mistaken: Bools = (state.answer != NO_ANSWER) & ~state.right
        return mistaken

    def _ended(self, state: EndlessCopyState) -> Bools:
        return self._mistaken(state) | (state.round > self.max_length)


class EndlessCopyEnv(TaskEnv[EndlessCopyState]):
    """One copy of `ctrl/EndlessCopy-v0`; the fields of `EndlessCopyRules` are its arguments."""

    rules_class = EndlessCopyRules


class EndlessCopyVectorEnv(TaskVectorEnv[EndlessCopyState]):
    """Native vector env of `ctrl/EndlessCopy-v0`; the fields of `EndlessCopyRules` are its arguments."""

    rules_class = EndlessCopyRules


TASK = Task(
    id="ctrl/EndlessCopy-v0",
    summary="repeat a sequence that grows by one symbol a round, until the first mistake",
    env=EndlessCopyEnv,
    vector_env=EndlessCopyVectorEnv,
    agents={"random": RandomAgent, "memoryless": Guess, "perfect": AllCues},
)
