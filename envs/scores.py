"""Reference scores of a task."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scores:
    """Expected returns of an episode. No agent's expected return is above `perfect`.

    `memoryless` is the return of the best known memoryless agent. If a better one may exist, the docstring of the
    scripted agent says so.

    Memoryless means that an action depends on the current observation alone. An agent that sees its previous action has
    a memory: it can store an observation in that action.
    """

    random: float
    """Return of an agent that draws each action uniformly."""
    memoryless: float
    perfect: float

    def normalised(self, score: float) -> float:
        """Return `score` on the scale where the random agent has 0 and the perfect agent 1."""
        return (score - self.random) / (self.perfect - self.random)


def until_first_mistake(chance: float, answers: int) -> float:
    """Return the expected number of right answers before the first wrong one.

    It is the sum over j of the probability that the first j answers are right.

    :param chance: probability that an answer is right, below 1
    :param answers: number of answers after which the episode is cut off
    """
    return chance * (1 - chance**answers) / (1 - chance)
