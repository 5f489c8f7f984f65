"""`ctrl bench profile`: time of an update of `MemoryPPO` by phase.

The task and the sizes are those of `ctrl bench train`. Clocks are wrapped around the methods of one model and of its
env, buffer and policy; the library itself has none. Phases do not overlap:

    env         step of the envs
    act         step of the policy, and values that only bootstrap
    buffer      storing steps and states, laying them out as windows
    plan        the core's plan of the windows, once for the rollout
    advantage   returns and advantages
    forward     from `evaluate_windows` to the losses
    backward    from `zero_grad` to the last gradient
    optimizer   gradient norms, clips and Adam
    rest        picking minibatches, checks, statistics, callbacks
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from rich.console import Console
from torch import Tensor

from ctrl.agents import MemoryPPO
from ctrl.experiments.bench.harness import (
    SEED,
    Case,
    Column,
    Row,
    Table,
    Turn,
    measure,
    milliseconds,
    turns_note,
    values,
)
from ctrl.experiments.bench.options import (
    Integers,
    Names,
    TorchOptions,
    require_numbers,
    require_some,
)
from ctrl.experiments.bench.subjects.agents import MINIBATCHES, N_EPOCHS, N_STEPS, Builder, agents, fresh_agent
from ctrl.experiments.errors import require_at_least
from ctrl.experiments.options import require_core

PHASES = ("env", "act", "buffer", "plan", "advantage", "forward", "backward", "optimizer", "rest")

TOTAL = "total"
"""Name of the whole update among the phases."""


@dataclass(frozen=True)
class Options(TorchOptions):
    """Time of an update of MemoryPPO by phase."""

    num_envs: Integers = (8, 64)
    """Numbers of copies of the task that are stepped together; each is measured."""
    cores: Names = ("compressive",)
    """Memories to measure: compressive, transformer_xl, gtrxl, lstm, gru, mingru, feedforward."""
    updates: int = 4
    """Number of timed updates in a turn, after one that is not timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_numbers(self, "num_envs", of=MINIBATCHES)
        require_at_least(1, self, "updates")
        require_some(self, "cores")
        for core in self.cores:
            require_core(core)


class Clocks:
    """Clocks that time the phases of a model's updates, from now on.

    :param model: agent that has acted already, so that all its parts exist
    """

    def __init__(self, model: MemoryPPO) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._inner = [0.0]
        self._mark = 0.0
        self._wrap_acting(model)
        self._wrap_learning(model)

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Add the time in a method of one object to a phase, without the time in wrapped methods that it calls."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent = time.perf_counter() - begin
                self.seconds[phase] += spent - self._inner.pop()
                self._inner[-1] += spent

        setattr(owner, name, timed)

    def _wrap_acting(self, model: MemoryPPO) -> None:
        actor, buffer = model._actor, model.rollout_buffer
        self.wrap(model.env, "step", "env")
        self.wrap(actor, "act", "act")
        self.wrap(actor, "tell_rewards", "act")
        self.wrap(model.policy, "values_after", "act")
        self.wrap(actor, "state", "buffer")
        for name in ("reset", "add_snapshot", "add_step", "all_windows"):
            self.wrap(buffer, name, "buffer")
        self.wrap(model.policy.core, "plan", "plan")
        self.wrap(buffer, "compute_returns_and_advantage", "advantage")
        self.wrap(model, "_optimize", "optimizer")

    def _wrap_learning(self, model: MemoryPPO) -> None:
        """Time forward and backward: forward ends where the gradients are zeroed, backward with the last gradient."""
        policy: Any = model.policy
        evaluate_windows, zero_grad = policy.evaluate_windows, policy.zero_grad

        def begin(*args: Any, **kwargs: Any) -> Any:
            self._mark = time.perf_counter()
            return evaluate_windows(*args, **kwargs)

        def turn(*args: Any, **kwargs: Any) -> None:
            self._count("forward")
            zero_grad(*args, **kwargs)

        def end(parameter: Tensor) -> None:
            self._count("backward")

        policy.evaluate_windows, policy.zero_grad = begin, turn
        for parameter in policy.parameters():
            parameter.register_post_accumulate_grad_hook(end)

    def _count(self, phase: str) -> None:
        """Add the time since the last mark to a phase, and set the mark to now."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._mark
        self._mark = now


def per_update(seconds: Mapping[str, float], total: float, updates: int) -> Turn:
    """Return the seconds of an update, and of its phases; the phase `rest` has the time that no clock counted."""
    rest = total - sum(seconds.values())
    return {phase: each / updates for phase, each in {TOTAL: total, **seconds, "rest": rest}.items()}


def turn(build: Builder, num_envs: int, updates: int) -> Turn:
    """Train a fresh agent for one update without clocks and `updates` with them; return the seconds of an update."""
    with fresh_agent(build, num_envs) as model:
        model.learn(num_envs * N_STEPS)
        clocks = Clocks(model)
        begin = time.perf_counter()
        model.learn(updates * num_envs * N_STEPS, reset_num_timesteps=False)
        return per_update(clocks.seconds, time.perf_counter() - begin, updates)


def share(row: Row, phase: str) -> float:
    """Return the share of a phase in an update: the median over turns of the share within a turn."""
    shares: list[float] = [turn[phase] / turn[TOTAL] for turn in row["turns"]]
    return median(shares)


def run(options: Options, console: Console) -> Row:
    """Measure all cores at all numbers of envs in turns."""
    builders, _ = agents(options.cores)
    cases = [
        Case(
            f"{core}, {num_envs} envs",
            {"core": core, "num_envs": num_envs},
            partial(turn, builders[core], num_envs, options.updates),
        )
        for core in options.cores
        for num_envs in options.num_envs
    ]
    rows = measure(cases, options.repeats, console)
    for row in rows:
        row["seconds_per_update"] = {phase: row.pop(phase) for phase in (*PHASES, TOTAL)}
        row["share"] = {phase: share(row, phase) for phase in PHASES}
    sizes = {"n_steps": N_STEPS, "n_epochs": N_EPOCHS, "minibatches": MINIBATCHES, "updates": options.updates}
    return {"sizes": {**sizes, "num_envs": options.num_envs, "seed": SEED}, "cores": rows}


def tables(report: Row) -> list[Table]:
    """List one table a core."""
    cores = dict.fromkeys(row["core"] for row in report["cores"])
    return [_table([row for row in report["cores"] if row["core"] == core]) for core in cores]


def _table(rows: list[Row]) -> Table:
    """Build the table of one core: a row for each phase, and two columns for each number of envs."""
    return Table(
        f"phases of an update, MemoryPPO {rows[0]['core']}",
        (*PHASES, TOTAL),
        [Column("phase", str), *(column for row in rows for column in _columns(row))],
        [
            turns_note(rows, "ms of an update and share of all of it"),
            f"CartPole without velocities, {N_STEPS} steps, {N_EPOCHS} epochs × {MINIBATCHES} minibatches",
        ],
    )


def _columns(row: Row) -> list[Column]:
    return [
        Column(f"{row['num_envs']} envs,\nms", lambda phase: milliseconds(median(values(row, phase)))),
        Column("\nshare", lambda phase: "" if phase == TOTAL else f"{share(row, phase):.1%}"),
    ]
