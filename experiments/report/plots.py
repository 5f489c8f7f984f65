"""Learning curves as matplotlib figures. Nothing here needs a display, trains an agent or keeps global state."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, PercentFormatter
from numpy.typing import NDArray

from ctrl.experiments.report.summary import Point

# The Okabe-Ito palette, which colour-blind readers can tell apart. A core has the same colour in every picture.
COLOURS = {
    "compressive": "#0072B2",
    "lstm": "#D55E00",
    "gru": "#009E73",
    "mingru": "#E69F00",
    "transformer_xl": "#CC79A7",
    "gtrxl": "#F0E442",
    "feedforward": "#7F7F7F",
}
OTHER_COLOURS = ("#56B4E9", "#000000")
GRID_POINTS = 120
SMOOTHING = 0.03
"""Width of the moving mean, as a share of the whole run."""

LABEL_WIDTH = 13
"""Characters in a line of the labels beside the picture."""
TRAINING = "in training, actions sampled"
HELD_OUT = "held out, likeliest actions"
GREY: Any = {"color": "#555555"}

Floats = NDArray[np.float64]


def colour_of(core: str) -> str:
    """Return the colour of a core or another series; an unknown name gets the same colour every time."""
    return COLOURS.get(core) or OTHER_COLOURS[sum(map(ord, core)) % len(OTHER_COLOURS)]


def learning_curves(
    curves: Mapping[str, Sequence[Sequence[Point]]],
    *,
    title: str,
    held_out: Mapping[str, Sequence[Sequence[Point]]] | None = None,
    references: Mapping[str, float] | None = None,
    metric: str | None = None,
) -> Figure:
    """Draw the learning curve of every core, as mean and range over its seeds.

    :param curves: curves of all seeds, by core or by any other name
    :param title: line above the picture
    :param held_out: results of held-out episodes of all seeds, by the same names; dots show their mean over the seeds
    :param references: scores of baselines by name, drawn as dashed lines
    :param metric: `success` or `return`; by default success if any curve has it
    """
    metric = metric or metric_of(curves)
    figure = Figure(figsize=(8, 4.7), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for core, seeds in curves.items():
        _draw_core(axes, core, seeds, metric)
    dots = [_draw_held_out(axes, core, seeds, metric) for core, seeds in (held_out or {}).items()]
    for name, value in (references or {}).items():
        _draw_reference(axes, name, value, metric)
    axes.set_xlabel("environment steps")
    _decorate(axes, title, metric, max((len(seeds) for seeds in curves.values()), default=1), any(dots))
    return figure


def metric_of(curves: Mapping[str, Sequence[Sequence[Point]]]) -> str:
    """Return `success` if any curve has it, else `return`."""
    points = (point for seeds in curves.values() for curve in seeds for point in curve)
    return "success" if any(not np.isnan(point.success) for point in points) else "return"


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as PNG."""
    figure.savefig(path, format="png", facecolor="white")


def resample(curve: Sequence[Point], metric: str, grid: Floats) -> Floats:
    """Return the smoothed values of a curve at the steps of `grid`; NaN outside of the curve."""
    steps = np.array([point.steps for point in curve], dtype=np.float64)
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


def _draw_core(axes: Axes, core: str, seeds: Sequence[Sequence[Point]], metric: str) -> None:
    last = max((curve[-1].steps for curve in seeds if curve), default=0)
    if last == 0:
        return
    grid = np.linspace(0, last, GRID_POINTS)
    rows = np.stack([resample(curve, metric, grid) for curve in seeds if curve])
    seen = ~np.isnan(rows).all(axis=0)
    if not seen.any():
        return
    grid, rows = grid[seen], rows[:, seen]
    colour = colour_of(core)
    axes.plot(grid, np.nanmean(rows, axis=0), color=colour, linewidth=2.2, label=core, zorder=3)
    if len(rows) > 1:
        low, high = np.nanmin(rows, axis=0), np.nanmax(rows, axis=0)
        axes.fill_between(grid, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2)


def _draw_held_out(axes: Axes, core: str, seeds: Sequence[Sequence[Point]], metric: str) -> bool:
    """Draw each evaluation as a dot, the mean over the seeds that have it; return True if there is any."""
    places, values = [], []
    for of_seeds in itertools.zip_longest(*seeds):
        points = [point for point in of_seeds if point is not None]
        places.append(np.mean([point.steps for point in points]))
        values.append(np.mean([_value(point, metric) for point in points]))
    axes.plot(
        places, values, "o", color=colour_of(core), markersize=6, markeredgecolor="white", zorder=4, clip_on=False
    )
    return bool(places)


def _draw_reference(axes: Axes, name: str, value: float, metric: str) -> None:
    shown = f"{value:.0%}" if metric == "success" else f"{value:.2f}"
    axes.axhline(value, color="#555555", linestyle="--", linewidth=1.2, zorder=1)
    words = "\n".join(textwrap.wrap(f"{name} {shown}", LABEL_WIDTH))
    beside = axes.get_yaxis_transform()  # x as a share of the width, y in data units
    axes.text(1.02, value, words, transform=beside, fontsize=9, color="#555555", va="center")


def _decorate(axes: Axes, title: str, metric: str, seeds: int, dots: bool) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.margins(x=0)
    axes.set_xlim(left=0)
    what = metric if dots else f"{metric} in training"
    axes.set_ylabel(f"{what} (mean and range of {seeds} seeds)" if seeds > 1 else what)
    if metric == "success":
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, _ = axes.get_legend_handles_labels()
    if dots:
        handles += [Line2D([], [], label=TRAINING, **GREY), Line2D([], [], marker="o", ls="", label=HELD_OUT, **GREY)]
    if handles:
        place: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13)}  # below, where it hides nothing
        axes.legend(handles=handles, ncols=4, fontsize=9, columnspacing=1.5, edgecolor="none", **place)
