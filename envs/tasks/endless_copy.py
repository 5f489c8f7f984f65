"""`ctrl/EndlessCopy-v0`: a sequence that grows by one symbol a round and must be repeated, until the first mistake.

Round r (from 1) shows one new symbol, then `delay` blank steps, then asks for all r symbols in order. Each right answer
brings 1. A wrong answer ends the episode; the last answer of round `max_length` cuts it off (truncated). So the first
symbol must be remembered for the whole episode, while the number of symbols grows. This is the game "Simon", in the
form of the endless tasks of Pleines et al. 2023 (https://arxiv.org/abs/2309.17207). Observations are as in
`ctrl/CopySequence-v0`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ctrl.envs.arguments import checked_integer
from ctrl.envs.base import Observations, TaskEnv, TaskVectorEnv
from ctrl.envs.randomness import Bits, derive, integers_below
from ctrl.envs.scores import Scores, until_first_mistake
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.task import Task
from ctrl.envs.tasks.endless import EndlessRules, EndlessState, Plan, Rounds
from ctrl.envs.tasks.symbols import AllCues, Guess, Symbols


@dataclass(frozen=True)
class EndlessCopyRules(EndlessRules):
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
        answers, chance = self.queries(self.max_length), 1 / self.num_symbols
        same = sum((r - 1) * chance ** (r - 1) + chance**r for r in range(1, self.max_length + 1))
        return Scores(random=until_first_mistake(chance, answers), memoryless=same, perfect=answers)

    @property
    def memory_steps(self) -> int:
        """Number of steps from the first symbol to the first query of the last round."""
        return self.steps_of(self.max_length - 1) + self.plan.first_query

    @property
    def plan(self) -> Plan:
        """Rounds of a new symbol, the delay and the queries."""
        return Plan(self.max_length, first_query=1 + self.delay, idle=self.delay)

    def queries(self, rounds: Rounds) -> Rounds:
        """Return the number of queries in the first `rounds` rounds, which is 1 + 2 + … + rounds."""
        return rounds * (rounds + 1) // 2

    def observe(self, state: EndlessState) -> Observations:
        """Show the new symbol, a query or nothing; nothing after the end."""
        running = self.running(state)
        is_cue = running & (state.step == 0)
        symbols = self._symbol(state.keys, state.round)
        return self.show_symbols(symbols, is_cue, cue=is_cue, answer=running & (state.step >= self.plan.first_query))

    def wanted(self, state: EndlessState) -> Symbols:
        """Return the symbol of the current query.

        Before the queries of a round it is the first symbol, after a mistake the symbol that was asked for.
        """
        asked = state.step - self.plan.first_query - self.mistaken(state)
        return self._symbol(state.keys, np.maximum(asked, 0))

    def _symbol(self, keys: Bits, index: npt.NDArray[np.int64]) -> Symbols:
        return integers_below(derive(keys, index), self.num_symbols)


class EndlessCopyEnv(TaskEnv[EndlessState]):
    """One copy of `ctrl/EndlessCopy-v0`; the fields of `EndlessCopyRules` are its arguments."""

    rules_class = EndlessCopyRules


class EndlessCopyVectorEnv(TaskVectorEnv[EndlessState]):
    """Native vector env of `ctrl/EndlessCopy-v0`; the fields of `EndlessCopyRules` are its arguments."""

    rules_class = EndlessCopyRules


TASK = Task(
    id="ctrl/EndlessCopy-v0",
    summary="repeat a sequence that grows by one symbol a round, until the first mistake",
    env=EndlessCopyEnv,
    vector_env=EndlessCopyVectorEnv,
    agents={"random": RandomAgent, "memoryless": Guess, "perfect": AllCues},
)
