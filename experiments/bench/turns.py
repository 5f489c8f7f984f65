"""Shared parts of the benchmarks: turns, statistics over turns, and the layout of a table.

The models or agents to compare take turns (A B C, A B C, …), so that other load on the machine affects all of them. A
ratio is taken within a turn, and the median over the turns is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

import torch
from rich.console import Console, RenderableType
from torch import nn

import ctrl
from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.tiers import reach
from ctrl.experiments.report import provenance
from ctrl.experiments.report.summary import MISSING, titled
from ctrl.experiments.tasks.listing import compact_table

SEED = 0

Key = TypeVar("Key")
Result = TypeVar("Result")


def take_turns(
    workers: Mapping[Key, Callable[[], Result]],
    repeats: int,
    show: Callable[[int, Key, Result], None] | None = None,
) -> dict[Key, list[Result]]:
    """Call each worker once in every turn.

    :param workers: functions by name that do the work of one turn and return its result
    :param repeats: number of turns
    :param show: called with the turn (from 1), the name and the result after each worker
    :return: results of all turns, by name
    """
    turns: dict[Key, list[Result]] = {name: [] for name in workers}
    for turn in range(1, repeats + 1):
        for name, work in workers.items():
            turns[name].append(work())
            if show is not None:
                show(turn, name, turns[name][-1])
    return turns


def shower(console: Console, repeats: int, text: Callable[[Any], str]) -> Callable[[int, Any, Any], None]:
    """Return a function for the `show` of `take_turns` that prints a line for each result."""

    def show(turn: int, name: object, result: Any) -> None:
        console.print(f"turn {turn}/{repeats}  {name!s:<40} {text(result)}", soft_wrap=True, markup=False)

    return show


def seconds_per_call(work: Callable[[], object], calls: int) -> float:
    """Call `work` for `calls` times and return the mean seconds of a call."""
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begin) / calls


def ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """Return the ratio of the results `ones` to `others`: the median over turns of the ratio within a turn."""
    return median(one / other for one, other in zip(ones, others, strict=True))


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Return median and range, as in the reports."""
    return {"median": median(values), "range": [min(values), max(values)]}


def ratios(results: Mapping[str, Sequence[float]], name: str, references: Sequence[str]) -> dict[str, float]:
    """Return the ratios of `name` to the `references` that were measured, by `ratio_to_…`."""
    return {f"ratio_to_{other}": ratio(results[name], results[other]) for other in references if other in results}


def ratio_text(value: float | None) -> str:
    """Return a ratio with two decimals, or a dash for one that has no reference."""
    return MISSING if value is None else f"{value:.2f}"


def number_of(value: float) -> str:
    """Return a number with three significant digits; from 100 on, as a whole number."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def range_text(values: Sequence[float]) -> str:
    """Return the smallest and the largest value as text."""
    return f"{number_of(min(values))}–{number_of(max(values))}"


def use_threads(threads: int | None) -> int:
    """Let torch use `threads` CPU threads, unless None, and return the number that it uses."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def framed(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    threads: int | None = None,
    *,
    gap: int = 2,
) -> RenderableType:
    """Build a table of at most 100 columns, with the machine it was measured on below it.

    :param title: line above the table
    :param columns: heads of the columns; the first column has the names
    :param rows: cells of each row
    :param notes: lines below the table: the meaning of the numbers and of ratios
    :param threads: number of torch's threads, if torch is used
    :param gap: number of spaces between columns
    """
    table = compact_table(columns[0], columns[1:])
    table.padding = (0, gap - 1, 0, 0)
    for row in rows:
        table.add_row(*row)
    machine = provenance.machine()
    where = f"{machine['cpu']}, {machine['cores']} cores"
    lines = [*notes, where if threads is None else f"{where}; torch threads: {threads}"]
    return titled(title, table, "\n".join(lines))


def count(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def warm_state(core: ctrl.MemoryCore[Any], batch_size: int) -> Any:
    """Return a state with all slots full, of envs whose episodes have different ages.

    A core other than the compressive one gets its initial state.
    """
    state = core.initial_state(batch_size)
    if not isinstance(core, CompressiveCore):
        return state
    generator = torch.Generator().manual_seed(SEED)
    oldest = max(map(reach, core.tiers))
    # Seven steps apart: coprime to the usual rates, so that about equally many envs compress in each step.
    clock = oldest + 7 * torch.arange(batch_size)
    return state._replace(clock=clock, slots=torch.randn(state.slots.shape, generator=generator))
