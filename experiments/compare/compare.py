"""Comparison of several cores on one task with several seeds, each run in a process of its own.

All runs have the same envs and number of steps. Results are written whenever a run ends. A run that fails is reported
and does not stop the others.
"""

from __future__ import annotations

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
    Point,
    RunSummary,
    aggregate,
    comparison_table,
    count_text,
    duration_text,
)
from ctrl.experiments.report.tables import print_failures, print_places
from ctrl.experiments.runs.build import Match, build_model, match_width, parameter_count
from ctrl.experiments.runs.core_options import of_core
from ctrl.experiments.runs.jobs import Job, failed_runs, run_jobs
from ctrl.experiments.runs.resume import stored_comparison
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
    return TrainConfig(
        core=core,
        algorithm=config.algorithm,
        task=config.task,
        run=replace(config.run, threads=config.run.threads or 1),
        memory=of_core(config.memory, core),
        ppo=replace(of_core(config.ppo, core), learning_rate=config.rates.get(core, config.ppo.learning_rate)),
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
            "failures": [
                {"core": run.label, "seed": run.seed, "message": run.message} for run in failed_runs(self.jobs)
            ],
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
        print_failures(failed_runs(self.jobs), console)
        picture = self.draw()
        print_places(
            console,
            ("wall time", duration_text(time.perf_counter() - self.start)),
            ("picture", picture or "none"),
            ("numbers", self.folder / SUMMARY),
            *tensorboard.how_to_look(self.folder / "tensorboard"),
        )


def runs_at_a_time(config: CompareConfig) -> int:
    """Return the number of runs at a time for which every process has a CPU core; at least 1."""
    return max(1, provenance.usable_cores() // config.impala.processes(config.algorithm))


def run_command(config: CompareConfig, console: Console) -> int:
    """Run `ctrl compare` and return its exit code."""
    if config.table is not None:
        _comparison(stored_comparison(config.table), config.table, console).show(console)
        return 0
    comparison = _comparison(config, config.resume, console)  # first, so that an error leaves earlier results alone
    folder = comparison.folder
    write_json(folder / MARKER, {"command": comparison.command, "comparison": config.to_json() | {"out": str(folder)}})
    tensorboard.write_references(folder / "tensorboard", config.task, config.run.steps)
    left = [job for job in comparison.jobs if not isinstance(job.result, RunSummary)]
    if not left:
        console.print(f"all runs in {folder} have finished; --steps with more goes on", soft_wrap=True)
    exit_code = run_jobs(left, config.jobs or runs_at_a_time(config), folder, console, comparison.write)
    comparison.show(console)
    comparison.write()
    return exit_code


def _comparison(config: CompareConfig, folder: Path | None, console: Console) -> Comparison:
    """Return a comparison with the results that are in its folder.

    :param folder: of an earlier comparison; None to open a new one
    """
    runs, command = plan(config, console), provenance.command()
    earlier = folder is not None
    if folder is None:
        folder = open_folder(config.out, overwrite=config.overwrite, name=f"{slug(config.task.env)}-compare")
    jobs = [Job.within(folder, run.core, run, command) for run in runs]
    for job in jobs if earlier else ():
        job.trust = config.trust
        job.read_ended()
    return Comparison(config, folder, jobs, command)
