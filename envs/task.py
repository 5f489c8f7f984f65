"""Description of a task beside its dynamics: its id, its arguments, and the agents that reach its scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from ctrl.envs.base import Rules, TaskEnv, TaskVectorEnv
from ctrl.envs.scores import Scores
from ctrl.envs.scripted import Agent

AgentMaker = Callable[[VectorEnv[Any, Any, Any]], Agent]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One memory task. Each task's module defines one; `ctrl.envs.TASKS` lists them all."""

    id: str
    """The gymnasium id, such as "ctrl/Recall-v0"."""
    summary: str
    """One line for lists of tasks."""
    env: type[TaskEnv[Any]]
    """The single env."""
    vector_env: type[TaskVectorEnv[Any]]
    """The native vector env."""
    agents: Mapping[str, AgentMaker]
    """Scripted agents "random", "memoryless" and "perfect", which reach the scores; each is made for one vector env."""

    @property
    def defaults(self) -> dict[str, Any]:
        """The task's arguments with their default values."""
        return {field.name: field.default for field in dataclasses.fields(self.env.rules_class)}  # type: ignore[arg-type]

    def rules(self, **arguments: Any) -> Rules[Any]:
        """Return the task's rules for these arguments, with defaults for the others.

        :raises ValueError: if the task has no argument of a given name.
        """
        unknown = sorted(set(arguments) - set(self.defaults))
        if unknown:
            raise ValueError(f"{self.id} has no argument {unknown}; its arguments are {sorted(self.defaults)}.")
        return self.env.rules_class(**arguments)

    def scores(self, **arguments: Any) -> Scores:
        """Return the expected returns of the random, the best memoryless and the perfect agent, for these arguments."""
        return self.rules(**arguments).scores

    def memory_steps(self, **arguments: Any) -> int:
        """Return the largest number of steps between a decision and an observation it depends on; see `Rules`."""
        return self.rules(**arguments).memory_steps

    def register(self) -> None:
        """Make the id known to `gym.make` and `gym.make_vec`."""
        gym.register(self.id, entry_point=_path(self.env), vector_entry_point=_path(self.vector_env))


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
