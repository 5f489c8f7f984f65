"""Scripted agents of `ctrl/SelectNonmatchingObject-v0`: with and without memory, on the shortest path."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from gymnasium.vector import VectorEnv

from ctrl.envs.base import Actions, Bools, Observations, TaskVectorEnv
from ctrl.envs.tasks.select_nonmatching import sprites
from ctrl.envs.tasks.select_nonmatching.rooms import FORWARD, LEFT, RIGHT, VIEW, Integers
from ctrl.envs.tasks.select_nonmatching.rules import SelectNonmatchingObjectRules


class PerfectSelect:
    """Agent that takes the shortest path and touches the object that was not in the glass case."""

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self._rules = _rules_of(envs)
        self._match = np.zeros(envs.num_envs, dtype=np.int64)

    def __call__(self, observations: Observations, reset: Bools) -> Actions:
        """Return the actions."""
        seen = sprites.recognise(observations, self._rules.observation)
        shown = _shown(seen)
        self._match = np.where(shown >= 0, shown, self._match)
        return _walk(seen, left=seen[:, -1, 0] != sprites.PEDESTAL + self._match)


class MemorylessSelect:
    """Best known memoryless agent: it goes to the pad only if the match is one of k chosen objects.

    Otherwise it waits at the start until the episode ends. So in room B the match is always one of the k objects. If
    the other object is not, the agent can tell the two apart. With a larger k the agent goes to the pad more often, but
    can tell the objects apart less often. It takes the k with the largest of the `selective_scores`. An agent that
    always goes to the pad gains only the rewards of the pads.

    Of the agents that take the shortest path or stay at the start, no other is better. Slower agents can gain a little
    more: one more pad, at the end of an episode that this agent waits through.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any]) -> None:
        self._rules = _rules_of(envs)
        kept = sprites.objects_of(self._rules.split)[: int(self._rules.selective_scores.argmax()) + 1]
        kinds = np.arange(sprites.NUM_KINDS)
        self._is_kept = np.isin(kinds, [*(sprites.CASE + kept), *(sprites.PEDESTAL + kept)])
        self._refuses = ~self._is_kept & (kinds >= sprites.CASE) & (kinds < sprites.PEDESTAL)

    def __call__(self, observations: Observations, reset: Bools) -> Actions:
        """Return the actions."""
        seen = sprites.recognise(observations, self._rules.observation)
        left, right = self._is_kept[seen[:, -1, 0]], self._is_kept[seen[:, -1, -1]]
        refuses = self._refuses[seen].any(axis=(1, 2))
        return np.where(refuses, FORWARD, _walk(seen, left=right | ~left))  # at the start, forward leads into the wall


def _rules_of(envs: VectorEnv[Any, Any, Any]) -> SelectNonmatchingObjectRules:
    rules = cast(TaskVectorEnv[Any], envs.unwrapped).rules
    return cast(SelectNonmatchingObjectRules, rules)


def _shown(seen: Integers) -> Integers:
    """Return the object in the glass case in view, −1 if there is none, [B]."""
    cells = seen.reshape(len(seen), -1)
    in_case = (cells >= sprites.CASE) & (cells < sprites.PEDESTAL)
    return np.asarray(np.where(in_case, cells - sprites.CASE, -1).max(axis=1))


def _walk(seen: Integers, *, left: Bools) -> Actions:
    """Return the actions on the shortest path, [B].

    :param seen: [B, 7, 7] the kinds of the cells in view
    :param left: [B] True to touch the left one of two objects
    """
    beside, ahead = seen[:, -1], seen[:, -2, VIEW // 2]
    chooses = (beside[:, [0, -1]] >= sprites.PEDESTAL).all(axis=1)
    middle = VIEW // 2
    turns_left = (beside[:, :middle] == sprites.PAD).any(axis=1) | (chooses & left)
    turns_right = (beside[:, middle + 1 :] == sprites.PAD).any(axis=1) | (chooses & ~left)
    blocked = (ahead == sprites.WALL) | ((ahead >= sprites.EMPTY_CASE) & (ahead < sprites.PEDESTAL))
    return np.where(turns_left, LEFT, np.where(turns_right | blocked, RIGHT, FORWARD))
