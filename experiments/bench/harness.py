"""Harness of the benchmarks: cases that take turns, statistics over the turns, and tables of a report.

A benchmark is a module with three parts:

- `Options`: a dataclass on `BenchOptions` or `TorchOptions`; its docstrings are the `--help`;
- `run(options, console)`: lists the cases, lets `measure` time them, and returns its part of the report as plain data;
- `tables(report)`: lists the tables of a report, also of one that was read from its JSON file.

The cases take turns (A B C, A B C, …), so that other load on the machine affects all of them. A ratio is taken within a
turn, and the median over the turns is reported. `ctrl.experiments.bench.bench` does the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console, RenderableType

from ctrl.experiments.report.summary import MISSING, titled
from ctrl.experiments.tasks.listing import compact_table

SEED = 0

Turn = dict[str, Any]
"""Results of one turn of a case, by name; the one that is compared comes first."""
Row = dict[str, Any]
"""Results of a case in a report."""


class Case(NamedTuple):
    """One thing to measure."""

    name: str
    about: Row
    """Its sizes and names in the report."""
    turn: Callable[[], Turn]
    """Function that makes one timed turn."""


def measure(cases: Sequence[Case], repeats: int, console: Console, bases: Mapping[str, str] | None = None) -> list[Row]:
    """Measure cases in turns, and print a line after each.

    :param cases: cases to compare with each other; their names differ
    :param repeats: number of turns
    :param bases: names of the cases that the first result is compared with, by the name of the ratio; those that are
        not among the cases are left out
    :return: for each case what it is about, its `turns`, median and range of each result that is a float, and its
        ratios
    """
    turns: dict[str, list[Turn]] = {case.name: [] for case in cases}
    for turn in range(1, repeats + 1):
        for case in cases:
            turns[case.name].append(case.turn())
            name, value = next(iter(turns[case.name][-1].items()))
            line = f"turn {turn}/{repeats}  {case.name:<40} {name}: {number_of(value)}"
            console.print(line, soft_wrap=True, markup=False)
    return [
        {
            **case.about,
            "turns": turns[case.name],
            **_summaries(turns[case.name]),
            **{name: ratio(turns[case.name], turns[base]) for name, base in (bases or {}).items() if base in turns},
        }
        for case in cases
    ]


def _summaries(turns: Sequence[Turn]) -> Row:
    floats = [name for name in turns[0] if all(isinstance(turn.get(name), float) for turn in turns)]
    return {name: summarise([turn[name] for turn in turns]) for name in floats}


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Return median and range, as in the reports."""
    return {"median": median(values), "range": [min(values), max(values)]}


def ratio(ones: Sequence[Turn], others: Sequence[Turn]) -> float:
    """Return the ratio of the first results of `ones` to those of `others`: the median of the ratio within a turn."""
    firsts = ([next(iter(turn.values())) for turn in turns] for turns in (ones, others))
    quotients: list[float] = [one / other for one, other in zip(*firsts, strict=True)]
    return median(quotients)


def seconds_per_call(work: Callable[[], object], calls: int, warm_up: int = 0) -> float:
    """Return the mean seconds of a call of `work` over `calls`, after `warm_up` calls that are not timed."""
    for _ in range(warm_up):
        work()
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - begin) / calls


def calls_per_second(work: Callable[[], object], seconds: float) -> float:
    """Return how many times a second `work` is called, measured over whole calls of at least `seconds` together."""
    calls, begin = 0, time.perf_counter()
    while True:
        work()
        calls += 1
        spent = time.perf_counter() - begin
        if spent >= seconds:
            return calls / spent


def number_of(value: float) -> str:
    """Return a number with three significant digits; from 100 on, as a whole number."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds, as a number."""
    return number_of(1e3 * seconds)


Form = Callable[[float], str]
"""Function that writes a number."""


@dataclass(frozen=True)
class Column:
    """Column of a table; the other constructors are for what the columns of most tables have."""

    head: str
    cell: Callable[[Any], str]
    """Function that returns the text of a row."""

    @classmethod
    def text(cls, head: str, name: str) -> Column:
        """Show what the report has under `name`, as it is."""
        return cls(head, lambda row: str(row[name]))

    @classmethod
    def count(cls, head: str, name: str) -> Column:
        """Show a whole number."""
        return cls(head, lambda row: f"{row[name]:,}")

    @classmethod
    def ratio(cls, head: str, name: str) -> Column:
        """Show a ratio, or a dash if it was not measured."""
        return cls(head, lambda row: f"{row[name]:.2f}" if name in row else MISSING)

    @classmethod
    def median(cls, head: str, name: str, form: Form = number_of) -> Column:
        """Show the median of a result over the turns."""
        return cls(head, lambda row: form(median(values(row, name))))

    @classmethod
    def range(cls, head: str, name: str, form: Form = number_of) -> Column:
        """Show the smallest and the largest value of a result."""
        return cls(head, lambda row: "–".join(form(end(values(row, name))) for end in (min, max)))


@dataclass(frozen=True)
class Table:
    """Table of a report, at most 100 characters wide."""

    title: str
    rows: Sequence[Any]
    columns: Sequence[Column]
    """Columns; the first has the names."""
    notes: Sequence[str]
    """Lines below the table: the meaning of the numbers and of ratios."""

    def render(self, report: Row) -> RenderableType:
        """Lay the table out, with the machine that it was measured on below it."""
        heads = [column.head for column in self.columns]
        table = compact_table(heads[0], heads[1:])
        table.padding = (0, 1, 0, 0)
        for row in self.rows:
            table.add_row(*(column.cell(row) for column in self.columns))
        return titled(self.title, table, "\n".join([*self.notes, where(report)]))


def where(report: Row) -> str:
    """Return the line on the machine that a report was measured on."""
    machine, threads = report["machine"], report.get("torch_threads")
    return f"{machine['cpu']}, {machine['cores']} cores" + ("" if threads is None else f"; torch threads: {threads}")


def turns_note(rows: Sequence[Row], meaning: str) -> str:
    """Return the note on the number of turns and the meaning of the numbers."""
    return f"median of {len(rows[0]['turns'])} interleaved turns; {meaning}"


def values(row: Row, name: str) -> list[Any]:
    """Return a result of all turns."""
    return [turn[name] for turn in row["turns"]]
