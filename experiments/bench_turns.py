"""What the benchmarks share: turns, what is made of them, and the frame of a table.

Those that are compared take turns (A B C, A B C, …), so that what else the machine does meets all of them. A ratio is
taken within a turn, and the median over the turns is reported.
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
from ctrl.compressive import CompressiveCore
from ctrl.experiments import provenance
from ctrl.experiments.listing import compact_table
from ctrl.experiments.summary import MISSING, titled
from ctrl.memory import reach

SEED = 0

Key = TypeVar("Key")
Result = TypeVar("Result")


def take_turns(
    workers: Mapping[Key, Callable[[], Result]],
    repeats: int,
    show: Callable[[int, Key, Result], None] | None = None,
) -> dict[Key, list[Result]]:
    """Let each worker work once in every turn.

    :param workers: by name, what does the work of one turn and returns what it measured
    :param repeats: turns
    :param show: called with turn (from 1), name and result, while it goes on
    :return: by name, the results of all turns
    """
    turns: dict[Key, list[Result]] = {name: [] for name in workers}
    for turn in range(1, repeats + 1):
        for name, work in workers.items():
            turns[name].append(work())
            if show is not None:
                show(turn, name, turns[name][-1])
    return turns


def shower(console: Console, repeats: int, text: Callable[[Any], str]) -> Callable[[int, Any, Any], None]:
    """Return a `show` for `take_turns` that prints a line for each result."""

    def show(turn: int, name: object, result: Any) -> None:
        console.print(f"turn {turn}/{repeats}  {name!s:<40} {text(result)}", soft_wrap=True, markup=False)

    return show


def seconds_per_call(work: Callable[[], object], calls: int) -> float:
    """Call `work` so often, and return what a call took."""
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begin) / calls


def ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    """Return how large one's results are beside the other's: the median over turns of the ratio within a turn."""
    return median(one / other for one, other in zip(ones, others, strict=True))


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Return median and range, as they are reported."""
    return {"median": median(values), "range": [min(values), max(values)]}


def ratios(results: Mapping[str, Sequence[float]], name: str, references: Sequence[str]) -> dict[str, float]:
    """Return the ratios of `name` to those of `references` that were measured, by `ratio_to_…`."""
    return {f"ratio_to_{other}": ratio(results[name], results[other]) for other in references if other in results}


def ratio_text(value: float | None) -> str:
    """Return a ratio with two digits, or a dash for one that has no reference."""
    return MISSING if value is None else f"{value:.2f}"


def number_of(value: float) -> str:
    """Return a number with three digits that count."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def range_text(values: Sequence[float]) -> str:
    """Return the smallest and the largest."""
    return f"{number_of(min(values))}–{number_of(max(values))}"


def use_threads(threads: int | None) -> int:
    """Let torch use so many CPU threads; return how many it uses."""
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

    :param title: the line above
    :param columns: their heads; the first is that of the names
    :param rows: their cells
    :param notes: the lines below: what the numbers are, and what ratios refer to
    :param threads: of torch, where it takes part
    :param gap: spaces between columns
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
    """Return how many numbers a module's parameters are."""
    return sum(parameter.numel() for parameter in module.parameters())


def warm_state(core: ctrl.MemoryCore[Any], batch_size: int) -> Any:
    """Return a state with all slots full, of envs whose episodes are of different ages."""
    state = core.initial_state(batch_size)
    if not isinstance(core, CompressiveCore):
        return state
    generator = torch.Generator().manual_seed(SEED)
    oldest = max(map(reach, core.tiers))
    # Seven steps apart: coprime to the usual rates, so that in each step a like share of the envs compresses.
    clock = oldest + 7 * torch.arange(batch_size)
    return state._replace(clock=clock, slots=torch.randn(state.slots.shape, generator=generator))
