"""Write the numbers and pictures of IMPALA in docs/ from folders of `ctrl compare`, one folder for each series.

    python tools/impala_report.py docs/impala.json MemoryPPO=FOLDER MemoryImpala=FOLDER --by steps seconds
    python tools/impala_report.py docs/impala_rates.json "rate 1=FOLDER" "rate 2=FOLDER" … --metric return --level 30

The pictures are written beside the numbers. Nothing is trained here; all numbers are read from the runs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ctrl.experiments.options import TaskOptions
from ctrl.experiments.report.plots import GRID_POINTS, learning_curves, resample, save_figure
from ctrl.experiments.report.summary import Point, read_curve
from ctrl.experiments.runs.run_folder import CURVE, MARKER, SUMMARY, read_json, write_json
from ctrl.experiments.runs.tasks import reference_scores


def runs_of(folder: Path) -> list[Path]:
    """Return the folders of the runs of a comparison, sorted by seed."""
    found = [path.parent for path in folder.glob(f"runs/*/*/{SUMMARY}")]
    return sorted(found, key=lambda run: int(read_json(run / SUMMARY)["seed"]))


def first_at(curve: Sequence[Point], metric: str, level: float, by: str) -> int | None:
    """Return the steps or seconds after which the smoothed metric first reaches `level`; None if it never does."""
    last = curve[-1].steps if by == "steps" else curve[-1].steps / curve[-1].steps_per_second
    grid = np.linspace(0, last, 4 * GRID_POINTS)
    reached = np.flatnonzero(resample(curve, metric, grid, by) >= level)
    return round(grid[reached[0]]) if len(reached) else None


def report(run: Path, metric: str, level: float) -> dict[str, Any]:
    """Return the results of one run."""
    summary, curve = read_json(run / SUMMARY), read_curve(run / CURVE)
    seconds = [point.steps / point.steps_per_second for point in curve]
    grid = np.linspace(0, curve[-1].steps, 41)[1:]
    values = resample(curve, metric, grid)
    at = np.interp(grid, [point.steps for point in curve], seconds)
    shown = [
        (int(step), round(float(second), 1), round(float(value), 3))
        for step, second, value in zip(grid, at, values, strict=True)
        if not math.isnan(value)
    ]
    evaluation = summary["evaluation"]
    return {
        "seed": summary["seed"],
        "steps": summary["steps"],
        "wall_seconds": round(summary["wall_seconds"], 1),
        "parameters": summary["parameters"],
        "evaluation": {name: evaluation[name] for name in ("episodes", "return_mean", "success", "normalised")},
        "steps_to_level": first_at(curve, metric, level, "steps"),
        "seconds_to_level": first_at(curve, metric, level, "seconds"),
        "curve": shown,
    }


def comparison(folder: Path, metric: str, level: float) -> dict[str, Any]:
    """Return the command, the machine and the runs of a comparison."""
    about = {"command": read_json(folder / MARKER)["command"], "level": level}
    summary = read_json(folder / SUMMARY)
    kept = {name: summary[name] for name in ("versions", "machine") if name in summary}
    return {**about, **kept, "runs": [report(run, metric, level) for run in runs_of(folder)]}


def named_folder(text: str) -> tuple[str, Path]:
    """Parse NAME=FOLDER."""
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"must be NAME=FOLDER, got {text!r}")
    return name, Path(folder)


def main() -> None:
    """Read the folders, write the numbers and draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("series", type=named_folder, nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--metric", choices=("success", "return"), default="success")
    parser.add_argument("--level", type=float, default=0.9, help="what runs are timed to")
    parser.add_argument("--by", choices=("steps", "seconds"), nargs="+", default=["steps"])
    options = parser.parse_args()
    folders: dict[str, Path] = dict(options.series)
    if len(folders) < len(options.series):
        parser.error("each series must have a name of its own")
    read = partial(comparison, metric=options.metric, level=options.level)
    write_json(options.out, {name: read(folder) for name, folder in folders.items()}, indent=None)
    curves = {name: [read_curve(run / CURVE) for run in runs_of(folder)] for name, folder in folders.items()}
    task = TaskOptions(**read_json(runs_of(next(iter(folders.values())))[0] / MARKER)["options"]["task"])
    references = reference_scores(task, options.metric)
    for by in options.by:
        figure = learning_curves(curves, title=task.title, references=references, metric=options.metric, by=by)
        save_figure(figure, options.out.with_name(f"{options.out.stem}_by_{by}.png"))


if __name__ == "__main__":
    main()
