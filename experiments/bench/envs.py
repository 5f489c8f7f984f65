"""`ctrl bench envs`: env steps per second of our native vector envs beside gymnasium's `SyncVectorEnv`.

Both run the same task in one process and one thread, with actions that are drawn beforehand. They take turns (A B, A B,
…), so that other load on the machine affects both. Each turn has fresh envs with the same seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from rich.console import Console

from ctrl.envs import TASKS
from ctrl.experiments.bench.harness import SEED, Case, Column, Row, Table, Turn, calls_per_second, measure, turns_note
from ctrl.experiments.bench.options import BenchOptions
from ctrl.experiments.errors import require_at_least, unknown
from ctrl.experiments.options import open_option
from ctrl.experiments.report.summary import count_text

TURN_SECONDS = 0.8
WARM_UP = 3
"""Number of calls of `step` at the start of a turn that are not timed."""
DRAWN = 100
"""Number of actions drawn beforehand for all copies; they are repeated in a cycle."""
FORMS: dict[str, dict[str, Any]] = {
    "native": {"vectorization_mode": "vector_entry_point"},
    # Without gymnasium's checker around single envs, since it takes time at each step.
    "sync": {
        "vectorization_mode": "sync",
        "disable_env_checker": True,
        "vector_kwargs": {"autoreset_mode": "SameStep"},
    },
}
VARIANTS: dict[str, list[dict[str, Any]]] = {"ctrl/SelectNonmatchingObject-v0": [{"observation": "pixels"}]}
"""Further arguments with which a task is measured a second time, since it differs much from the default."""

Builder = Callable[[], VectorEnv[Any, Any, Any]]


@dataclass(frozen=True)
class Options(BenchOptions):
    """Speed of our native vector envs beside gymnasium's SyncVectorEnv of the same task."""

    num_envs: int = 256
    """Number of copies of a task that are stepped together."""
    tasks: Annotated[tuple[str, ...], open_option("all of ours", "[ID ...]")] = ()
    """Tasks to measure."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "num_envs")


def measured(tasks: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the ids to measure with their arguments: of the given tasks, or of all our tasks if none is given.

    :raises UserError: for an id that is not one of ours
    """
    for task in tasks:
        if task not in TASKS:
            raise unknown("task", task, TASKS)
    return [(task, arguments) for task in tasks or TASKS for arguments in ({}, *VARIANTS.get(task, []))]


def builder(task: str, form: str, num_envs: int, arguments: dict[str, Any]) -> Builder:
    """Return a function that builds the copies of a task in one of `FORMS`."""
    options: dict[str, Any] = {**FORMS[form], **arguments}
    return partial(gym.make_vec, task, num_envs=num_envs, **options)


def steps_per_second(build: Builder, seconds: float) -> float:
    """Return the env steps per second of all copies together, measured over at least `seconds`."""
    with closing(build()) as envs:
        envs.action_space.seed(SEED)
        actions = itertools.cycle([np.asarray(envs.action_space.sample()) for _ in range(DRAWN)])
        envs.reset(seed=SEED)
        for action in itertools.islice(actions, WARM_UP):
            envs.step(action)
        return envs.num_envs * calls_per_second(lambda: envs.step(next(actions)), seconds)


def turn(native: Builder, sync: Builder) -> Turn:
    """Measure both forms of a task, one after the other."""
    speeds = [steps_per_second(build, TURN_SECONDS) for build in (native, sync)]
    return {"native": speeds[0], "sync": speeds[1], "ratio": speeds[0] / speeds[1]}


def run(options: Options, console: Console) -> Row:
    """Measure both forms of each task in turns."""
    rows = []
    for task, arguments in measured(options.tasks):
        forms = (builder(task, form, options.num_envs, arguments) for form in FORMS)
        case = Case(name_of(task, arguments), {"task": task, "arguments": arguments}, partial(turn, *forms))
        rows += measure([case], options.repeats, console)
    for row in rows:
        row["steps_per_second"] = {form: row.pop(form) for form in FORMS}
    return {"sizes": {"num_envs": options.num_envs, "turn_seconds": TURN_SECONDS, "seed": SEED}, "tasks": rows}


def name_of(task: str, arguments: dict[str, Any]) -> str:
    """Return the id of a task, and the values of its arguments that differ from the default."""
    return " ".join([task, *map(str, arguments.values())])


def tables(report: Row) -> list[Table]:
    """List the only table."""
    return [
        Table(
            f"native vector envs, {report['sizes']['num_envs']} copies, all their steps together",
            report["tasks"],
            [
                Column("task", lambda row: name_of(row["task"], row["arguments"])),
                Column.median("steps/s", "native", _short),
                Column.range("range", "native", _short),
                Column.median("gymnasium\nsteps/s", "sync", _short),
                Column.median("ratio", "ratio", lambda ratio: f"{ratio:.1f}"),
            ],
            [
                turns_note(report["tasks"], "one process, one thread; actions drawn beforehand"),
                "ratio of steps/s to gymnasium's SyncVectorEnv",
            ],
        )
    ]


def _short(speed: float) -> str:
    return count_text(round(speed))
