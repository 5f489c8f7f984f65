"""What is known about a task beside its dynamics: its id, what it asks of memory, and the scores to measure against."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from ctrl.envs.scripted import Agent

AgentMaker = Callable[[VectorEnv[Any, Any, Any]], Agent]


@dataclass(frozen=True)
class Scores:
    """Expected returns of an episode. An agent without memory can't pass `memoryless`, no agent passes `perfect`."""

    random: float
    memoryless: float
    perfect: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """One memory task. Its file defines one of these; `ctrl.envs.TASKS` lists them all."""

    id: str
    """The gymnasium id, such as "ctrl/Recall-v0"."""
    summary: str
    """One line for lists of tasks."""
    env: Callable[..., gym.Env[Any, Any]]
    """The class of the single env; its arguments are the task's."""
    vector_env: Callable[..., VectorEnv[Any, Any, Any]]
    """The class of the native vector env, with `num_envs` before the task's arguments and `stagger` after them."""
    score_rule: Callable[[Mapping[str, Any]], Scores]
    """Scores for a complete set of arguments; call `scores` instead."""
    memory_rule: Callable[[Mapping[str, Any]], int]
    """Memory in steps for a complete set of arguments; call `memory_steps` instead."""
    agents: Mapping[str, AgentMaker]
    """Scripted agents "random", "memoryless" and "perfect", each made for one vector env; they reach the scores."""

    @property
    def defaults(self) -> dict[str, Any]:
        """The task's arguments with their default values."""
        parameters = inspect.signature(self.env).parameters.values()
        return {p.name: p.default for p in parameters if p.name != "render_mode"}

    def arguments(self, **arguments: Any) -> dict[str, Any]:
        """Return all arguments, with defaults for those not given; ValueError for an unknown name."""
        unknown = sorted(set(arguments) - set(self.defaults))
        if unknown:
            raise ValueError(f"{self.id} has no argument {unknown}; its arguments are {sorted(self.defaults)}.")
        return {**self.defaults, **arguments}

    def scores(self, **arguments: Any) -> Scores:
        """Return the random, the best memoryless and the perfect expected return, given the env's arguments."""
        return self.score_rule(self.arguments(**arguments))

    def memory_steps(self, **arguments: Any) -> int:
        """Return how many steps back the oldest observation lies that a decision depends on."""
        return self.memory_rule(self.arguments(**arguments))

    def register(self) -> None:
        """Make the id known to `gym.make` and `gym.make_vec`."""
        gym.register(self.id, entry_point=_path(self.env), vector_entry_point=_path(self.vector_env))


def _path(cls: Callable[..., Any]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
