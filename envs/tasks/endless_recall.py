"""`ctrl/EndlessRecall-v0`: `ctrl/Recall-v0` round after round, until the first mistake.

A round has `length + 1` decisions: a cue at its first step, noise, and a query at its last step. A right answer brings
1 and starts the next round with a new cue. A wrong answer ends the episode; `max_rounds` right ones cut it off
(truncated). So each cue must replace the previous one in memory. The return is the number of right answers in a row.
Observations are as in `ctrl/Recall-v0`; they don't show the number of the round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ctrl.envs.arguments import checked_fraction, checked_integer
from ctrl.envs.base import Actions, Bools, Observations, Outcome, TaskEnv, TaskVectorEnv
from ctrl.envs.randomness import Bits, derive, happens, integers_below
from ctrl.envs.scores import Scores, until_first_mistake
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.task import Task
from ctrl.envs.tasks.symbols import NO_ANSWER, Guess, LatestCue, SymbolRules, Symbols


class EndlessRecallState(NamedTuple):
    """State of B copies, each at its own step of its own episode."""

    keys: Bits
    """[B] the episode's key: cues and noise are functions of it."""
    round: npt.NDArray[np.int64]
    """[B] number of right answers so far."""
    step: npt.NDArray[np.int64]
    """[B] step of the round, from 0; `length` at the query, `length + 1` after a mistake."""
    skip: npt.NDArray[np.int64]
    """[B] steps to leave out after the first cue; 0 except in the first episodes of a staggered vector env."""
    answer: Symbols
    right: Bools


@dataclass(frozen=True)
class EndlessRecallRules(SymbolRules[EndlessRecallState]):
    """The dynamics of `ctrl/EndlessRecall-v0` for a batch of copies."""

    length: int = 32
    """Steps from a cue to its query, at least 1."""
    num_cues: int = 4
    """Number of different cues, at least 2; also the number of actions."""
    noise: float = 0.5
    """Probability of a noise symbol at each step between cue and query."""
    max_rounds: int = 20
    """Number of right answers after which an episode is cut off, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("length", self.length, at_least=1)
        checked_integer("num_cues", self.num_cues, at_least=2)
        checked_fraction("noise", self.noise)
        checked_integer("max_rounds", self.max_rounds, at_least=1)

    @property
    def num_symbols(self) -> int:  # type: ignore[override]
        """Number of symbols, one for each cue."""
        return self.num_cues

    @property
    def scores(self) -> Scores:
        """Expected number of right answers in a row. Without memory each is a guess among `num_cues`."""
        chance = until_first_mistake(1 / self.num_cues, self.max_rounds)
        return Scores(random=chance, memoryless=chance, perfect=self.max_rounds)

    @property
    def memory_steps(self) -> int:
        """Number of steps from a cue to its query."""
        return self.length

    @property
    def max_episode_steps(self) -> int:
        """Number of steps in all rounds."""
        return self.max_rounds * (self.length + 1)

    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> EndlessRecallState:
        """Start episodes; a phase p leaves out p · length steps after the first cue."""
        zero = np.zeros(len(keys), dtype=np.int64)
        skip = (phase * self.length).astype(np.int64)
        return EndlessRecallState(keys.copy(), zero, zero.copy(), skip, np.full_like(zero, NO_ANSWER), zero > 0)

    def observe(self, state: EndlessRecallState) -> Observations:
        """Show the cue, noise, the query or nothing; nothing after the end."""
        bits = derive(state.keys, self._total_step(state))
        running = ~self._ended(state)
        is_cue, is_query = running & (state.step == 0), running & (state.step == self.length)
        shown = is_cue | (happens(bits, self.noise) & running & ~is_query)
        return self.show_symbols(integers_below(bits, self.num_cues), shown, cue=is_cue, answer=is_query)

    def advance(self, state: EndlessRecallState, actions: Actions) -> Outcome:
        """Take one step; the action at a query ends the round or the episode."""
        is_query = state.step == self.length
        right = is_query & (actions == self.wanted(state))
        first = (state.step == 0) & (state.round == 0)
        after = state._replace(
            round=state.round + right,
            step=np.where(right, 0, state.step + 1 + state.skip * first),
            answer=np.where(is_query, actions, NO_ANSWER),
            right=right,
        )
        truncated = right & (after.round == self.max_rounds)
        return Outcome(after, right.astype(np.float64), is_query & ~right, truncated, truncated.copy())

    def wanted(self, state: EndlessRecallState) -> Symbols:
        """Return the cue of the current round; after the last round, the last cue."""
        cue_step = np.minimum(state.round, self.max_rounds - 1) * (self.length + 1)
        return integers_below(derive(state.keys, cue_step), self.num_cues)

    def progress(self, state: EndlessRecallState) -> tuple[Symbols, int]:
        """Return the step of the episode, and the length of the longest episode."""
        return self._total_step(state), self.max_episode_steps

    def _total_step(self, state: EndlessRecallState) -> npt.NDArray[np.int64]:
        return state.round * (self.length + 1) + state.step

    def _ended(self, state: EndlessRecallState) -> Bools:
        """Return True where the last answer was a mistake or the last one of the last round, [B]."""
        answered = state.answer != NO_ANSWER
        ended: Bools = (answered & ~state.right) | (state.round == self.max_rounds)
        return ended


class EndlessRecallEnv(TaskEnv[EndlessRecallState]):
    """One copy of `ctrl/EndlessRecall-v0`; the fields of `EndlessRecallRules` are its arguments."""

    rules_class = EndlessRecallRules


class EndlessRecallVectorEnv(TaskVectorEnv[EndlessRecallState]):
    """Native vector env of `ctrl/EndlessRecall-v0`; the fields of `EndlessRecallRules` are its arguments."""

    rules_class = EndlessRecallRules


TASK = Task(
    id="ctrl/EndlessRecall-v0",
    summary="Recall round after round until the first mistake: each cue replaces the one before",
    env=EndlessRecallEnv,
    vector_env=EndlessRecallVectorEnv,
    agents={"random": RandomAgent, "memoryless": Guess, "perfect": LatestCue},
)
