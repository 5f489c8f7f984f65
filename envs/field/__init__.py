"""The field's own memory tasks: POPGym, MiniGrid Memory, Memory Gym and bsuite's memory tasks, ready to train on.

    from ctrl.envs import field

    env = field.make("MiniGrid-MemoryS7-v0")  # imports minigrid; gives what an agent of ctrl.agents takes
    field.FIELD_TASKS["MiniGrid-MemoryS7-v0"].random  # what is known of a task needs no package at all

Nobody has to have these packages: they are imported when a task is built. Where one is missing, the error holds the
exact command that installs it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from ctrl.envs.field import bsuite, memory_gym, minigrid, popgym
from ctrl.envs.field.task import Family, FieldTask

FAMILIES: dict[str, Family] = {
    family.name: family for family in (popgym.FAMILY, minigrid.FAMILY, memory_gym.FAMILY, bsuite.FAMILY)
}
"""The packages that the tasks come from, by name."""

FIELD_TASKS: dict[str, FieldTask] = {
    task.id: task for task in (*popgym.TASKS, *minigrid.TASKS, *memory_gym.TASKS, *bsuite.TASKS)
}
"""All tasks by gymnasium id, whether their package is installed or not."""


def installed_tasks() -> dict[str, FieldTask]:
    """Return the tasks whose package is installed in a version that works; nothing is imported."""
    working = {name for name, family in FAMILIES.items() if family.problem() is None}
    return {task.id: task for task in FIELD_TASKS.values() if task.family.name in working}


def make(env_id: str, **arguments: Any) -> gym.Env[Any, Any]:
    """Build a task, with the adaptations that the file of its family describes.

    :param env_id: one of `FIELD_TASKS`
    :param arguments: the task's own arguments, in place of those in `FieldTask.arguments`
    :raises ValueError: where the id is not one of these tasks
    :raises gymnasium.error.DependencyNotInstalled: where the package is missing or has a version that does not work
    """
    if env_id not in FIELD_TASKS:
        raise ValueError(f"env_id must be one of ctrl.envs.field.FIELD_TASKS, got {env_id!r}.")
    task = FIELD_TASKS[env_id]
    task.family.load()
    return task.family.build(env_id, {**task.arguments, **arguments})


__all__ = ["FAMILIES", "FIELD_TASKS", "Family", "FieldTask", "installed_tasks", "make"]
