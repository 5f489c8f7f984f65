"""The envs of `ctrl/SelectNonmatchingObject-v0`, and its `Task`."""

from __future__ import annotations

from ctrl.envs.base import TaskEnv, TaskVectorEnv
from ctrl.envs.scripted import RandomAgent
from ctrl.envs.task import Task
from ctrl.envs.tasks.select_nonmatching.agents import MemorylessSelect, PerfectSelect
from ctrl.envs.tasks.select_nonmatching.rules import SelectNonmatchingObjectRules, SelectState


class SelectNonmatchingObjectEnv(TaskEnv[SelectState]):
    """One copy of `ctrl/SelectNonmatchingObject-v0`; the fields of its `Rules` are its arguments."""

    rules_class = SelectNonmatchingObjectRules


class SelectNonmatchingObjectVectorEnv(TaskVectorEnv[SelectState]):
    """Native vector env of `ctrl/SelectNonmatchingObject-v0`; the fields of its `Rules` are its arguments."""

    rules_class = SelectNonmatchingObjectRules


TASK = Task(
    id="ctrl/SelectNonmatchingObject-v0",
    summary="take the object that was not shown in the room before; the paper's task as a grid world",
    env=SelectNonmatchingObjectEnv,
    vector_env=SelectNonmatchingObjectVectorEnv,
    agents={"random": RandomAgent, "memoryless": MemorylessSelect, "perfect": PerfectSelect},
)
