"""Scripted agents, to verify a task's stated scores."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv


class Agent(Protocol):
    """Agent that acts for all copies of one vector env. It keeps its own memory, with one row for each copy."""

    def __call__(self, observations: npt.NDArray[Any], reset: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """Return the actions [B, …] for the observations [B, …]; `reset` [B] is True on an episode's first step."""


class RandomAgent:
    """Agent that draws each action uniformly from the action space."""

    def __init__(self, envs: VectorEnv[Any, Any, Any], seed: int = 0) -> None:
        self._space = envs.action_space
        self._space.seed(seed)

    def __call__(self, observations: npt.NDArray[Any], reset: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        """Return random actions."""
        return np.asarray(self._space.sample())


def play(
    agent: Agent, envs: VectorEnv[Any, Any, Any], *, episodes: int, seed: int | None = None
) -> npt.NDArray[np.float64]:
    """Play `episodes` episodes in each copy, and return their returns [episodes, B].

    Each copy plays the same number of episodes, because the first episodes to finish would mostly be short ones.

    :param envs: a vector env with SAME_STEP autoreset, such as the native vector envs of this package.
    :raises ValueError: if the vector env has another autoreset mode.
    """
    if envs.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
        raise ValueError(f"envs must have SAME_STEP autoreset, got {envs.metadata.get('autoreset_mode')}.")
    returns = np.zeros((episodes, envs.num_envs))
    episode = np.zeros(envs.num_envs, dtype=np.int64)
    observations, _ = envs.reset(seed=seed)
    reset = np.ones(envs.num_envs, dtype=np.bool_)
    while (counted := episode < episodes).any():
        observations, rewards, terminated, truncated, _ = envs.step(agent(observations, reset))
        returns[episode[counted], np.flatnonzero(counted)] += rewards[counted]
        reset = terminated | truncated
        episode += reset
    return returns
