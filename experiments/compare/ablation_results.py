"""Results of an ablation, as data and as a table. Nothing is trained here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy as np
from rich.console import RenderableType

from ctrl.experiments.compare.ablation_config import REFERENCE, VARIANTS
from ctrl.experiments.report import tables
from ctrl.experiments.report.summary import MISSING, Point, RunSummary, count_text, number_text, titled

LEVEL = 0.9
"""Success rate in training that counts as having learned the task."""
EPISODES = 200
"""Smallest number of episodes that this success rate is taken over."""
CURVE_POINTS = 60
"""Largest number of points that are kept of a run's curve."""
LOSS_TEXTS = {
    "attention_reconstruction": "attention",
    "auto_encoding": "auto-encoding",
    "task": "task gradient",
}
"""Names of the losses in the paper."""
COLUMNS = ("compressor", "loss", "success (range)", f"until {LEVEL}", "error", "cost", "paper")


@dataclass(frozen=True)
class AblationRun:
    """Results of one training run, in short form."""

    variant: str
    seed: int
    success: float | None
    """Success rate of the held-out episodes; None if the task reports none."""
    steps_to_level: int | None
    """Env steps until the success rate in training first reached `LEVEL`; None if it never did."""
    steps: int
    wall_seconds: float
    """Wall time of acting and learning."""
    cpu_seconds: float
    """Processor time of acting and learning."""
    steps_per_second: float
    """Env steps per second of wall time."""
    reconstruction_error: dict[str, float]
    """Reconstruction errors by layer and tier; see `evaluate.reconstruction_errors`."""
    curve: list[list[float]] = field(default_factory=list)
    """Points [steps, success rate in training]; see `thinned`."""

    @classmethod
    def of(cls, variant: str, run: RunSummary, curve: Sequence[Point]) -> AblationRun:
        """Return the short form of a finished run."""
        return cls(
            variant=variant,
            seed=run.seed,
            success=None if run.evaluation is None else run.evaluation.success,
            steps_to_level=steps_to_level(curve),
            steps=run.steps,
            wall_seconds=round(run.wall_seconds, 2),
            cpu_seconds=round(run.wall_seconds if run.cpu_seconds is None else run.cpu_seconds, 2),
            steps_per_second=round(run.steps_per_second, 1),
            reconstruction_error={place: round(error, 5) for place, error in run.reconstruction_error.items()},
            curve=thinned(curve),
        )

    @property
    def seconds_per_step(self) -> float:
        """Processor time of one env step in seconds, acting and learning."""
        return self.cpu_seconds / self.steps


def steps_to_level(curve: Sequence[Point], level: float = LEVEL, episodes: int = EPISODES) -> int | None:
    """Return the env steps until the success rate of the last `episodes` episodes first reached `level`.

    The episodes of an update are taken as a whole, so the rate may be over a few more. None if it never did.
    """
    known = [point for point in curve if point.episodes and not math.isnan(point.success)]
    first = 0
    for last, point in enumerate(known):
        while _episodes(known[first + 1 : last + 1]) >= episodes:
            first += 1
        window = known[first : last + 1]
        if _episodes(window) >= episodes and _success(window) >= level:
            return point.steps
    return None


def thinned(curve: Sequence[Point], most: int = CURVE_POINTS) -> list[list[float]]:
    """Return points [steps, success rate] for at most `most` stretches of a curve, with equally many updates in each.

    The steps are those at the end of a stretch. Updates in which no episode ended are left out.
    """
    known = [point for point in curve if point.episodes and not math.isnan(point.success)]
    size = max(1, math.ceil(len(known) / most))
    stretches = [known[start : start + size] for start in range(0, len(known), size)]
    return [[stretch[-1].steps, round(_success(stretch), 3)] for stretch in stretches]


def _episodes(points: Sequence[Point]) -> int:
    return sum(point.episodes for point in points)


def _success(points: Sequence[Point]) -> float:
    return float(np.average([point.success for point in points], weights=[point.episodes for point in points]))


@dataclass(frozen=True)
class VariantResult:
    """Results of one variant over its seeds."""

    variant: str
    seeds: list[int]
    success: list[float]
    """Held-out success rate of each seed; empty if the task reports none."""
    reached: int
    """Number of seeds that reached `LEVEL` in training."""
    steps_to_level: float
    """Median over the seeds; a seed that never reached `LEVEL` counts as infinite."""
    reconstruction_error: dict[str, float]
    """Reconstruction errors by layer and tier, mean over the seeds."""
    cost: float | None
    """Median processor time of a step, as a multiple of that of `REFERENCE`; None without runs of `REFERENCE`."""

    @property
    def rank(self) -> tuple[float, float, float]:
        """Sort key of the results: held-out success rate in twentieths, then steps until the task was learned.

        The held-out success comes first because an agent may learn the task in training and forget it again.
        """
        success = fmean(self.success or [0.0])
        return -round(20 * success), self.steps_to_level, -success


def aggregate(runs: Iterable[AblationRun]) -> list[VariantResult]:
    """Summarise the runs by variant, the best variant first."""
    by_variant: dict[str, list[AblationRun]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        by_variant.setdefault(run.variant, []).append(run)
    reference = _step_cost(by_variant.get(REFERENCE.name, []))
    results = [_aggregate_variant(variant, group, reference) for variant, group in by_variant.items()]
    return sorted(results, key=lambda result: result.rank)


def _aggregate_variant(variant: str, runs: Sequence[AblationRun], reference: float | None) -> VariantResult:
    reached = [math.inf if run.steps_to_level is None else run.steps_to_level for run in runs]
    cost = _step_cost(runs)
    errors: dict[str, list[float]] = {}
    for place, error in (pair for run in runs for pair in run.reconstruction_error.items()):
        errors.setdefault(place, []).append(error)  # a run in which nothing was compressed there has none
    return VariantResult(
        variant=variant,
        seeds=[run.seed for run in runs],
        success=[run.success for run in runs if run.success is not None],
        reached=sum(map(math.isfinite, reached)),
        steps_to_level=median(reached),
        reconstruction_error={place: fmean(found) for place, found in errors.items()},
        cost=None if reference is None or cost is None else cost / reference,
    )


def _step_cost(runs: Sequence[AblationRun]) -> float | None:
    return median(run.seconds_per_step for run in runs) if runs else None


def result_cells(result: VariantResult) -> tuple[str, ...]:
    """Return the cells of a result, in the order of `COLUMNS`."""
    compressor, _, loss = result.variant.partition("+")
    paper = next((variant.paper for variant in VARIANTS if variant.name == result.variant), None)
    return (
        compressor,
        LOSS_TEXTS.get(loss, loss),
        _range_text(result.success),
        f"{_steps_text(result.steps_to_level)} ({result.reached}/{len(result.seeds)})",
        " ".join(number_text(error) for error in result.reconstruction_error.values()) or MISSING,
        MISSING if result.cost is None else f"{result.cost:.2f}",
        MISSING if paper is None else f"{paper:.3f}",
    )


def _range_text(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f} ({min(values):.2f}–{max(values):.2f})" if values else MISSING


def _steps_text(steps: float) -> str:
    return count_text(round(steps)) if math.isfinite(steps) else MISSING


def ablation_table(results: Sequence[VariantResult], title: str, caption: str) -> RenderableType:
    """Build the table for a terminal of 80 columns.

    :param results: results that `aggregate` returned
    :param title: line above the table
    :param caption: lines below the table
    """
    return titled(title, tables.terminal_table(COLUMNS, map(result_cells, results)), caption)


def markdown_table(results: Sequence[VariantResult]) -> str:
    """Return the same table as markdown."""
    return tables.markdown_table(COLUMNS, map(result_cells, results))
