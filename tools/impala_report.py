"""Write docs/impala.json and its pictures from the folders of two `ctrl compare` runs, of PPO and of IMPALA.

    python tools/impala_report.py OUT --ppo FOLDER --impala FOLDER

OUT is docs/impala.json; pictures come beside it. Nothing is trained here, and every number is read from the runs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctrl.experiments.config import TaskOptions
from ctrl.experiments.folders import CURVE, MARKER, SUMMARY, read_json, write_json
from ctrl.experiments.plots import GRID_POINTS, learning_curves, resample, save_figure
from ctrl.experiments.summary import Point, read_curve
from ctrl.experiments.tasks import success_reference

LEVEL = 0.9
"""Success that runs are timed to."""


def runs_of(folder: Path) -> list[Path]:
    """Return the folders of a comparison's runs, by seed."""
    found = [path.parent for path in folder.glob(f"runs/*/*/{SUMMARY}")]
    return sorted(found, key=lambda run: int(read_json(run / SUMMARY)["seed"]))


def first_at(curve: Sequence[Point], by: str) -> int | None:
    """Return the steps or seconds after which the smoothed success is first at `LEVEL`; None if it never is."""
    last = curve[-1].steps if by == "steps" else curve[-1].steps / curve[-1].steps_per_second
    grid = np.linspace(0, last, 4 * GRID_POINTS)
    reached = np.flatnonzero(resample(curve, "success", grid, by) >= LEVEL)
    return round(grid[reached[0]]) if len(reached) else None


def report(run: Path) -> dict[str, Any]:
    """Return what one run brought."""
    summary, curve = read_json(run / SUMMARY), read_curve(run / CURVE)
    seconds = [point.steps / point.steps_per_second for point in curve]
    grid = np.linspace(0, curve[-1].steps, 41)[1:]
    values = resample(curve, "success", grid)
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
        "steps_to_level": first_at(curve, "steps"),
        "seconds_to_level": first_at(curve, "seconds"),
        "curve": shown,
    }


def comparison(folder: Path) -> dict[str, Any]:
    """Return a comparison's command, machine and runs."""
    about = {"command": read_json(folder / MARKER)["command"], "level": LEVEL}
    summary = read_json(folder / SUMMARY)
    kept = {name: summary[name] for name in ("versions", "machine") if name in summary}
    return {**about, **kept, "runs": [report(run) for run in runs_of(folder)]}


def main() -> None:
    """Read the folders, write the numbers, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ppo", type=Path, required=True)
    parser.add_argument("--impala", type=Path, required=True)
    options = parser.parse_args()
    folders = {"MemoryPPO": options.ppo, "MemoryImpala": options.impala}
    write_json(options.out, {name: comparison(folder) for name, folder in folders.items()}, indent=None)
    curves = {name: [read_curve(run / CURVE) for run in runs_of(folder)] for name, folder in folders.items()}
    task = TaskOptions(**read_json(runs_of(options.ppo)[0] / MARKER)["options"]["task"])
    guessing = success_reference(task)
    reference = None if guessing is None else ("best without memory", guessing)
    for by in ("steps", "seconds"):
        figure = learning_curves(curves, title=task.title, reference=reference, by=by)
        save_figure(figure, options.out.with_name(f"impala_by_{by}.png"))


if __name__ == "__main__":
    main()
