"""`ctrl/EndlessCopy-v0`: a sequence that grows by one symbol a round and must be repeated, until the first mistake.

Round r (from 1) shows one new symbol, then `delay` blank steps, then asks for all r symbols in order. Each right answer
brings 1. A wrong answer ends the episode; the last answer of round `max_length` cuts it off (truncated). So the first
symbol must be remembered for the whole episode, while the number of symbols grows. This is the game "Simon", in the
form of the endless tasks of Pleines et al. 2023 (https://arxiv.org/abs/2309.17207). Observations are as in
`ctrl/CopySequence-v0`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ctrl.envs.arguments import checked_integer
from ctrl.envs.base import Actions, Bools, Observations, Outcome, TaskEnv, TaskVectorEnv
from ctrl.envs.randomness import Bits, derive, integers_below
from ctrl.envs.scores import Scores, until_first_mistake
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.task import Task
from ctrl.envs.tasks.symbols import NO_ANSWER, AllCues, Guess, SymbolRules, Symbols


class EndlessCopyState(NamedTuple):
    """State of B copies, each at its own step of its own episode."""

    keys: Bits
    """[B] the episode's key: the symbols are functions of it."""
    round: npt.NDArray[np.int64]
    """[B] index of the round, from 1; also its number of symbols. `max_length + 1` after the last round."""
    step: npt.NDArray[np.int64]
    """[B] step of the round, from 0; the first query is at `1 + delay`."""
    skip: npt.NDArray[np.int64]
    """[B] steps of the first delay to leave out; 0 except in the first episodes of a staggered vector env."""
    answer: Symbols
    right: Bools


@dataclass(frozen=True)
class EndlessCopyRules(SymbolRules[EndlessCopyState]):
    """The dynamics of `ctrl/EndlessCopy-v0` for a batch of copies."""

    delay: int = 4
    """Blank steps between a new symbol and the first query, at least 0."""
    num_symbols: int = 4
    """Number of different symbols, at least 2; also the number of actions."""
    max_length: int = 16
    """Number of symbols, and of rounds, after which an episode is cut off, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("delay", self.delay, at_least=0)
        checked_integer("num_symbols", self.num_symbols, at_least=2)
        checked_integer("max_length", self.max_length, at_least=1)

    @property
    def scores(self) -> Scores:
        """Expected number of right answers before the first mistake.

        The memoryless agent always names the same symbol. This is better than drawing a symbol at random, because an
        answer that was right in one round is right again in the next. In round r the agent gets the r - 1 old symbols
        right if all of them are its symbol, and then the new one with probability 1 / num_symbols.
        """
        answers = self.max_length * (self.max_length + 1) // 2
        chance = 1 / self.num_symbols
        same = sum((r - 1) * chance ** (r - 1) + chance**r for r in range(1, self.max_length + 1))
        return Scores(random=until_first_mistake(chance, answers), memoryless=same, perfect=answers)

    @property
    def memory_steps(self) -> int:
        """Number of steps from the first symbol to the first query of the last round."""
        return self._rounds_end(self.max_length - 1) + 1 + self.delay

    @property
    def max_episode_steps(self) -> int:
        """Number of steps in all rounds."""
        return self._rounds_end(self.max_length)

    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> EndlessCopyState:
        """Start episodes; a phase p shortens the first delay by p · delay steps."""
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
        """Take one step; after the delay each action must name a symbol."""
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
        """Return the symbol of the current query.

        Before the queries of a round it is the first symbol, after a mistake the symbol that was asked for.
        """
        asked = state.step - 1 - self.delay - self._mistaken(state)
        return self._symbol(state.keys, np.maximum(asked, 0))

    def progress(self, state: EndlessCopyState) -> tuple[Symbols, int]:
        """Return the step of the episode, and the length of the longest episode."""
        complete = state.round - 1
        return complete * (1 + self.delay) + complete * state.round // 2 + state.step, self.max_episode_steps

    def _rounds_end(self, rounds: int) -> int:
        """Return the number of steps in the first `rounds` rounds."""
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
