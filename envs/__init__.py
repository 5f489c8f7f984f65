"""Memory tasks for gymnasium. Importing this package registers their ids.

    import gymnasium as gym

    env = gym.make("ctrl.envs:ctrl/Recall-v0", length=64)
    envs = gym.make_vec("ctrl.envs:ctrl/Recall-v0", num_envs=256, length=64)  # native: one numpy step for all copies

`TASKS` describes each task: its arguments, its reference scores, and the number of steps to remember.
"""

from ctrl.envs.base import Rules
from ctrl.envs.scores import Scores
from ctrl.envs.scripted import Agent, RandomAgent, play
from ctrl.envs.task import Task
from ctrl.envs.tasks import (
    copy_sequence,
    endless_copy,
    endless_recall,
    rare_cue,
    recall,
    rewrite,
    t_maze,
)
from ctrl.envs.tasks.recall import RecallEnv, RecallVectorEnv
from ctrl.envs.tasks.select_nonmatching import task as select_nonmatching

TASKS: dict[str, Task] = {
    task.id: task
    for task in (
        recall.TASK,
        endless_recall.TASK,
        rare_cue.TASK,
        rewrite.TASK,
        copy_sequence.TASK,
        endless_copy.TASK,
        t_maze.TASK,
        select_nonmatching.TASK,
    )
}
"""All tasks of this package by gymnasium id."""

for _task in TASKS.values():
    _task.register()

__all__ = ["TASKS", "Agent", "RandomAgent", "RecallEnv", "RecallVectorEnv", "Rules", "Scores", "Task", "play"]
