"""`ctrl/EndlessRecall-v0`: `ctrl/Recall-v0` round after round, until the first mistake.

A round has `length + 1` decisions: a cue at its first step, noise, and a query at its last step. A right answer brings
1 and starts the next round with a new cue. A wrong answer ends the episode; `max_rounds` right ones cut it off
(truncated). So each cue must replace the previous one in memory. The return is the number of right answers in a row.
Observations are as in `ctrl/Recall-v0`; they don't show the number of the round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctrl.envs.arguments import checked_fraction, checked_integer
from ctrl.envs.base import Observations, TaskEnv, TaskVectorEnv
from ctrl.envs.randomness import derive, happens, integers_below
from ctrl.envs.scores import Scores, until_first_mistake
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.task import Task
from ctrl.envs.tasks.endless import EndlessRules, EndlessState, Plan, Rounds
from ctrl.envs.tasks.symbols import Guess, LatestCue, Symbols


@dataclass(frozen=True)
class EndlessRecallRules(EndlessRules):
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
    def scores(self) -> Scores:
        """Expected number of right answers in a row. Without memory each is a guess among `num_cues`."""
        chance = until_first_mistake(1 / self.num_cues, self.max_rounds)
        return Scores(random=chance, memoryless=chance, perfect=self.max_rounds)

    @property
    def memory_steps(self) -> int:
        """Number of steps from a cue to its query."""
        return self.length

    @property
    def plan(self) -> Plan:
        """Rounds of `length` steps and a query."""
        return Plan(self.max_rounds, first_query=self.length, idle=self.length)

    def queries(self, rounds: Rounds) -> Rounds:
        """Return `rounds`: each round has one query."""
        return rounds

    def observe(self, state: EndlessState) -> Observations:
        """Show the cue, noise, the query or nothing; nothing after the end."""
        bits = derive(state.keys, self.steps_of(state.round) + state.step)
        running = self.running(state)
        is_cue, is_query = running & (state.step == 0), running & (state.step == self.length)
        shown = is_cue | (happens(bits, self.noise) & running & ~is_query)
        return self.show_symbols(integers_below(bits, self.num_cues), shown, cue=is_cue, answer=is_query)

    def wanted(self, state: EndlessState) -> Symbols:
        """Return the cue of the current round; after the last round, the last cue."""
        cue_step = self.steps_of(np.minimum(state.round, self.max_rounds - 1))
        return integers_below(derive(state.keys, cue_step), self.num_cues)


class EndlessRecallEnv(TaskEnv[EndlessState]):
    """One copy of `ctrl/EndlessRecall-v0`; the fields of `EndlessRecallRules` are its arguments."""

    rules_class = EndlessRecallRules


class EndlessRecallVectorEnv(TaskVectorEnv[EndlessState]):
    """Native vector env of `ctrl/EndlessRecall-v0`; the fields of `EndlessRecallRules` are its arguments."""

    rules_class = EndlessRecallRules


TASK = Task(
    id="ctrl/EndlessRecall-v0",
    summary="Recall round after round until the first mistake: each cue replaces the one before",
    env=EndlessRecallEnv,
    vector_env=EndlessRecallVectorEnv,
    agents={"random": RandomAgent, "memoryless": Guess, "perfect": LatestCue},
)
