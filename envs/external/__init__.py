"""Memory tasks of other packages, ready to train on: POPGym, MiniGrid Memory, Memory Gym and bsuite's memory tasks.

    from ctrl.envs import external

    env = external.make("MiniGrid-MemoryS7-v0")  # imports minigrid; the agents of ctrl.agents accept this env
    external.EXTERNAL_TASKS["MiniGrid-MemoryS7-v0"].random  # the facts about a task don't need its package

These packages are optional: each is imported when one of its tasks is built. If it is missing, the error states the
exact commands that install it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from ctrl.envs.external import bsuite, memory_gym, minigrid, popgym
from ctrl.envs.external.task import ExternalTask, Family

FAMILIES: dict[str, Family] = {
    family.name: family for family in (popgym.FAMILY, minigrid.FAMILY, memory_gym.FAMILY, bsuite.FAMILY)
}
"""Packages of the tasks, by name."""

EXTERNAL_TASKS: dict[str, ExternalTask] = {
    task.id: task for task in (*popgym.TASKS, *minigrid.TASKS, *memory_gym.TASKS, *bsuite.TASKS)
}
"""All tasks by gymnasium id, including those whose package is not installed."""


def installed_tasks() -> dict[str, ExternalTask]:
    """Return the tasks whose package is installed in a version that works; nothing is imported."""
    working = {name for name, family in FAMILIES.items() if family.problem() is None}
    return {task.id: task for task in EXTERNAL_TASKS.values() if task.family.name in working}


def make(env_id: str, **arguments: Any) -> gym.Env[Any, Any]:
    """Build a task, with the adaptations that the module of its package describes.

    :param env_id: one of `EXTERNAL_TASKS`
    :param arguments: the task's own arguments; they override those in `ExternalTask.arguments`
    :raises ValueError: if the id is not one of these tasks
    :raises gymnasium.error.DependencyNotInstalled: if the package is missing or has a version that does not work
    """
    if env_id not in EXTERNAL_TASKS:
        raise ValueError(f"env_id must be one of ctrl.envs.external.EXTERNAL_TASKS, got {env_id!r}.")
    task = EXTERNAL_TASKS[env_id]
    task.family.load()
    return task.family.build(env_id, {**task.arguments, **arguments})


__all__ = ["EXTERNAL_TASKS", "FAMILIES", "ExternalTask", "Family", "installed_tasks", "make"]
