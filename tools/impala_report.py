"""Write docs/impala.json and its pictures from the folders of `ctrl compare` runs: PPO and IMPALA, and IMPALA's rates.

    python tools/impala_report.py OUT --ppo FOLDER --impala FOLDER --rates 1=FOLDER 2=FOLDER 4=FOLDER 8=FOLDER

OUT is docs/impala.json; pictures come beside it. Nothing is trained here, and every number is read from the runs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctrl.experiments.folders import CURVE, MARKER, SUMMARY, read_json, write_json
from ctrl.experiments.plots import GRID_POINTS, learning_curves, resample, save_figure
from ctrl.experiments.summary import Point, read_curve


def runs_of(folder: Path) -> list[Path]:
    """Return the folders of a comparison's runs, by seed."""
    found = [path.parent for path in folder.glob(f"runs/*/*/{SUMMARY}")]
    return sorted(found, key=lambda run: int(read_json(run / SUMMARY)["seed"]))


def first_at(curve: Sequence[Point], metric: str, level: float) -> int | None:
    """Return the steps after which the smoothed curve first has `level`; None if it never does."""
    grid = np.linspace(0, curve[-1].steps, 4 * GRID_POINTS)
    reached = np.flatnonzero(resample(curve, metric, grid) >= level)
    return int(grid[reached[0]]) if len(reached) else None


def report(run: Path, metric: str, level: float) -> dict[str, Any]:
    """Return what one run brought."""
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
        "steps_to_level": first_at(curve, metric, level),
        "curve": shown,
    }


def comparison(folder: Path, metric: str, level: float) -> dict[str, Any]:
    """Return a comparison's command, machine and runs."""
    about = {"command": read_json(folder / MARKER)["command"], "metric": metric, "level": level}
    summary = read_json(folder / SUMMARY)
    kept = {name: summary[name] for name in ("versions", "machine") if name in summary}
    return {**about, **kept, "runs": [report(run, metric, level) for run in runs_of(folder)]}


def curves_of(folder: Path) -> list[list[Point]]:
    """Return the curve of each run."""
    return [read_curve(run / CURVE) for run in runs_of(folder)]


def main() -> None:
    """Read the folders, write the numbers, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--ppo", type=Path, required=True)
    parser.add_argument("--impala", type=Path, required=True)
    parser.add_argument("--rates", nargs="+", required=True, metavar="RATE=FOLDER")
    parser.add_argument("--level", type=float, required=True, help="return that rates are timed to")
    parser.add_argument("--memoryless", type=float, required=True, help="return without memory, in the rates' task")
    options = parser.parse_args()
    rates = {rate: Path(folder) for rate, _, folder in (pair.partition("=") for pair in options.rates)}
    algorithms = {"MemoryPPO": options.ppo, "MemoryImpala": options.impala}
    told = {
        "algorithms": {name: comparison(folder, "success", 0.9) for name, folder in algorithms.items()},
        "rates": {rate: comparison(folder, "return", options.level) for rate, folder in rates.items()},
    }
    write_json(options.out, told, indent=None)
    curves = {name: curves_of(folder) for name, folder in algorithms.items()}
    title = read_json(options.ppo / MARKER)["options"]["task"]
    name = f"{title['env']} ({', '.join(title['env_kwargs'])})"
    for by in ("steps", "seconds"):
        figure = learning_curves(curves, title=name, reference=("best without memory", 0.25), by=by)
        save_figure(figure, options.out.with_name(f"impala_by_{by}.png"))
    of_rates = {f"rate {rate}": curves_of(folder) for rate, folder in rates.items()}
    task = read_json(next(iter(rates.values())) / MARKER)["options"]["task"]
    title = f"{task['env']} ({', '.join(task['env_kwargs'])})"
    reference = ("best known without memory", options.memoryless)
    figure = learning_curves(of_rates, title=title, reference=reference, metric="return")
    save_figure(figure, options.out.with_name("impala_rates.png"))


if __name__ == "__main__":
    main()
