"""Rounds until the first mistake: the dynamics that `ctrl/EndlessRecall-v0` and `ctrl/EndlessCopy-v0` share.

A round shows something to remember at its first step, and its last steps are queries. Each right answer brings 1. A
wrong answer ends the episode; the last answer of the last round cuts it off (truncated).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ctrl.envs.base import Actions, Bools, Outcome
from ctrl.envs.randomness import Bits
from ctrl.envs.tasks.symbols import NO_ANSWER, SymbolRules, Symbols

Rounds = TypeVar("Rounds", int, npt.NDArray[np.int64])


class EndlessState(NamedTuple):
    """State of B copies, each at its own step of its own episode."""

    keys: Bits
    """[B] the episode's key: all symbols are functions of it."""
    round: npt.NDArray[np.int64]
    """[B] number of complete rounds."""
    step: npt.NDArray[np.int64]
    """[B] step of the round, from 0."""
    skip: npt.NDArray[np.int64]
    """[B] steps to leave out after the first one; 0 except in the first episodes of a staggered vector env."""
    answer: Symbols
    right: Bools


class Plan(NamedTuple):
    """Numbers of rounds and steps that the dynamics depend on."""

    rounds: int
    """Rounds after which an episode is cut off."""
    first_query: int
    """Step of a round, from 0, with its first query."""
    idle: int
    """Steps that a phase of 1 would leave out of the first round."""


class EndlessRules(SymbolRules[EndlessState]):
    """Rules of a task that goes on, round after round, until the first mistake."""

    @property
    @abstractmethod
    def plan(self) -> Plan:
        """Numbers of rounds and steps."""

    @abstractmethod
    def queries(self, rounds: Rounds) -> Rounds:
        """Return the number of queries in the first `rounds` rounds."""

    @property
    def max_episode_steps(self) -> int:
        """Number of steps in all rounds."""
        return self.steps_of(self.plan.rounds)

    def steps_of(self, rounds: Rounds) -> Rounds:
        """Return the number of steps in the first `rounds` rounds."""
        return rounds * self.plan.first_query + self.queries(rounds)

    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> EndlessState:
        """Start episodes; a phase p leaves out p · plan.idle steps after the first one."""
        zero = np.zeros(len(keys), dtype=np.int64)
        skip = (phase * self.plan.idle).astype(np.int64)
        return EndlessState(keys.copy(), zero, zero.copy(), skip, np.full_like(zero, NO_ANSWER), zero > 0)

    def advance(self, state: EndlessState, actions: Actions) -> Outcome:
        """Take one step; an answer goes on with the round, begins the next one, or ends the episode."""
        is_query = state.step >= self.plan.first_query
        right = is_query & (actions == self.wanted(state))
        last = self.steps_of(state.round + 1) - self.steps_of(state.round) - 1
        complete = right & (state.step == last)
        first = (state.step == 0) & (state.round == 0)
        after = state._replace(
            round=state.round + complete,
            step=np.where(complete, 0, state.step + 1 + state.skip * first),
            answer=np.where(is_query, actions, NO_ANSWER),
            right=right,
        )
        truncated = complete & (after.round == self.plan.rounds)
        return Outcome(after, right.astype(np.float64), is_query & ~right, truncated, truncated.copy())

    def progress(self, state: EndlessState) -> tuple[Symbols, int]:
        """Return the step of the episode, and the length of the longest episode."""
        return self.steps_of(state.round) + state.step, self.max_episode_steps

    def mistaken(self, state: EndlessState) -> Bools:
        """Return True where the last answer was wrong, [B]."""
        mistaken: Bools = (state.answer != NO_ANSWER) & ~state.right
        return mistaken

    def running(self, state: EndlessState) -> Bools:
        """Return True where the episode has not ended, [B]."""
        return ~self.mistaken(state) & (state.round < self.plan.rounds)
