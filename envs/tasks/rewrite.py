"""`ctrl/Rewrite-v0`: an endless stream in which the cue changes at random times and the latest one counts.

The first step shows a cue. Each later step shows a new cue with probability `change`, a query with probability `query`,
and otherwise noise or nothing. A right answer at a query brings 1. The episode goes on after any answer, until the time
limit cuts it off. Old cues look like the valid one, so a memory must know which cue is the newest, or forget the
others. LSTMs forget by their gates; plain attention has been found to fail (Shchendrigin et al. 2026,
https://arxiv.org/abs/2601.15086).

Event      one-hot symbol                                      "cue" flag   "answer" flag
cue        the new cue                                         1            0
query      0                                                   0            1
otherwise  a noise symbol with probability `noise`, else 0     0            0
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ctrl.envs.arguments import checked_fraction, checked_integer
from ctrl.envs.base import Actions, Bools, Observations, Outcome, TaskEnv, TaskVectorEnv
from ctrl.envs.randomness import Bits, derive, integers_below, uniform
from ctrl.envs.scores import Scores
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.task import Task
from ctrl.envs.tasks.symbols import NO_ANSWER, Guess, LatestCue, SymbolRules, Symbols


class RewriteState(NamedTuple):
    """State of B copies, each at its own step of its own episode."""

    keys: Bits
    """[B] the episode's key: events and symbols are functions of it."""
    step: npt.NDArray[np.int64]
    """[B] step of the episode, from 0; `limit` after the end."""
    limit: npt.NDArray[np.int64]
    """[B] the time limit: `steps` except in the first episodes of a staggered vector env."""
    cue: Symbols
    """[B] the latest cue."""
    mistakes: npt.NDArray[np.int64]
    """[B] number of wrong answers so far."""
    answer: Symbols
    right: Bools


class _Events(NamedTuple):
    """Content of a step, each field [B]."""

    symbol: Symbols
    is_cue: Bools
    is_query: Bools
    is_noise: Bools


@dataclass(frozen=True)
class RewriteRules(SymbolRules[RewriteState]):
    """The dynamics of `ctrl/Rewrite-v0` for a batch of copies."""

    steps: int = 512
    """Time limit in steps, at least 2."""
    num_cues: int = 4
    """Number of different cues, at least 2; also the number of actions."""
    change: float = 0.05
    """Probability of a new cue at each step, above 0."""
    query: float = 0.1
    """Probability of a query at each step, above 0; `change + query` is at most 1."""
    noise: float = 0.5
    """Probability of a noise symbol at each step without a cue or a query."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("steps", self.steps, at_least=2)
        checked_integer("num_cues", self.num_cues, at_least=2)
        for name in ("change", "query"):
            if checked_fraction(name, getattr(self, name)) == 0:
                raise ValueError(f"{name} must be above 0, got 0.")
        if self.change + self.query > 1:
            raise ValueError(f"change + query must be at most 1, got {self.change} + {self.query}.")
        checked_fraction("noise", self.noise)

    @property
    def scores(self) -> Scores:
        """Expected number of right answers. A memory can answer every query; without it each answer is a guess."""
        queries = self.query * (self.steps - 1)
        return Scores(random=queries / self.num_cues, memoryless=queries / self.num_cues, perfect=queries)

    @property
    def memory_steps(self) -> int:
        """Number of steps from the latest cue to a query, at least in 99 of 100 cases; below the time limit."""
        if self.change == 1:
            return 1
        return math.ceil(min(math.log(0.01) / math.log1p(-self.change), self.steps - 1))

    @property
    def max_episode_steps(self) -> int:
        """Time limit in steps."""
        return self.steps

    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> RewriteState:
        """Start episodes; a phase p cuts them off p · (steps - 1) steps early."""
        zero = np.zeros(len(keys), dtype=np.int64)
        limit = self.steps - (phase * (self.steps - 1)).astype(np.int64)
        cue = self._events(keys, zero).symbol
        return RewriteState(keys.copy(), zero, limit, cue, zero.copy(), np.full_like(zero, NO_ANSWER), zero > 0)

    def observe(self, state: RewriteState) -> Observations:
        """Show the step's event."""
        events = self._events(state.keys, state.step)
        shown = events.is_cue | events.is_noise
        return self.show_symbols(events.symbol, shown, cue=events.is_cue, answer=events.is_query)

    def advance(self, state: RewriteState, actions: Actions) -> Outcome:
        """Judge the action at a query, take one step, and store the new cue if there is one."""
        is_query = self._events(state.keys, state.step).is_query
        right = is_query & (actions == state.cue)
        step = state.step + 1
        events = self._events(state.keys, step)
        after = state._replace(
            step=step,
            cue=np.where(events.is_cue, events.symbol, state.cue),
            mistakes=state.mistakes + (is_query & ~right),
            answer=np.where(is_query, actions, NO_ANSWER),
            right=right,
        )
        truncated = step >= state.limit
        never = np.zeros_like(truncated)
        return Outcome(after, right.astype(np.float64), never, truncated, truncated & (after.mistakes == 0))

    def wanted(self, state: RewriteState) -> Symbols:
        """Return the latest cue."""
        return state.cue

    def progress(self, state: RewriteState) -> tuple[Symbols, int]:
        """Return the step of the episode, and the time limit."""
        return state.step, self.steps

    def _events(self, keys: Bits, step: npt.NDArray[np.int64]) -> _Events:
        """Draw the content of `step` [B]."""
        bits = derive(keys, step)
        kind = uniform(derive(bits, np.zeros_like(step)))
        is_cue = (kind < self.change) | (step == 0)
        is_query = ~is_cue & (kind < self.change + self.query)
        noise_from = 1 - self.noise * (1 - self.change - self.query)
        is_noise = ~is_cue & ~is_query & (kind >= noise_from)
        return _Events(integers_below(bits, self.num_cues), is_cue, is_query, is_noise)


class RewriteEnv(TaskEnv[RewriteState]):
    """One copy of `ctrl/Rewrite-v0`; the fields of `RewriteRules` are its arguments."""

    rules_class = RewriteRules


class RewriteVectorEnv(TaskVectorEnv[RewriteState]):
    """Native vector env of `ctrl/Rewrite-v0`; the fields of `RewriteRules` are its arguments."""

    rules_class = RewriteRules


TASK = Task(
    id="ctrl/Rewrite-v0",
    summary="name the latest cue whenever asked; cues and queries come at random times",
    env=RewriteEnv,
    vector_env=RewriteVectorEnv,
    agents={"random": RandomAgent, "memoryless": Guess, "perfect": LatestCue},
)
