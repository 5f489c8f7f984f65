"""`ctrl bench envs`: env steps per second of our native vector envs beside gymnasium's `SyncVectorEnv`.

Both run the same task in one process and one thread, with actions that are drawn beforehand. They take turns (A B, A B,
…), so that other load on the machine affects both. Each turn has fresh envs with the same seed.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from rich.console import Console, RenderableType

from ctrl.envs import TASKS
from ctrl.experiments.bench.config import BenchEnvs
from ctrl.experiments.bench.turns import framed, ratio, summarise, take_turns
from ctrl.experiments.errors import unknown
from ctrl.experiments.report.summary import count_text

SEED = 0
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
class EnvsResult:
    """Results of one task, in all turns."""

    task: str
    arguments: dict[str, Any]
    native: list[float]
    """Env steps per second of our vector env in each turn, all copies together."""
    sync: list[float]
    """Env steps per second of `SyncVectorEnv` in each turn, all copies together."""

    @property
    def name(self) -> str:
        """Id of the task, and the values of its arguments that differ from the default."""
        return " ".join([self.task, *map(str, self.arguments.values())])

    @property
    def ratio(self) -> float:
        """Speed of our vector env, as a multiple of the speed of `SyncVectorEnv`."""
        return ratio(self.native, self.sync)

    def to_json(self) -> dict[str, Any]:
        """Return the turns, their medians and ranges, and the ratio."""
        summed = {form: summarise(speeds) for form, speeds in (("native", self.native), ("sync", self.sync))}
        return {**asdict(self), "steps_per_second": summed, "ratio": self.ratio}


def cases(tasks: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
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


def run_turn(build: Builder, seconds: float) -> float:
    """Return the env steps per second of all copies together, measured over at least `seconds`."""
    envs = build()
    envs.action_space.seed(SEED)
    actions = itertools.cycle([np.asarray(envs.action_space.sample()) for _ in range(DRAWN)])
    envs.reset(seed=SEED)
    for action in itertools.islice(actions, WARM_UP):
        envs.step(action)
    calls, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        envs.step(next(actions))
        calls += 1
    envs.close()
    return calls * envs.num_envs / spent


def measure(config: BenchEnvs, console: Console) -> list[EnvsResult]:
    """Measure both forms of each task in turns."""
    results = []
    for task, arguments in cases(config.tasks):
        turns = take_turns(
            {form: partial(run_turn, builder(task, form, config.num_envs, arguments), TURN_SECONDS) for form in FORMS},
            config.repeats,
        )
        results.append(EnvsResult(task, arguments, turns["native"], turns["sync"]))
        console.print(f"{results[-1].name}: {count_text(round(median(turns['native'])))} steps/s", soft_wrap=True)
    return results


def envs_table(results: Sequence[EnvsResult], num_envs: int) -> RenderableType:
    """Build the table of the benchmark."""
    rows = []
    for result in results:
        native, lowest, highest, sync = (
            count_text(round(speed))
            for speed in (median(result.native), min(result.native), max(result.native), median(result.sync))
        )
        rows.append([result.name, native, f"{lowest}–{highest}", sync, f"{result.ratio:.1f}"])
    turns = len(results[0].native)
    return framed(
        f"native vector envs, {num_envs} copies, all their steps together",
        ["task", "steps/s", "range", "SyncVectorEnv", "ratio"],
        rows,
        [
            f"median of {turns} interleaved turns; one process, one thread; actions drawn beforehand",
            "ratio of steps/s to SyncVectorEnv",
        ],
        gap=1,
    )


def run(config: BenchEnvs, console: Console) -> dict[str, Any]:
    """Run the benchmark, print its table and return its part of the report."""
    results = measure(config, console)
    console.print(envs_table(results, config.num_envs))
    sizes = {"num_envs": config.num_envs, "turn_seconds": TURN_SECONDS, "seed": SEED}
    return {"sizes": sizes, "tasks": [result.to_json() for result in results]}
