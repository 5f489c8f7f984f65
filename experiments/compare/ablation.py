"""`ctrl ablate`: every compressor with every loss on one recall task, with several seeds each.

`ablation_config` has the settings. Results are written whenever a run ends, and `--resume` continues an ablation that
was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ctrl.experiments.compare.ablation_config import REFERENCE, AblateConfig, Variant
from ctrl.experiments.compare.ablation_results import (
    EPISODES,
    LEVEL,
    AblationRun,
    ablation_table,
    aggregate,
    markdown_table,
)
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.plain_data import convert, reading
from ctrl.experiments.report import provenance, tensorboard
from ctrl.experiments.report.summary import SCHEMA, FailedRun, RunSummary, count_text
from ctrl.experiments.report.tables import print_failures, print_places
from ctrl.experiments.runs.build import build_model
from ctrl.experiments.runs.jobs import Job, failed_runs, read_finished, require_same_options, run_jobs
from ctrl.experiments.runs.run_folder import MARKER, SUMMARY, open_folder, read_table, slug, write_json
from ctrl.experiments.runs.tasks import make_task

TABLE = "table.md"


def plan(config: AblateConfig) -> list[tuple[Variant, TrainConfig]]:
    """Return one run for each variant and seed.

    All variants with one seed come before the next seed, so that a stop leaves comparable runs.

    :raises UserError: if the task or an agent cannot be built
    """
    runs = [(variant, train_config(config, variant)) for variant in config.chosen]
    check = make_task(replace(config.task, num_envs=1), seed=0, training=True)
    try:
        for _, run in runs:
            build_model(run, check)
    finally:
        check.close()
    return [(variant, replace(run, seed=seed)) for seed in range(config.seeds) for variant, run in runs]


def train_config(config: AblateConfig, variant: Variant) -> TrainConfig:
    """Return the options of a variant's run with seed 0."""
    run = replace(config.run, threads=config.run.threads or 1)
    return TrainConfig(task=config.task, run=run, memory=variant.memory(config.memory), ppo=config.ppo)


class Ablation:
    """Runs of an ablation, and the files about them."""

    def __init__(self, config: AblateConfig, folder: Path, jobs: Sequence[Job], command: str) -> None:
        self.config = config
        self.folder = folder
        self.jobs = jobs
        self.command = command

    def to_json(self) -> dict[str, Any]:
        """Return the results so far as plain data."""
        done = [(job, job.result) for job in self.jobs if isinstance(job.result, RunSummary)]
        return {
            "schema": SCHEMA,
            "command": self.command,
            "task": self.config.task.title,
            "memory": self.config.memory.memory,
            "steps": self.config.run.steps,
            "eval_episodes": self.config.run.eval_episodes,
            "options": {part: asdict(getattr(self.config, part)) for part in ("task", "run", "memory", "ppo")},
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "runs": [asdict(AblationRun.of(job.label, result, job.points())) for job, result in done],
            "failures": [asdict(failure) for failure in failed_runs(self.jobs)],
        }

    def write(self) -> None:
        """Write the results so far to `summary.json` and as a table."""
        data = self.to_json()
        write_json(self.folder / SUMMARY, data, indent=None)
        (self.folder / TABLE).write_text(markdown_table(aggregate(_runs(data))))


def resumed(job: Job) -> Job:
    """Return a job, with the result of its run if that has finished already.

    :raises UserError: if the finished run had other options
    """
    job.result = read_finished(job.place.folder)
    if job.result is not None:
        require_same_options(job, "name another --out")
    return job


def show(data: dict[str, Any], console: Console) -> None:
    """Print the table of the data of a `summary.json`, and the failed runs."""
    caption = (
        f"memory {data['memory']}; {count_text(data['steps'])} steps of training, then {data['eval_episodes']} "
        "held-out episodes a seed\n"
        f"until {LEVEL}: env steps until {EPISODES} training episodes first had that success,\n"
        "median over the seeds (how many got there)\n"
        f"error: share of what is read\ncost: processor time of a step, {REFERENCE.name} = 1\n"
        "paper: its bits per character on Enwik8, lower is better"
    )
    console.print(ablation_table(aggregate(_runs(data)), data["task"], caption))
    print_failures((FailedRun(**failure) for failure in data["failures"]), console)


def _runs(data: dict[str, Any]) -> list[AblationRun]:
    runs: list[AblationRun] = convert(list[AblationRun], data["runs"], "runs")
    return runs


def read(path: Path) -> dict[str, Any]:
    """Read an ablation's `summary.json`.

    :raises UserError: if the file is missing or is something else
    """
    data = read_table(path)
    with reading(path, "no summary of an ablation"):
        _runs(data)
        _ = convert(list[FailedRun], data["failures"], "failures")
        for name, kind in (("task", str), ("memory", str), ("steps", int), ("eval_episodes", int)):
            convert(kind, data[name], name)
    return data


def run_command(config: AblateConfig, console: Console) -> int:
    """Run `ctrl ablate` and return its exit code."""
    if config.table is not None:
        data = read(config.table)
        with reading(config.table, "no sound results of an ablation"):
            if config.markdown:
                console.out(markdown_table(aggregate(_runs(data))), end="")
            else:
                show(data, console)
        return 0
    runs = plan(config)  # first, so that an error leaves earlier results alone
    folder, command = _open(config), provenance.command()
    jobs = [Job.within(folder, variant.name, run, command) for variant, run in runs]
    if config.resume:
        jobs = [resumed(job) for job in jobs]
    write_json(folder / MARKER, {"command": command, "ablation": asdict(config) | {"out": str(folder)}})
    tensorboard.write_references(folder / "tensorboard", config.task, config.run.steps)
    ablation = Ablation(config, folder, jobs, command)
    left = [job for job in jobs if job.result is None]
    exit_code = run_jobs(left, config.jobs or provenance.usable_cores(), folder, console, ablation.write)
    ablation.write()
    show(ablation.to_json(), console)
    print_places(console, ("numbers", folder / SUMMARY), *tensorboard.how_to_look(folder / "tensorboard"))
    return exit_code


def _open(config: AblateConfig) -> Path:
    if config.resume and config.out is not None and (config.out / MARKER).is_file():
        return config.out
    return open_folder(config.out, overwrite=config.overwrite, name=f"{slug(config.task.env)}-ablate")
