"""What training shows while it runs: a live bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ctrl.experiments.summary import Point, count_text, number_text

PLAIN_LINES = 10
"""Lines that a whole run prints where there is no terminal."""


class Reporter(Protocol):
    """Where a training run tells how far it is."""

    def advance(self, steps: int) -> None:
        """Env steps so far."""

    def record(self, point: Point) -> None:
        """What the latest training episodes brought."""


class SilentReporter:
    """Shows nothing; whoever started the run reads its `curve.csv`."""

    def advance(self, steps: int) -> None:
        """Show nothing."""

    def record(self, point: Point) -> None:
        """Show nothing."""


class StepsColumn(ProgressColumn):
    """Env steps as `123k/300k`."""

    def render(self, task: Task) -> Text:
        """Draw the column."""
        return Text(f"{count_text(int(task.completed))}/{count_text(int(task.total or 0))}", style="progress.download")


def training_progress(console: Console) -> Progress:
    """Build the live display; each of its tasks has the field `state`."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        StepsColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(compact=True),
        console=console,
    )


def point_text(point: Point) -> str:
    """Say how a run stands: `1,234 steps/s · return 0.87 · success 0.91`."""
    parts = [f"{point.steps_per_second:,.0f} steps/s"]
    if point.episodes:
        parts.append(f"return {number_text(point.return_)}")
    if point.success == point.success:  # not NaN
        parts.append(f"success {point.success:.2f}")
    return " · ".join(parts)


class LiveReporter:
    """A progress bar with steps/s and return; plain lines where the output is no terminal."""

    def __init__(self, console: Console, name: str, total: int) -> None:
        self.console = console
        self.name = name
        self.total = total
        self._next_line = 0.0
        self._progress = training_progress(console)
        self._task = self._progress.add_task(name, total=total, state="starting")

    def __enter__(self) -> LiveReporter:
        if self.console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._progress.stop()

    def advance(self, steps: int) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=min(steps, self.total))

    def record(self, point: Point) -> None:
        """Show steps/s, return and success."""
        self._progress.update(self._task, completed=min(point.steps, self.total), state=point_text(point))
        if not self.console.is_terminal and point.steps >= self._next_line:
            self._next_line = point.steps + self.total / PLAIN_LINES
            self.console.print(f"{self.name}  {count_text(point.steps)}/{count_text(self.total)}  {point_text(point)}")
