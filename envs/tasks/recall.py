"""`ctrl/Recall-v0`: a cue at step 0, distracting noise, and a query at the end.

An episode has `length + 1` decisions. The cue is seen at step 0, the query `length` steps later. Only the action at the
query counts: the reward is 1 if it names the cue, else 0. So one decision depends on exactly one observation, `length`
steps back; nothing else in the episode helps. The task is the copy-one-symbol case of the tasks in Hochreiter &
Schmidhuber 1997, and the first test that a memory must pass.

Step                   one-hot symbol                                         "cue" flag   "answer" flag
0                      the cue                                                1            0
1 … length - 1         a noise symbol with probability `noise`, else 0        0            0
length                 0                                                      0            1
after the last action  0                                                      0            0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from ctrl.envs.arguments import checked_fraction, checked_integer
from ctrl.envs.base import Actions, Bools, Observations, Outcome, TaskEnv, TaskVectorEnv
from ctrl.envs.randomness import Bits, derive, happens, integers_below
from ctrl.envs.scores import Scores
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.task import Task
from ctrl.envs.tasks.symbols import NO_ANSWER, Guess, LatestCue, SymbolRules, Symbols


class RecallState(NamedTuple):
    """State of B copies, each at its own step of its own episode."""

    keys: Bits
    """[B] the episode's key: cue and noise are functions of it."""
    step: npt.NDArray[np.int64]
    """[B] step of the episode, from 0; `length` at the query, `length + 1` after the end."""
    cue: Symbols
    """[B] the episode's cue."""
    skip: npt.NDArray[np.int64]
    """[B] steps to leave out after the cue; 0 except in the first episodes of a staggered vector env."""
    answer: Symbols
    right: Bools


@dataclass(frozen=True)
class RecallRules(SymbolRules[RecallState]):
    """The dynamics of `ctrl/Recall-v0` for a batch of copies."""

    length: int = 64
    """Steps from the cue to the query, at least 1."""
    num_cues: int = 4
    """Number of different cues, at least 2; also the number of actions."""
    noise: float = 0.5
    """Probability of a noise symbol at each step between cue and query."""

    return_is_success: ClassVar[bool] = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_integer("length", self.length, at_least=1)
        checked_integer("num_cues", self.num_cues, at_least=2)
        checked_fraction("noise", self.noise)

    @property
    def scores(self) -> Scores:
        """Probability of a right answer. Without memory the answer is a guess among `num_cues`."""
        return Scores(random=1 / self.num_cues, memoryless=1 / self.num_cues, perfect=1.0)

    @property
    def memory_steps(self) -> int:
        """Number of steps from the cue to the query."""
        return self.length

    @property
    def max_episode_steps(self) -> int:
        """Number of steps in every episode."""
        return self.length + 1

    def begin(self, keys: Bits, phase: npt.NDArray[np.float64]) -> RecallState:
        """Start episodes; a phase p leaves out p · length steps after the cue."""
        step = np.zeros(len(keys), dtype=np.int64)
        cue = self.draw(derive(keys, step))
        skip = (phase * self.length).astype(np.int64)
        return RecallState(keys.copy(), step, cue, skip, np.full_like(step, NO_ANSWER), step > 0)

    def observe(self, state: RecallState) -> Observations:
        """Show the cue, noise, the query or nothing."""
        bits = derive(state.keys, state.step)
        is_cue, is_query = state.step == 0, state.step == self.length
        shown = is_cue | (happens(bits, self.noise) & (state.step < self.length))
        return self.show_symbols(self.draw(bits), shown, cue=is_cue, answer=is_query)

    def advance(self, state: RecallState, actions: Actions) -> Outcome:
        """Take one step; the action at the query ends the episode."""
        terminated = state.step == self.length
        success = terminated & (actions == state.cue)
        step = state.step + 1 + state.skip * (state.step == 0)
        answer = np.where(terminated, actions, NO_ANSWER)
        after = state._replace(step=step, answer=answer, right=success)
        never = np.zeros_like(terminated)
        return Outcome(after, success.astype(np.float64), terminated, never, success)

    def draw(self, bits: Bits) -> Symbols:
        """Draw a cue or a noise symbol."""
        return integers_below(bits, self.num_cues)

    def wanted(self, state: RecallState) -> Symbols:
        """Return the cue."""
        return state.cue

    def progress(self, state: RecallState) -> tuple[Symbols, int]:
        """Return the step of the episode, and the step of the query."""
        return np.minimum(state.step, self.length), self.length


class RecallEnv(TaskEnv[RecallState]):
    """One copy of `ctrl/Recall-v0`; the fields of `RecallRules` are its arguments."""

    rules_class = RecallRules


class RecallVectorEnv(TaskVectorEnv[RecallState]):
    """Native vector env of `ctrl/Recall-v0`; the fields of `RecallRules` are its arguments."""

    rules_class = RecallRules


TASK = Task(
    id="ctrl/Recall-v0",
    summary="name a cue that was shown once, `length` steps ago, through noise",
    env=RecallEnv,
    vector_env=RecallVectorEnv,
    agents={"random": RandomAgent, "memoryless": Guess, "perfect": LatestCue},
)
