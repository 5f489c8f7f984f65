"""Progress of training: a live bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ctrl.experiments.report.summary import Point, count_text, number_text

PLAIN_LINES = 10
"""Number of lines that a whole run prints if there is no terminal."""


class Reporter:
    """Receiver of the progress of a training run; this one shows nothing.

    A worker process has it: its parent reads the `curve.csv` of the run instead.
    """

    def advance(self, steps: int) -> None:
        """Take the number of env steps so far."""

    def record(self, point: Point) -> None:
        """Take the results of the latest training episodes."""


class StepsColumn(ProgressColumn):
    """Column that shows env steps as `123k/300k`."""

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
    """Describe the latest results of a run: `1,234 steps/s · return 0.87 · success 0.91`."""
    parts = [f"{point.steps_per_second:,.0f} steps/s"]
    if point.episodes:
        parts.append(f"return {number_text(point.return_)}")
    if point.success == point.success:  # not NaN
        parts.append(f"success {point.success:.2f}")
    return " · ".join(parts)


class LiveReporter(Reporter):
    """Progress bar with steps/s, return and success; plain lines if the output is no terminal."""

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

    def __exit__(self, *_: object) -> None:
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
