"""`ctrl/RareCue-v0`: `ctrl/Recall-v0` with many cues, most of which are rare.

Cue k (from 0) has a probability in proportion to 1 / (k + 1)^exponent, as words have by Zipf's law. Noise symbols have
the same probabilities, so a rare symbol is also rare as noise. The Compressive Transformer improves rare words most,
and nobody knows why (https://arxiv.org/abs/1911.05507, section 5.4). This task tests if the same holds for an agent.
Success is therefore reported by the cue's frequency: an episode's last info has "group", an index into
`RareCueRules.group_names`. Each group is an octave of ranks. With exponent 1, all groups are about equally likely.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ctrl.envs.arguments import checked_number
from ctrl.envs.base import TaskEnv, TaskVectorEnv
from ctrl.envs.randomness import Bits, derive, uniform
from ctrl.envs.scores import Scores
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.task import Task
from ctrl.envs.tasks.recall import RecallRules, RecallState
from ctrl.envs.tasks.symbols import Guess, LatestCue, Symbols


@dataclass(frozen=True)
class RareCueRules(RecallRules):
    """The dynamics of `ctrl/RareCue-v0` for a batch of copies: those of Recall with other symbol probabilities."""

    length: int = 32
    """Steps from the cue to the query, at least 1."""
    num_cues: int = 32
    """Number of different cues, at least 2; also the number of actions."""
    exponent: float = 1.0
    """Exponent by which the probability falls with the rank, at least 0; with 0 all cues are equally likely."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checked_number("exponent", self.exponent, at_least=0)

    @cached_property
    def probabilities(self) -> npt.NDArray[np.float64]:
        """Probability of each cue, largest first, [num_cues]."""
        weights = (1.0 + np.arange(self.num_cues)) ** -self.exponent
        return np.asarray(weights / weights.sum())

    @cached_property
    def group_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the groups, each an octave of ranks. Ranks count from 1, as is usual for words."""
        firsts = [1 << octave for octave in range(self.num_cues.bit_length())]
        lasts = [min(2 * first - 1, self.num_cues) for first in firsts]
        return tuple(
            f"rank {first}" if first == last else f"ranks {first}–{last}"
            for first, last in zip(firsts, lasts, strict=True)
        )

    @property
    def scores(self) -> Scores:
        """Probability of a right answer. Without memory the most frequent cue is the best guess."""
        return Scores(random=1 / self.num_cues, memoryless=float(self.probabilities[0]), perfect=1.0)

    def draw(self, bits: Bits) -> Symbols:
        """Draw a cue or a noise symbol, each with its probability."""
        fresh = derive(bits, np.zeros(1, dtype=np.int64))  # `bits` itself decides about noise
        return np.searchsorted(self._upper_bounds, uniform(fresh), side="right")

    def group(self, state: RecallState) -> npt.NDArray[np.int64]:
        """Return the octave of each cue's rank, [B]."""
        _, exponents = np.frexp(state.cue + 1)  # cue + 1 is in [2^(exponent - 1), 2^exponent)
        return exponents.astype(np.int64) - 1

    @cached_property
    def _upper_bounds(self) -> npt.NDArray[np.float64]:
        """Cumulative probabilities [num_cues - 1]; the last cue takes all numbers above them."""
        return np.cumsum(self.probabilities)[:-1]


class RareCueEnv(TaskEnv[RecallState]):
    """One copy of `ctrl/RareCue-v0`; the fields of `RareCueRules` are its arguments."""

    rules_class = RareCueRules


class RareCueVectorEnv(TaskVectorEnv[RecallState]):
    """Native vector env of `ctrl/RareCue-v0`; the fields of `RareCueRules` are its arguments."""

    rules_class = RareCueRules


TASK = Task(
    id="ctrl/RareCue-v0",
    summary="Recall with many cues of Zipf frequencies; success is told apart by frequency",
    env=RareCueEnv,
    vector_env=RareCueVectorEnv,
    agents={"random": RandomAgent, "memoryless": Guess, "perfect": LatestCue},
)
