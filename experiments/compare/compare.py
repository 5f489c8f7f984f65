"""Comparison of several cores on one task with several seeds, each run in a process of its own.

All runs have the same envs and number of steps. Results are written whenever a run ends. A run that fails is reported
and does not stop the others.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ctrl.experiments.config import CompareConfig, TrainConfig
from ctrl.experiments.report import provenance, tensorboard
from ctrl.experiments.report.plots import learning_curves, metric_of, save_figure
from ctrl.experiments.report.summary import (
    SCHEMA,
    FailedRun,
    Point,
    RunSummary,
    aggregate,
    comparison_table,
    count_text,
    duration_text,
)
from ctrl.experiments.runs.build import Match, build_model, match_width, parameter_count
from ctrl.experiments.runs.core_options import of_core
from ctrl.experiments.runs.jobs import Job, run_jobs
from ctrl.experiments.runs.run_folder import MARKER, SUMMARY, open_folder, slug, write_json
from ctrl.experiments.runs.tasks import MEMORYLESS, known_scores, make_task, reference_scores

PICTURE = "learning_curves.png"
ROW_NAMES = {MEMORYLESS: "no memory"}
"""Short names for rows whose names are too long for the first column."""


def plan(config: CompareConfig, console: Console) -> list[TrainConfig]:
    """Return one training run for each core and seed.

    All cores with one seed come before the next seed, so that a stop leaves comparable runs.
    """
    by_core = [_train_config(config, core) for core in config.cores]
    check = make_task(replace(config.task, num_envs=1), seed=0, training=True)
    try:
        counts = [parameter_count(build_model(core, check)) for core in by_core]  # raises if options don't fit
        if config.match_parameters:
            by_core = [by_core[0], *(_matched(core, check, counts[0], console) for core in by_core[1:])]
    finally:
        check.close()
    return [replace(core, seed=seed) for seed in range(config.seeds) for core in by_core]


def _train_config(config: CompareConfig, core: str) -> TrainConfig:
    learning_rate = config.rates.get(core, config.ppo.learning_rate)
    run = replace(config.run, threads=config.run.threads or 1)
    return TrainConfig(
        core=core,
        algorithm=config.algorithm,
        task=config.task,
        run=run,
        memory=of_core(config.memory, core),
        ppo=replace(of_core(config.ppo, core), learning_rate=learning_rate),
        impala=config.impala,
    )


def _matched(config: TrainConfig, env: Any, target: int, console: Console) -> TrainConfig:
    match: Match = match_width(config, env, target)
    console.print(
        f"{config.core}: width {match.width} gives {match.parameters:,} parameters, "
        f"{match.difference:+.1%} against {target:,}",
        soft_wrap=True,
    )
    return replace(config, memory=replace(config.memory, width=match.width))


class Comparison:
    """Runs of a comparison, and the files and tables about them."""

    def __init__(self, config: CompareConfig, folder: Path, jobs: Sequence[Job], command: str) -> None:
        self.config = config
        self.folder = folder
        self.jobs = jobs
        self.command = command
        self.start = time.perf_counter()

    @property
    def runs(self) -> list[RunSummary]:
        """Runs that finished, core by core."""
        done = [job.result for job in self.jobs if isinstance(job.result, RunSummary)]
        return sorted(done, key=lambda run: (self.config.cores.index(run.core), run.seed))

    @property
    def failures(self) -> list[FailedRun]:
        """Runs that did not finish."""
        return [job.result for job in self.jobs if isinstance(job.result, FailedRun)]

    def write(self) -> None:
        """Write the results so far to `summary.json`."""
        scores = known_scores(self.config.task)
        data = {
            "schema": SCHEMA,
            "command": self.command,
            "env": self.config.task.env,
            "env_kwargs": self.config.task.env_arguments,
            "scores": None if scores is None else asdict(scores),
            "wall_seconds": time.perf_counter() - self.start,
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "cores": {core.core: asdict(core) for core in aggregate(self.runs)},
            "runs": [run.to_json() for run in self.runs],
            "failures": [_failure(failure) for failure in self.failures],
        }
        write_json(self.folder / SUMMARY, data)

    def draw(self) -> Path | None:
        """Draw the learning curves of all runs and return the path of the picture; None if no run has a curve."""
        curves: dict[str, list[list[Point]]] = {}
        for job in self.jobs:
            points = job.points()
            if points:
                curves.setdefault(job.label, []).append(points)
        if not curves:
            return None
        figure = learning_curves(
            curves,
            title=self.config.task.title,
            held_out={label: [job.held_out() for job in self.jobs if job.label == label] for label in curves},
            references=reference_scores(self.config.task, metric_of(curves)),
        )
        path = self.folder / PICTURE
        save_figure(figure, path)
        return path

    def show(self, console: Console) -> None:
        """Print the table and the failed runs, draw the picture, and print where all results are."""
        if self.runs:
            run, scores = self.config.run, reference_scores(self.config.task)
            baselines = {ROW_NAMES.get(name, name): score for name, score in scores.items()}
            caption = f"{run.eval_episodes} held-out episodes a seed, after {count_text(run.steps)} steps of training"
            console.print(comparison_table(aggregate(self.runs), self.config.task.title, baselines, caption))
        for failure in self.failures:
            console.print(f"{failure.name}: {failure.message}", style="bold red", soft_wrap=True)
        picture = self.draw()
        self._say_where(console, picture)

    def _say_where(self, console: Console, picture: Path | None) -> None:
        lines = {
            "wall time": duration_text(time.perf_counter() - self.start),
            "picture": str(picture) if picture else "none",
            "numbers": str(self.folder / SUMMARY),
            **dict(tensorboard.how_to_look(self.folder / "tensorboard")),
        }
        for name, text in lines.items():
            console.print(f"{name:>11}: {text}", soft_wrap=True)


def _failure(run: FailedRun) -> dict[str, Any]:
    return {"core": run.label, "seed": run.seed, "message": run.message}


def compare(
    config: CompareConfig, runs: Sequence[TrainConfig], folder: Path, console: Console, command: str
) -> tuple[Comparison, int]:
    """Train every core with every seed and write the results.

    :param config: options of the comparison
    :param runs: runs that `plan` made of it
    :param folder: folder for the results
    :param console: shows the progress
    :param command: command line to keep with the results
    :return: the comparison, and the exit code: 0 if all runs finished, 1 if one failed, 130 after Ctrl-C
    """
    write_json(folder / MARKER, {"command": command, "comparison": asdict(config) | {"out": str(folder)}})
    jobs = [Job.within(folder, run.core, run, command) for run in runs]
    comparison = Comparison(config, folder, jobs, command)
    tensorboard.write_references(folder / "tensorboard", config.task, config.run.steps)
    parallel = min(config.jobs or runs_at_a_time(config), len(jobs))
    console.print(f"{len(jobs)} runs, {parallel} at a time; results go to {folder}", soft_wrap=True)
    if not run_jobs(jobs, parallel, console, comparison.write):
        return comparison, 128 + signal.SIGINT
    return comparison, 1 if comparison.failures else 0


def runs_at_a_time(config: CompareConfig) -> int:
    """Return the number of runs at a time for which every process has a CPU core; at least 1."""
    return max(1, provenance.usable_cores() // config.impala.processes(config.algorithm))


def run_command(config: CompareConfig, console: Console) -> int:
    """Run `ctrl compare` and return its exit code."""
    runs = plan(config, console)  # first, so that an error leaves earlier results alone
    folder = open_folder(config.out, overwrite=config.overwrite, name=f"{slug(config.task.env)}-compare")
    comparison, exit_code = compare(config, runs, folder, console, provenance.command())
    comparison.show(console)
    comparison.write()
    return exit_code
