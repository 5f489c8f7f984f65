"""`ctrl bench envs`: steps a second of our native vector envs beside gymnasium's `SyncVectorEnv` of the same task.

One process and one thread; the actions are drawn beforehand. The two take turns (A B, A B, …), each turn with fresh
envs of the same seed, so that what else the machine does meets both.
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
from ctrl.experiments.bench_config import BenchEnvs
from ctrl.experiments.bench_turns import framed, ratio, summarise, take_turns
from ctrl.experiments.errors import unknown
from ctrl.experiments.summary import count_text

SEED = 0
TURN_SECONDS = 0.8
WARM_UP = 3
"""Calls of `step` that are not timed."""
DRAWN = 100
"""Actions that are drawn beforehand, for all copies; after the last the first comes again."""
FORMS: dict[str, dict[str, Any]] = {
    "native": {"vectorization_mode": "vector_entry_point"},
    # Without the checker that gymnasium puts around single envs: it looks at each step, which takes time.
    "sync": {
        "vectorization_mode": "sync",
        "disable_env_checker": True,
        "vector_kwargs": {"autoreset_mode": "SameStep"},
    },
}
VARIANTS: dict[str, list[dict[str, Any]]] = {"ctrl/SelectNonmatchingObject-v0": [{"observation": "pixels"}]}
"""Arguments, beside the default ones, with which a task is so different that it is measured twice."""

Builder = Callable[[], VectorEnv[Any, Any, Any]]


@dataclass(frozen=True)
class Measured:
    """All turns of one task."""

    task: str
    arguments: dict[str, Any]
    native: list[float]
    """Env steps a second of our vector env in each turn, all copies together."""
    sync: list[float]
    """The same of `SyncVectorEnv`."""

    @property
    def name(self) -> str:
        """The id, and the values that are not as by default."""
        return " ".join([self.task, *map(str, self.arguments.values())])

    @property
    def ratio(self) -> float:
        """How many times as fast the native one is."""
        return ratio(self.native, self.sync)

    def to_json(self) -> dict[str, Any]:
        """Return the turns, their medians and ranges, and the ratio."""
        summed = {form: summarise(speeds) for form, speeds in (("native", self.native), ("sync", self.sync))}
        return {**asdict(self), "steps_per_second": summed, "ratio": self.ratio}


def cases(tasks: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return ids with arguments: of the given tasks, or of all.

    :raises UserError: for an id that is not one of ours
    """
    for task in tasks:
        if task not in TASKS:
            raise unknown("task", task, TASKS)
    return [(task, arguments) for task in tasks or TASKS for arguments in ({}, *VARIANTS.get(task, []))]


def builder(task: str, form: str, num_envs: int, arguments: dict[str, Any]) -> Builder:
    """Return what builds the copies in one of `FORMS`."""
    options: dict[str, Any] = {**FORMS[form], **arguments}
    return partial(gym.make_vec, task, num_envs=num_envs, **options)


def run_turn(build: Builder, seconds: float) -> float:
    """Return env steps a second, all copies together, over at least `seconds`."""
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


def measure(config: BenchEnvs, console: Console) -> list[Measured]:
    """Let both forms of each task take turns."""
    results = []
    for task, arguments in cases(config.tasks):
        turns = take_turns(
            {form: partial(run_turn, builder(task, form, config.num_envs, arguments), TURN_SECONDS) for form in FORMS},
            config.repeats,
        )
        results.append(Measured(task, arguments, turns["native"], turns["sync"]))
        console.print(f"{results[-1].name}: {count_text(round(median(turns['native'])))} steps/s", soft_wrap=True)
    return results


def envs_table(results: Sequence[Measured], num_envs: int) -> RenderableType:
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
    """Measure, show the table, and return what the report holds of it."""
    results = measure(config, console)
    console.print(envs_table(results, config.num_envs))
    sizes = {"num_envs": config.num_envs, "turn_seconds": TURN_SECONDS, "seed": SEED}
    return {"sizes": sizes, "tasks": [result.to_json() for result in results]}
