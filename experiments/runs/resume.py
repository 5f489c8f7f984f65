"""Runs that go on: their options, and the model file to go on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ctrl.experiments.config import CompareConfig, TrainConfig
from ctrl.experiments.errors import UserError, require
from ctrl.experiments.plain_data import reading
from ctrl.experiments.report.summary import RunSummary
from ctrl.experiments.runs.checkpoints import Start, whole_models
from ctrl.experiments.runs.run_folder import CHECKPOINTS, MARKER, SUMMARY, read_table
from ctrl.experiments.runs.tasks import require_named


def stored_config(folder: Path) -> TrainConfig:
    """Return the options of the run in a folder.

    :raises UserError: if there is no run, or its options can't be read
    """
    require(folder.is_dir(), f"--resume {folder} is no folder")
    held = "options" in read_table(folder / MARKER)
    require(held, f"--resume {folder} holds no run of ctrl train ({MARKER})")
    return TrainConfig.read(folder / MARKER)


def resumed_config(folder: Path, steps: int | None, *, trust: bool) -> TrainConfig:
    """Return the options of the run in a folder, to go on with it.

    :param steps: new number of steps; None for the run's own
    :raises UserError: if there is no run, `steps` is less than its own, or its task imports a module without `trust`
    """
    stored = stored_config(folder)
    require_named(stored.task, "add --trust", trust=trust)
    run = replace(stored.run, steps=_raised(stored.run.steps, steps))
    return replace(stored, run=run, resume=folder, trust=trust)


def stored_comparison(folder: Path) -> CompareConfig:
    """Return the options of the comparison in a folder.

    :raises UserError: if there is none, or its options can't be read
    """
    require(folder.is_dir(), f"{folder} is no folder")
    data = read_table(folder / MARKER)
    require("comparison" in data, f"{folder} holds no comparison of ctrl compare ({MARKER})")
    with reading(folder / MARKER, "no options of a comparison"):
        return replace(CompareConfig.from_json(data["comparison"]), out=folder)


def resumed_comparison(folder: Path, steps: int | None, *, jobs: int | None, trust: bool) -> CompareConfig:
    """Return the options of the comparison in a folder, to go on with it.

    :param steps: new number of steps of each run; None for the comparison's own
    :param jobs: new number of runs at a time; None for the comparison's own
    :raises UserError: if there is none, `steps` is less than its own, or its task imports a module without `trust`
    """
    stored = stored_comparison(folder)
    require_named(stored.task, "add --trust", trust=trust)
    run = replace(stored.run, steps=_raised(stored.run.steps, steps))
    return replace(stored, run=run, jobs=jobs or stored.jobs, resume=folder, trust=trust)


def _raised(own: int, steps: int | None) -> int:
    require(steps is None or steps >= own, f"--steps can only be raised: it was {own:,}, got {steps}")
    return own if steps is None else steps


def find_start(folder: Path, say: Callable[[str], None]) -> Start | None:
    """Return the newest whole model file of a run, and remove what a killed process left half written.

    :return: None where the run was stopped before its first checkpoint
    """
    for partial in (*folder.glob(".partial-*"), *(folder / CHECKPOINTS).glob(".partial-*")):
        partial.unlink(missing_ok=True)
    return next(whole_models(folder, say), None)


def is_done(folder: Path, config: TrainConfig, start: Start | None) -> bool:
    """Return True if a run is trained to its end, and evaluated if it is to be."""
    if start is None or start.progress.steps < config.run.steps or not (folder / SUMMARY).is_file():
        return False
    try:
        summary = RunSummary.read(folder / SUMMARY)
    except UserError:
        return False  # it is written anew
    return summary.status == "finished" and (config.run.eval_episodes == 0 or summary.evaluation is not None)


def stored_tensorboard(folder: Path) -> Path:
    """Return the folder of a run's TensorBoard logs: inside the run, or in the folder of its comparison."""
    inside, stored = folder / "tensorboard", read_table(folder / MARKER).get("tensorboard")
    if inside.is_dir() or not isinstance(stored, str):
        return inside
    comparison = folder.resolve().parents[2]
    return Path(stored) if Path(stored).resolve().is_relative_to(comparison) else inside  # nowhere else is written to
