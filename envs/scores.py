"""The scores that a task is measured against."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """Expected returns of an episode. No agent passes `perfect`.

    `memoryless` is that of the best known agent without memory; where a better one may exist, the scripted agent
    that reaches it says so.

    Memoryless means that an action depends on the current observation alone. An agent that is shown its previous action
    has a memory: it can write there what it saw.
    """

    random: float
    """Of an agent that draws each action uniformly."""
    memoryless: float
    perfect: float

    def normalised(self, score: float) -> float:
        """Return `score` on the scale where the random agent has 0 and the perfect one 1."""
        return (score - self.random) / (self.perfect - self.random)


def until_first_mistake(chance: float, answers: int) -> float:
    """Return how many answers are expected before the first wrong one, or all `answers`, with this chance of each.

    It is the sum over j of the probability that the first j are right.
    """
    return chance * (1 - chance**answers) / (1 - chance)
