"""Learning curves as matplotlib figures. Nothing here needs a display, trains, or keeps global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter
from numpy.typing import NDArray

from ctrl.experiments.summary import Point

# The Okabe-Ito palette, which colour-blind readers can tell apart. A core has the same colour in every picture.
COLOURS = {
    "compressive": "#0072B2",
    "adaptive": "#882255",
    "lstm": "#D55E00",
    "gru": "#009E73",
    "mingru": "#E69F00",
    "transformer_xl": "#CC79A7",
    "gtrxl": "#F0E442",
    "feedforward": "#7F7F7F",
}
# Of pictures in which all have the same core.
SERIES_COLOURS = {
    "MemoryPPO": "#0072B2",
    "MemoryImpala": "#D55E00",
    "rate 1": "#7F7F7F",
    "rate 2": "#E69F00",
    "rate 4": "#0072B2",
    "rate 8": "#009E73",
}
OTHER_COLOURS = ("#56B4E9", "#000000")
X_LABELS = {"steps": "environment steps", "seconds": "seconds of training"}
GRID_POINTS = 120
SMOOTHING = 0.03
"""Width of the moving mean, as a share of the whole run."""

Floats = NDArray[np.float64]


def colour_of(core: str) -> str:
    """Return the colour of a core or another series; unknown ones get a stable one of their own."""
    return COLOURS.get(core) or SERIES_COLOURS.get(core) or OTHER_COLOURS[sum(map(ord, core)) % len(OTHER_COLOURS)]


def learning_curves(
    curves: Mapping[str, Sequence[Sequence[Point]]],
    *,
    title: str,
    reference: tuple[str, float] | None = None,
    metric: str | None = None,
    by: str = "steps",
) -> Figure:
    """Draw mean and range over seeds of every core.

    :param curves: for each core, or by any other name, the curve of each seed
    :param title: the line above the picture
    :param reference: name and value of a score to compare with, drawn as a dashed line
    :param metric: `success` or `return`; by default success where any curve has it
    :param by: `steps`, or `seconds` since training began
    """
    metric = metric or ("success" if _has_success(curves) else "return")
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for core, seeds in curves.items():
        _draw_core(axes, core, seeds, metric, by)
    if reference is not None:
        _draw_reference(axes, *reference, metric)
    axes.set_xlabel(X_LABELS[by])
    _decorate(axes, title, metric, max((len(seeds) for seeds in curves.values()), default=1))
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as PNG."""
    figure.savefig(path, format="png", facecolor="white")


def resample(curve: Sequence[Point], metric: str, grid: Floats, by: str = "steps") -> Floats:
    """Return a curve's smoothed values at the steps, or seconds, of `grid`; NaN outside of it."""
    steps = _positions(curve, by)
    values = np.array([_value(point, metric) for point in curve], dtype=np.float64)
    weights = np.array([point.episodes for point in curve], dtype=np.float64)
    known = ~np.isnan(values) & (weights > 0)
    if not known.any():
        return np.full(grid.shape, np.nan)
    half = SMOOTHING / 2 * steps[-1]
    smoothed = [_local_mean(step, steps[known], values[known], weights[known], half) for step in steps[known]]
    return np.interp(grid, steps[known], smoothed, left=np.nan, right=np.nan)


def _local_mean(step: float, steps: Floats, values: Floats, weights: Floats, half: float) -> float:
    near = np.abs(steps - step) <= half
    return float(np.average(values[near], weights=weights[near]))


def _value(point: Point, metric: str) -> float:
    return point.success if metric == "success" else point.return_


def _positions(curve: Sequence[Point], by: str) -> Floats:
    steps = np.array([point.steps for point in curve], dtype=np.float64)
    return steps if by == "steps" else steps / np.array([point.steps_per_second for point in curve])


def _has_success(curves: Mapping[str, Sequence[Sequence[Point]]]) -> bool:
    return any(not np.isnan(point.success) for seeds in curves.values() for curve in seeds for point in curve)


def _draw_core(axes: Axes, core: str, seeds: Sequence[Sequence[Point]], metric: str, by: str) -> None:
    # By seconds, seeds end at different times; a mean over those that are left would be another one.
    ends = [_positions(curve, by)[-1] for curve in seeds if curve]
    last = (max if by == "steps" else min)(ends, default=0)
    if last == 0:
        return
    grid = np.linspace(0, last, GRID_POINTS)
    rows = np.stack([resample(curve, metric, grid, by) for curve in seeds if curve])
    seen = ~np.isnan(rows).all(axis=0)
    if not seen.any():
        return
    grid, rows = grid[seen], rows[:, seen]
    colour = colour_of(core)
    axes.plot(grid, np.nanmean(rows, axis=0), color=colour, linewidth=2.2, label=core, zorder=3)
    if len(rows) > 1:
        low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
        axes.fill_between(grid, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)


def _draw_reference(axes: Axes, name: str, value: float, metric: str) -> None:
    shown = f"{value:.0%}" if metric == "success" else f"{value:.2g}"
    axes.axhline(value, color="#555555", linestyle="--", linewidth=1.2, zorder=1, label=f"{name} ({shown})")


def _decorate(axes: Axes, title: str, metric: str, seeds: int) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0)
    axes.set_xlim(left=0)
    band = f" (mean and range of {seeds} seeds)" if seeds > 1 else ""
    axes.set_ylabel(f"success in training{band}" if metric == "success" else f"return in training{band}")
    if metric == "success":
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(framealpha=0.85, edgecolor="none", loc="best")
