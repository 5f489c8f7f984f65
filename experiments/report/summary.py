"""Results as data: those of a run, those of a core over its seeds, and tables of them. Nothing is trained here."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ctrl.experiments.plain_data import build, reading

SCHEMA = 1
MISSING = "–"
RECENT_EPISODES = 100
"""Number of training episodes that a mean is taken over, as in stable-baselines3."""


@dataclass(frozen=True)
class GroupEvaluation:
    """Results of one group of episodes, if a task divides its episodes into groups."""

    episodes: int
    success: float
    """Share of these episodes that ended in success."""


@dataclass(frozen=True)
class Evaluation:
    """Results of episodes that a trained agent played without learning."""

    episodes: int
    return_mean: float
    return_std: float
    """Population standard deviation of the return over the episodes."""
    length_mean: float
    """Mean number of steps of an episode."""
    success: float | None
    """Share of episodes that ended in success; None if the task does not report `is_success`."""
    seed: int
    """Seed of the first copy of the task."""
    deterministic: bool
    normalised: float | None = None
    """`return_mean` scaled to 0 for a random agent and 1 for a perfect one; None if their scores are not known."""
    groups: dict[str, GroupEvaluation] = field(default_factory=dict)
    """Results by name of the group, in the task's order; empty if the task has no groups."""


@dataclass(frozen=True)
class RunSummary:
    """Summary of one training run: its settings, its results and its costs."""

    core: str
    seed: int
    env: str
    env_kwargs: dict[str, Any]
    status: str
    """`finished`, `interrupted` (Ctrl-C) or `failed`."""
    steps: int
    """Env steps trained, all copies together."""
    parameters: int
    """Number of parameters of the agent, all its networks together."""
    state_bytes: int
    """Bytes of the core's state of one env."""
    steps_per_second: float
    """Env steps per second of wall time, acting and learning."""
    wall_seconds: float
    cpu_seconds: float | None = None
    """Processor time of acting and learning; unlike wall time, it hardly depends on other load on the machine."""
    training_episodes: int = 0
    """Number of the latest training episodes: `RECENT_EPISODES` or a few more, fewer if no more have ended."""
    training_return: float | None = None
    """Mean return of these episodes, whose actions were sampled."""
    training_success: float | None = None
    """Share of these episodes that ended in success; None if the task does not report it."""
    evaluation: Evaluation | None = None
    scores: dict[str, float] = field(default_factory=dict)
    """Returns of baselines to compare with, as far as they are known; see `tasks.stated_scores`."""
    reconstruction_error: dict[str, float] = field(default_factory=dict)
    """Reconstruction errors by layer and tier, such as `layer0/tier1`; see `evaluate.reconstruction_errors`."""
    message: str = ""
    """Reason why the run ended early."""
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the summary as plain data."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> RunSummary:
        """Rebuild a summary from the data of `to_json`.

        :raises UserError: if it is something else
        """
        known = {key: value for key, value in data.items() if key != "schema"} if isinstance(data, dict) else data
        return build(cls, known, "summary")

    @classmethod
    def read(cls, path: Path) -> RunSummary:
        """Read a run's `summary.json`.

        :raises UserError: if the file is missing or holds something else
        """
        from ctrl.experiments.runs.run_folder import read_json

        with reading(path, "no summary of a run"):
            return cls.from_json(read_json(path))


@dataclass(frozen=True)
class FailedRun:
    """Run that did not finish."""

    label: str
    """Name of the compared setting; runs with the same label differ only in their seed."""
    seed: int
    message: str

    @property
    def name(self) -> str:
        """Name of the run's job."""
        return f"{self.label}/seed{self.seed}"


@dataclass(frozen=True)
class CoreSummary:
    """Results of one core over its seeds."""

    core: str
    seeds: list[int]
    success: list[float]
    """Held-out success rate of each seed; empty if the task reports none."""
    returns: list[float]
    """Held-out return of each seed."""
    parameters: int
    state_bytes: int
    steps: int
    """Smallest number of env steps of a run."""
    steps_per_second: float
    """Mean over the runs."""
    wall_seconds: float
    """Mean over the runs."""


class Point(NamedTuple):
    """Row of a run's `curve.csv`: results of the episodes that ended in the data of one update."""

    steps: int
    """Env steps so far, all copies together."""
    return_: float
    """Mean return of the episodes that ended; NaN if none did."""
    success: float
    """Share of these episodes that succeeded; NaN if none ended or the task does not report it."""
    episodes: int
    """Number of episodes that ended."""
    steps_per_second: float
    """Env steps per second since the start of training."""


CURVE_COLUMNS = ("steps", "return", "success", "episodes", "steps_per_second")


def read_curve(path: Path) -> list[Point]:
    """Read a run's `curve.csv` up to the first line that is not sound, such as one that is still being written.

    :return: the points; none if there is no such file
    """
    points: list[Point] = []
    if not path.is_file():
        return points
    unsound = suppress(KeyError, TypeError, ValueError, OverflowError, csv.Error)
    with path.open(newline="", encoding="utf-8", errors="replace") as file, unsound:
        points.extend(map(_point, csv.DictReader(file)))  # where a row raises, those before it stay
    return points


def _point(row: dict[str, str]) -> Point:
    steps, return_, success, episodes, speed = (float(row[column]) for column in CURVE_COLUMNS)
    if min(steps, episodes) < 0 or math.inf in (abs(return_), abs(success), speed):
        raise ValueError(f"{row} is no point of a curve")
    return Point(int(steps), return_, success, int(episodes), speed)


def recent(curve: Sequence[Point], episodes: int = RECENT_EPISODES) -> Point:
    """Return the last point of a curve, with means over the latest episodes.

    :param curve: at least one point
    :param episodes: smallest number of episodes; those of an update are taken as a whole
    """
    taken: list[Point] = []
    for point in reversed(curve):
        if sum(each.episodes for each in taken) >= episodes:
            break
        taken += [point] if point.episodes else []
    count = sum(each.episodes for each in taken)
    if not count:
        return curve[-1]
    return_ = sum(each.episodes * each.return_ for each in taken) / count
    success = sum(each.episodes * each.success for each in taken) / count
    return curve[-1]._replace(return_=return_, success=success, episodes=count)


def aggregate(runs: Iterable[RunSummary]) -> list[CoreSummary]:
    """Summarise runs by core, in the order in which the cores appear."""
    by_core: dict[str, list[RunSummary]] = {}
    for run in runs:
        by_core.setdefault(run.core, []).append(run)
    return [_aggregate_core(core, sorted(group, key=lambda run: run.seed)) for core, group in by_core.items()]


def _aggregate_core(core: str, runs: Sequence[RunSummary]) -> CoreSummary:
    evaluations = [run.evaluation for run in runs if run.evaluation is not None]
    return CoreSummary(
        core=core,
        seeds=[run.seed for run in runs],
        success=[evaluation.success for evaluation in evaluations if evaluation.success is not None],
        returns=[evaluation.return_mean for evaluation in evaluations],
        parameters=runs[0].parameters,
        state_bytes=runs[0].state_bytes,
        steps=min(run.steps for run in runs),
        steps_per_second=fmean(run.steps_per_second for run in runs),
        wall_seconds=fmean(run.wall_seconds for run in runs),
    )


def comparison_table(
    cores: Sequence[CoreSummary], title: str, baselines: dict[str, float] | None = None, caption: str | None = None
) -> RenderableType:
    """Build the table of a comparison; it fits a terminal of 80 columns.

    :param cores: results that `aggregate` returned
    :param title: line above the table
    :param baselines: returns of baselines by name, such as `no memory`
    :param caption: line below the table
    """
    show_success = any(core.success for core in cores)
    # Many tasks pay 1 for a success and nothing else; their return would be the same number again.
    show_return = show_success and any(core.success != core.returns for core in cores)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("core", style="bold", no_wrap=True)
    table.add_column("success" if show_success else "return", justify="right")
    table.add_column("by seed")
    if show_return:
        table.add_column("return", justify="right")
    for name in ("params", "state", "steps/s", "time"):
        table.add_column(name, justify="right")
    for core in cores:
        table.add_row(*_core_cells(core, show_success, show_return))
    for name, score in (baselines or {}).items():
        table.add_row(name, *(["", ""] if show_return else []), f"{score:.2f}", style="dim")
    return titled(title, table, caption)


def _core_cells(core: CoreSummary, show_success: bool, show_return: bool) -> list[str]:
    shown = core.success if show_success else core.returns
    return [
        core.core,
        mean_text(shown),
        " ".join(f"{value:.2f}" for value in shown),
        *([mean_text(core.returns)] if show_return else []),
        f"{core.parameters:,}",
        bytes_text(core.state_bytes),
        f"{core.steps_per_second:,.0f}",
        duration_text(core.wall_seconds),
    ]


def titled(title: str, table: Table, caption: str | None = None) -> RenderableType:
    """Put a title above a table and a caption below it; rich's own would be wrapped to the width of the table."""
    below = [Text(caption, style="dim")] if caption else []
    return Group(Text(title, style="bold"), table, *below)


def run_table(run: RunSummary) -> RenderableType:
    """Build the table that `ctrl train` prints."""
    table = Table(show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value")
    for name, value in _run_rows(run):
        table.add_row(name, value)
    return titled(f"{run.core} on {run.env}, seed {run.seed}", table)


def _run_rows(run: RunSummary) -> list[tuple[str, str]]:
    rows = [
        ("status", run.status),
        ("steps", f"{run.steps:,} in {duration_text(run.wall_seconds)} ({run.steps_per_second:,.0f} steps/s)"),
        ("parameters", f"{run.parameters:,}"),
        ("state", f"{bytes_text(run.state_bytes)} for each env"),
    ]
    if run.training_return is not None:
        success = "" if run.training_success is None else f", success {run.training_success:.2f}"
        latest = f"last {run.training_episodes} training episodes"
        rows.append((latest, f"return {run.training_return:.2f}{success}, actions sampled"))
    if run.evaluation is not None:
        rows.append((f"evaluation ({run.evaluation.episodes} episodes)", evaluation_text(run.evaluation)))
    return [*rows, *((f"  {name}", f"return {score:.2f}") for name, score in run.scores.items())]


def evaluation_text(evaluation: Evaluation) -> str:
    """Return the results of an evaluation in one line."""
    success = "" if evaluation.success is None else f", success {evaluation.success:.2f}"
    return f"return {evaluation.return_mean:.2f} ± {evaluation.return_std:.2f}{success}"


def mean_text(values: Sequence[float]) -> str:
    """Return the mean with two decimals, or a dash if there are no values."""
    return f"{fmean(values):.2f}" if values else MISSING


def number_text(value: float | None) -> str:
    """Return a number with two decimals, or a dash for None and NaN."""
    return MISSING if value is None or math.isnan(value) else f"{value:.2f}"


def bytes_text(size: int) -> str:
    """Return a size as text in B, KiB or MiB."""
    if size < 1024:
        return f"{size} B"
    return f"{size / 1024:.1f} KiB" if size < 1024**2 else f"{size / 1024**2:.1f} MiB"


def count_text(count: int) -> str:
    """Return a count as text, large ones in k or M."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.2f}M"


def duration_text(seconds: float) -> str:
    """Return a duration as `42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
