"""Results of a suite, as data and as tables. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ctrl.experiments.compare.ablation_results import thinned
from ctrl.experiments.errors import UserError
from ctrl.experiments.plain_data import build, reading, shown
from ctrl.experiments.report.summary import (
    Evaluation,
    FailedRun,
    Point,
    RunSummary,
    bytes_text,
    count_text,
    duration_text,
    number_text,
    titled,
)
from ctrl.experiments.report.tables import markdown_table, terminal_table
from ctrl.experiments.runs.run_folder import read_json

RESULTS = "suite.json"
"""File with the results of a suite."""
CURVE_POINTS = 20
"""Largest number of points that are kept of a run's curve."""
FIELDS = {"success": "success", "normalised": "normalised", "return": "return_mean"}
"""Fields of `HeldOut`, by the score that a task shows."""


@dataclass(frozen=True)
class HeldOut:
    """Results of held-out episodes, whose seeds training never uses."""

    episodes: int
    return_mean: float
    success: float | None
    """Success rate; None if the task reports none."""
    normalised: float | None
    """`return_mean` scaled to 0 for a random agent and 1 for a perfect one; None if their scores are not known."""

    @classmethod
    def of(cls, evaluation: Evaluation) -> HeldOut:
        """Return the short form of an evaluation."""
        return cls(evaluation.episodes, evaluation.return_mean, evaluation.success, evaluation.normalised)

    def score(self, name: str) -> float:
        """Return a score by the name that the task gives it.

        :param name: one of `FIELDS`
        :raises ValueError: if the evaluation has no such score
        """
        value = getattr(self, FIELDS[name])
        if value is None:
            raise ValueError(f"this evaluation has no {name}")
        return float(value)


@dataclass(frozen=True)
class SuiteRun:
    """Results of one training run, in short form."""

    task: str
    core: str
    learning_rate: float
    seed: int
    width: int | None
    """Number of features of a layer; None for the default of the core."""
    steps: int
    parameters: int
    state_bytes: int
    steps_per_second: float
    wall_seconds: float
    """Wall time of acting and learning."""
    held_out: HeldOut
    transfer: HeldOut | None = None
    """Results of the second evaluation, if the task has one."""
    curve: list[list[float]] = field(default_factory=list)
    """Points [steps, mean return in training]; see `ablation_results.thinned`."""

    @classmethod
    def of(cls, task: str, run: RunSummary, transfer: HeldOut | None, curve: Sequence[Point]) -> SuiteRun:
        """Return the short form of a finished and evaluated run."""
        assert run.evaluation is not None
        return cls(
            task=task,
            core=run.core,
            learning_rate=run.hyperparameters["ppo"]["learning_rate"],
            seed=run.seed,
            width=run.hyperparameters["memory"]["width"],
            steps=run.steps,
            parameters=run.parameters,
            state_bytes=run.state_bytes,
            steps_per_second=round(run.steps_per_second, 1),
            wall_seconds=round(run.wall_seconds, 1),
            held_out=HeldOut.of(run.evaluation),
            transfer=transfer,
            curve=thinned([point._replace(success=point.return_) for point in curve], CURVE_POINTS),
        )

    @property
    def job_name(self) -> str:
        """Name of the job that the run came from."""
        return f"{contender_label(self.task, self.core, self.learning_rate)}/seed{self.seed}"

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SuiteRun:
        """Rebuild a run from plain data."""
        return build(cls, data, "run")

    @property
    def merit(self) -> tuple[float, float]:
        """Values that learning rates are compared by: mean return in the last fifth of training, then in all of it.

        Held-out episodes are not used.
        """
        returns = [value for _, value in self.curve]
        return (fmean(returns[-(len(returns) // 5 or 1) :]), fmean(returns)) if returns else (-inf, -inf)


def contender_label(task: str, core: str, learning_rate: float) -> str:
    """Return the label of a core's runs on a task with one learning rate."""
    return f"{task}/{core}-{learning_rate:g}"


def best_rate(runs: Sequence[SuiteRun]) -> float | None:
    """Return the learning rate with which seed 0 did best; None if no run has seed 0.

    :param runs: runs of one core on one task
    """
    first = [run for run in runs if run.seed == 0]
    return max(first, key=lambda run: run.merit).learning_rate if first else None


@dataclass(frozen=True)
class Results:
    """Contents of a `suite.json` that tables show."""

    command: str
    tasks: dict[str, dict[str, Any]]
    """Facts about each task by name, such as the score it shows and that score by chance and by perfect play."""
    cores: list[str]
    notes: list[str]
    """Notes that explain the numbers."""
    runs: list[SuiteRun]
    failures: list[FailedRun]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Results:
        """Read the parts that tables show from the data of a `suite.json`.

        :raises UserError, KeyError, TypeError: if `data` is something else
        """
        names = ("command", "tasks", "cores", "notes", "runs", "failures")
        if not isinstance(data, dict):
            raise UserError(f"they must be a table, got {shown(data)}")
        results = build(cls, {name: data[name] for name in names}, "results")
        _ = rows(results)  # which needs all facts about each task
        return results

    def of(self, task: str, core: str) -> list[SuiteRun]:
        """Return the runs of a core on a task, with all learning rates."""
        return [run for run in self.runs if (run.task, run.core) == (task, core)]

    def rate(self, task: str, core: str) -> float | None:
        """Return the best learning rate of a core on a task; None without a run."""
        return best_rate(self.of(task, core))

    def chosen(self, task: str, core: str) -> list[SuiteRun]:
        """Return the runs of a core on a task with its best learning rate, by seed."""
        rate = self.rate(task, core)
        return sorted((run for run in self.of(task, core) if run.learning_rate == rate), key=lambda run: run.seed)

    def tuning(self) -> dict[str, dict[str, Any]]:
        """Return the chosen learning rate of each core on each task, and the late return of seed 0 with every rate.

        The late return is the mean of the last fifth of training. Cores with one rate are left out.
        """
        found: dict[str, dict[str, Any]] = {}
        for task, core in dict.fromkeys((run.task, run.core) for run in self.runs):
            first = [run for run in self.of(task, core) if run.seed == 0]
            if len(first) > 1:
                returns = {f"{run.learning_rate:g}": round(run.merit[0], 4) for run in first}
                found.setdefault(task, {})[core] = {"returns": returns, "chosen": self.rate(task, core)}
        return found


def results_file(path: Path) -> Path:
    """Return the `suite.json` that a path names: itself, or the one in a folder."""
    return path / RESULTS if path.is_dir() else path


def read_results(path: Path) -> Results:
    """Read a `suite.json`, or the one in a folder.

    :raises UserError: if it is missing or holds something else
    """
    path = results_file(path)
    data = read_json(path)
    with reading(path, "no results of a suite"):
        return Results.from_json(data)


@dataclass(frozen=True)
class Row:
    """Row of the table of scores: a task, and the scores of each core by seed."""

    title: str
    score: str
    """Name of the score that is shown."""
    chance: float | None
    perfect: float | None
    scores: dict[str, list[float]]

    @property
    def best(self) -> str | None:
        """Core whose lowest seed is above every seed of the others; None if there is none, or a core has one seed."""
        known = {core: values for core, values in self.scores.items() if values}
        if len(known) < 2 or min(map(len, known.values())) < 2:
            return None
        leader = max(known, key=lambda core: min(known[core]))
        others = max(max(values) for core, values in known.items() if core != leader)
        return leader if min(known[leader]) > others else None


def rows(results: Results) -> list[Row]:
    """Return the rows of the table of scores."""
    found = []
    for name, task in results.tasks.items():
        runs = {core: results.chosen(name, core) for core in results.cores}
        shown = {core: [run.held_out.score(task["score"]) for run in seeds] for core, seeds in runs.items()}
        found.append(Row(name, task["score"], task["chance"], task["perfect"], shown))
        if task["transfer"] is not None:
            found.append(_transfer_row(name, task, runs))
    return found


def _transfer_row(name: str, task: dict[str, Any], runs: dict[str, list[SuiteRun]]) -> Row:
    score, transfer = task["score"], task["transfer"]
    shown = {
        core: [run.transfer.score(score) for run in seeds if run.transfer is not None] for core, seeds in runs.items()
    }
    title = f"{name}, then {' '.join(transfer['changes'])}"
    return Row(title, score, transfer["chance"], transfer["perfect"], shown)


def score_text(values: Sequence[float]) -> str:
    """Return the mean as text, with the range if there is more than one seed."""
    if len(values) < 2:
        return number_text(values[0] if values else None)
    return f"{fmean(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def score_columns(results: Results) -> tuple[str, ...]:
    """Return the column names of the table of scores."""
    return ("task", "score", "chance", *results.cores, "perfect")


def score_cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row, in the order of `score_columns`."""
    cells = (score_text(values) for values in row.scores.values())
    return row.title, row.score, number_text(row.chance), *cells, number_text(row.perfect)


COST_COLUMNS = ("task", "core", "rate", "width", "parameters", "state", "steps", "steps/s", "time")


def cost_cells(results: Results) -> list[tuple[str, ...]]:
    """Return the rows of the table of costs, one for each core and task, in the order of `COST_COLUMNS`."""
    pairs = ((task, core) for task in results.tasks for core in results.cores)
    return [(task, core, *_costs(runs)) for task, core in pairs if (runs := results.chosen(task, core))]


def _costs(runs: Sequence[SuiteRun]) -> tuple[str, ...]:
    first = runs[0]
    return (
        f"{first.learning_rate:g}",
        "default" if first.width is None else str(first.width),
        f"{first.parameters:,}",
        bytes_text(first.state_bytes),
        count_text(first.steps),
        f"{median(run.steps_per_second for run in runs):,.0f}",
        duration_text(median(run.wall_seconds for run in runs)),
    )


def markdown(results: Results) -> str:
    """Return the results as a page of markdown."""
    names = score_columns(results)
    scores = (_bold(row, names) for row in rows(results))
    notes = "".join(f"- {note}\n" for note in results.notes)
    costs = markdown_table(COST_COLUMNS, cost_cells(results))
    head = f"# Memory suite\n\n`{results.command}`"
    return f"{head}\n\n{markdown_table(names, scores)}\n{notes}\n## What it cost\n\n{costs}"


def _bold(row: Row, names: Sequence[str]) -> list[str]:
    return [f"**{cell}**" if name == row.best else cell for name, cell in zip(names, score_cells(row), strict=True)]


def tables(results: Results) -> RenderableType:
    """Build the tables of scores and of costs for a terminal."""
    names = score_columns(results)
    scores = terminal_table(names, (_green(row, names) for row in rows(results)))
    costs = terminal_table(COST_COLUMNS, cost_cells(results))
    return Group(titled("scores", scores, "\n".join(results.notes)), Text(), titled("what it cost", costs))


def _green(row: Row, names: Sequence[str]) -> list[Text]:
    cells = zip(names, score_cells(row), strict=True)
    return [Text(cell, style="bold green" if name == row.best else "") for name, cell in cells]
