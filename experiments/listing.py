"""`ctrl envs`: the memory tasks and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from ctrl.envs import TASKS, Task
from ctrl.experiments.config import EnvsConfig
from ctrl.experiments.summary import titled


def task_facts(task: Task) -> dict[str, Any]:
    """Return what is known of a task with its default arguments, as plain data."""
    env = gym.make(task.id)
    scores = task.scores()
    facts = {
        "id": task.id,
        "summary": task.summary,
        "arguments": task.defaults,
        "observation": space_text(env.observation_space),
        "action": space_text(env.action_space),
        "memory_steps": task.memory_steps(),
        "random": scores.random,
        "memoryless": scores.memoryless,
        "perfect": scores.perfect,
    }
    env.close()
    return facts


def space_text(space: spaces.Space[Any]) -> str:
    """Describe a space in a word or two."""
    if isinstance(space, spaces.Discrete):
        return f"{space.n} choices"
    if isinstance(space, spaces.Box):
        return f"{' × '.join(map(str, space.shape))} {space.dtype}"
    if isinstance(space, spaces.Dict):
        return "; ".join(f"{name}: {space_text(part)}" for name, part in space.spaces.items())
    return str(space)


def envs_table(tasks: Mapping[str, Task]) -> RenderableType:
    """Build the table of all tasks."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("task", style="bold", no_wrap=True)
    table.add_column("sees")
    table.add_column("does")
    for name in ("memory", "random", "no memory", "perfect"):
        table.add_column(name, justify="right")
    notes = ["memory: steps back to the oldest observation that a decision needs · scores: mean return an episode"]
    for task in tasks.values():
        facts = task_facts(task)
        table.add_row(
            task.id,
            facts["observation"],
            facts["action"],
            str(facts["memory_steps"]),
            *(f"{facts[name]:.2f}" for name in ("random", "memoryless", "perfect")),
        )
        arguments = ", ".join(f"{name}={value}" for name, value in facts["arguments"].items())
        notes.append(f"{task.id} ({arguments}): {task.summary}")
    return titled("memory tasks, with their default arguments", table, "\n".join(notes))


def run_command(config: EnvsConfig, console: Console) -> int:
    """Carry out `ctrl envs`."""
    if config.json:
        console.print_json(data=[task_facts(task) for task in TASKS.values()])
    else:
        console.print(envs_table(TASKS))
    return 0
