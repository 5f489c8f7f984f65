"""Write docs/recall.json: progress and final success of agents on Recall, from folders of `ctrl compare`.

    python tools/recall_report.py OUT FOLDER … [--longer 2500]     # FOLDER as given to `ctrl compare --out`

For each seed it has the training curve, and the held-out success of every checkpoint and of the last model; with
`--longer` also the success of the last model at another length. Nothing is trained here.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ctrl.experiments.config import EvaluateConfig
from ctrl.experiments.runs.evaluate import evaluate_saved
from ctrl.experiments.runs.run_folder import MARKER, read_json, write_json

EPISODES = 100
"""Held-out episodes of each evaluation."""


def success(model: Path, *env_kwargs: str) -> float:
    """Return the success rate of a model on held-out episodes."""
    config = EvaluateConfig(path=model, episodes=EPISODES, seed=0, num_envs=EPISODES, env_kwargs=env_kwargs)
    brought: float | None = evaluate_saved(config)[2].success
    assert brought is not None
    return brought


def curve(run: Path) -> list[tuple[int, float]]:
    """Return points (steps, success rate in training), each over the episodes of about ten updates."""
    rows = list(csv.DictReader((run / "curve.csv").read_text().splitlines()))
    told = [row for row in rows if row["success"]]
    points = []
    for first in range(0, len(told), 10):
        part = told[first : first + 10]
        episodes = [float(row["episodes"]) for row in part]
        right = sum(float(row["success"]) * count for row, count in zip(part, episodes, strict=True))
        points.append((int(part[-1]["steps"]), round(right / sum(episodes), 3)))
    return points


def staleness(run: Path) -> dict[str, float]:
    """Return the median and the largest `memory/staleness` of a run's updates."""
    events = EventAccumulator(str(run.parents[2] / "tensorboard" / run.parent.name / run.name), {"scalars": 0})
    events.Reload()
    values = [event.value for event in events.Scalars("memory/staleness")]
    return {"median": round(median(values), 4), "highest": round(max(values), 4)}


def report(run: Path, longer: int | None) -> dict[str, Any]:
    """Evaluate the models of one run and return the results."""
    summary = read_json(run / "summary.json")
    checkpoints = sorted((run / "checkpoints").glob("step_*.zip"))
    told: dict[str, Any] = {
        "seed": summary["seed"],
        "steps": summary["steps"],
        "wall_seconds": round(summary["wall_seconds"]),
        "parameters": summary["parameters"],
        "checkpoints": [(int(path.stem.removeprefix("step_")), success(path)) for path in checkpoints],
        "success": success(run / "model.zip"),
        "staleness": staleness(run),
        "training": curve(run),
    }
    if longer is not None:
        told["longer"] = success(run / "model.zip", f"length={longer}")
    return told


def main() -> None:
    """Read the folders, evaluate the models and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--longer", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    written = []
    for folder in options.folders:
        config, summary = read_json(folder / MARKER), read_json(folder / "summary.json")
        runs = [report(run.parent, options.longer) for run in sorted(folder.glob("runs/*/*/model.zip"))]
        kept = {name: summary[name] for name in ("versions", "machine") if name in summary}
        written.append(
            {"command": config["command"], "episodes": EPISODES, "longer": options.longer, **kept, "runs": runs}
        )
        for run in runs:
            print(folder, {name: value for name, value in run.items() if name != "training"}, flush=True)
    write_json(options.out, written, indent=None)


if __name__ == "__main__":
    main()
