"""`ctrl bench train`: training speed of `MemoryPPO` beside stable-baselines3's PPO and sb3-contrib's RecurrentPPO.

All agents train on CartPole without its velocities and make the same use of their data; see
`ctrl.experiments.bench.subjects.agents`. Their parameter counts are within 10 % of one agent's, except for those with
the default networks of their package. Each turn has a fresh agent and the same seed, so that all turns of an agent do
the same work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Annotated

import tyro
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback

from ctrl.experiments.bench.harness import SEED, Case, Column, Row, Table, Turn, measure, turns_note, values
from ctrl.experiments.bench.options import (
    Integers,
    TorchOptions,
    require_names,
    require_numbers,
)
from ctrl.experiments.bench.subjects.agents import (
    DEFAULT,
    DEFAULTS,
    MATCHED,
    MINIBATCHES,
    N_EPOCHS,
    N_STEPS,
    PAPER,
    Builder,
    agents,
    fresh_agent,
)
from ctrl.experiments.errors import require_at_least, unknown

CORES = ("compressive", "transformer_xl", "gtrxl", "lstm", "gru", "mingru", "feedforward")
AGENTS = (*CORES, *MATCHED, *DEFAULTS)
"""Agents: MemoryPPO by the name of its core, and PPO of other packages."""
LABELS = {
    "default_memory": "MemoryPPO, default",
    "recurrent_ppo": "RecurrentPPO",
    "default_recurrent_ppo": "RecurrentPPO, default",
    "matched_ppo": "PPO, matched MLP",
    "default_ppo": "PPO, default MLP",
}
"""Names in the table, where they differ."""

_AGENTS_HELP = (
    "Agents to measure: MemoryPPO with the paper's kind of memory, by the name of its core; recurrent_ppo; matched_ppo "
    "(no memory); with the networks of their package default_memory, default_recurrent_ppo, default_ppo."
)


@dataclass(frozen=True)
class Options(TorchOptions):
    """Training speed of MemoryPPO beside stable-baselines3's PPO and sb3-contrib's RecurrentPPO."""

    num_envs: Integers = (8,)
    """Numbers of copies of the task that are stepped together; each is measured."""
    agents: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]", help=_AGENTS_HELP)] = AGENTS
    match: str = PAPER
    """Agent whose number of parameters all but the default ones get: compressive or default_memory."""
    updates: int = 4
    """Number of timed updates in a turn, after one that is not timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_numbers(self, "num_envs", of=MINIBATCHES)
        require_at_least(1, self, "updates")
        require_names("agent", self, AGENTS)
        if self.match not in (PAPER, DEFAULT):
            raise unknown("agent to match", self.match, (PAPER, DEFAULT))


class Stopwatch(BaseCallback):
    """Callback that notes the start and end of acting in each update of `steps` env steps, all envs together."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.starts: list[float] = []
        self.ends: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.starts.append(time.perf_counter())

    def _on_rollout_end(self) -> None:
        self.ends.append(time.perf_counter())

    def _on_training_end(self) -> None:
        self.starts.append(time.perf_counter())

    def turn(self) -> Turn:
        """Summarise all updates but the first, which includes the warm-up; seconds are means over the updates."""
        starts, ends = self.starts[1:], self.ends[1:]
        acting = fmean(end - start for start, end in zip(starts, ends, strict=False))
        learning = fmean(start - end for start, end in zip(starts[1:], ends, strict=True))
        speed = self.steps / (acting + learning)
        return {"steps_per_second": speed, "acting_seconds": acting, "learning_seconds": learning}


def turn(build: Builder, num_envs: int, updates: int) -> Turn:
    """Train a fresh agent for one update that is not timed and `updates` that are."""
    with fresh_agent(build, num_envs) as model:
        watch = Stopwatch(num_envs * N_STEPS)
        model.learn((1 + updates) * watch.steps, callback=watch)
        return watch.turn()


def run(options: Options, console: Console) -> Row:
    """Measure the agents in turns, at each number of envs."""
    builders, parameters = agents(options.agents, options.match)
    rows = []
    for num_envs in options.num_envs:
        console.print(f"{num_envs} envs")
        cases = [
            Case(
                name,
                {"agent": name, "num_envs": num_envs, "parameters": parameters[name]},
                partial(turn, build, num_envs, options.updates),
            )
            for name, build in builders.items()
        ]
        rows += measure(cases, options.repeats, console, {f"ratio_to_{name}": name for name in MATCHED})
    sizes = {"num_envs": options.num_envs, "n_steps": N_STEPS, "n_epochs": N_EPOCHS, "minibatches": MINIBATCHES}
    return {"sizes": {**sizes, "match": options.match, "updates": options.updates, "seed": SEED}, "agents": rows}


def tables(report: Row) -> list[Table]:
    """List the only table."""
    return [
        Table(
            f"training on CartPole without velocities, {N_STEPS} steps, {N_EPOCHS} epochs × {MINIBATCHES} minibatches",
            report["agents"],
            [
                Column("agent", lambda row: LABELS.get(row["agent"], row["agent"])),
                Column.text("envs", "num_envs"),
                Column.count("params", "parameters"),
                Column.median("steps/s", "steps_per_second"),
                Column.range("range", "steps_per_second"),
                Column("act", lambda row: f"{1e3 * fmean(values(row, 'acting_seconds')):,.0f}"),
                Column("learn", lambda row: f"{1e3 * fmean(values(row, 'learning_seconds')):,.0f}"),
                Column.ratio("ratio", "ratio_to_recurrent_ppo"),
                Column.ratio("ratio\nto MLP", "ratio_to_matched_ppo"),
            ],
            [
                turns_note(report["agents"], "act and learn: ms an update"),
                "ratio of steps/s to RecurrentPPO, and to PPO with the matched MLP, of as many envs",
                "by core: MemoryPPO; RecurrentPPO: sb3-contrib, LSTM; PPO: stable-baselines3, no memory",
            ],
        )
    ]
