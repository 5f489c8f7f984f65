"""Tables for a terminal and for markdown, and the lines about results and failed runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from ctrl.experiments.report.summary import FailedRun

TEXTS = 2
"""Number of columns with names; the columns after them have numbers."""


def terminal_table(columns: Sequence[str], rows: Iterable[Sequence[RenderableType]]) -> Table:
    """Build a table for a terminal: first the columns with names, then those with numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for position, name in enumerate(columns):
        table.add_column(Text(name), justify="left" if position < TEXTS else "right", style="" if position else "bold")
    for row in rows:
        # Names may come from a file, so they are no markup.
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return the same table as markdown."""
    rule = ["---" if position < TEXTS else "---:" for position in range(len(columns))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (columns, rule, *rows))


def print_places(console: Console, *places: tuple[str, object]) -> None:
    """Print where results are, one `name: place` a line."""
    for name, place in places:
        console.print(f"{name:>11}: {place}", soft_wrap=True)


def print_failures(failures: Iterable[FailedRun], console: Console) -> None:
    """Print a line for each run that did not finish."""
    for failure in failures:
        console.print(f"{failure.name}: {failure.message}", style="bold red", soft_wrap=True, markup=False)
