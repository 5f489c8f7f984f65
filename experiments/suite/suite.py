"""`ctrl suite`: train our default core and its rivals on the memory tasks of `suite_tasks`.

Seed 0 of all cores and tasks comes first, with each learning rate for recurrent cores. The further seeds follow, with
the best learning rates. A stop at any time thus leaves results that can be compared. Each run is a process that imports
the copy of the code made when the suite's folder was created.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from stable_baselines3.common.vec_env import VecEnv

from ctrl.experiments.config import TrainConfig
from ctrl.experiments.errors import require, unknown
from ctrl.experiments.options import RunOptions
from ctrl.experiments.plain_data import build, convert, reading
from ctrl.experiments.report import provenance
from ctrl.experiments.report.summary import SCHEMA, Evaluation, read_curve
from ctrl.experiments.report.tables import print_failures
from ctrl.experiments.runs.build import build_model, match_width, parameter_count
from ctrl.experiments.runs.core_options import of_core
from ctrl.experiments.runs.jobs import INTERRUPTED, Job, failed_runs, read_finished, require_same_options, run_jobs
from ctrl.experiments.runs.run_folder import CURVE, MARKER, differences, open_folder, read_json, read_table, write_json
from ctrl.experiments.runs.tasks import make_task
from ctrl.experiments.suite.code import copied, copy_code, fingerprint, sources
from ctrl.experiments.suite.config import RATES, REFERENCE, TUNED, SuiteConfig
from ctrl.experiments.suite.known import KNOWN, load_known, read_known
from ctrl.experiments.suite.results import (
    RESULTS,
    HeldOut,
    Results,
    SuiteRun,
    contender_label,
    markdown,
    read_results,
    tables,
)
from ctrl.experiments.suite.tasks import TASKS, SuiteTask
from ctrl.experiments.suite.worker import ORDER, TRANSFER

TABLE = "suite.md"
CODE = "code"
"""Folder with the copy of the code."""


@dataclass(frozen=True)
class Contender:
    """One core on one task with one learning rate."""

    task: SuiteTask
    config: TrainConfig
    """Options of its run with seed 0."""

    @property
    def label(self) -> str:
        """Label of its runs, which is also their folder below `runs/`."""
        return contender_label(self.task.name, self.config.core, self.config.ppo.learning_rate)


def chosen_tasks(names: Sequence[str]) -> list[SuiteTask]:
    """Return the tasks with these names, or all tasks if there are no names."""
    for name in names:
        if name not in TASKS:
            raise unknown("task", name, TASKS, show=len(TASKS))
    return [TASKS[name] for name in names] or list(TASKS.values())


def plan(config: SuiteConfig) -> list[Contender]:
    """Return all contenders, task by task.

    :raises UserError: if a task or an agent cannot be built
    """
    return [contender for task in chosen_tasks(config.tasks) for contender in _of_task(config, task)]


def _of_task(config: SuiteConfig, task: SuiteTask) -> list[Contender]:
    check = make_task(task.options(1), seed=0, training=True)
    try:
        target = parameter_count(build_model(train_config(config, task, REFERENCE), check))
        cores = [_sized(train_config(config, task, core), check, target) for core in config.cores]
    finally:
        check.close()
    return [
        Contender(task, replace(core, ppo=replace(core.ppo, learning_rate=rate)))
        for core in cores
        for rate in config.rates(core.core)
    ]


def train_config(config: SuiteConfig, task: SuiteTask, core: str) -> TrainConfig:
    """Return the options of a core's run on a task with seed 0, before its width and learning rate are chosen."""
    steps = max(1, round(task.steps * config.steps_scale))
    run = RunOptions(
        steps=steps,
        eval_episodes=config.eval_episodes,
        eval_every=0,
        checkpoint_every=steps,
        device=config.device,
        threads=1,
    )
    memory, ppo = of_core(config.memory, core), of_core(config.ppo, core)
    return TrainConfig(core=core, task=task.options(config.num_envs), run=run, memory=memory, ppo=ppo)


def _sized(config: TrainConfig, env: VecEnv, target: int) -> TrainConfig:
    """Give a recurrent core the smallest width with at least `target` parameters; other cores are unchanged."""
    if config.core not in TUNED:
        build_model(config, env)  # raises if options don't fit
        return config
    match = match_width(config, env, target)
    width = match.width + (match.parameters < target)
    return replace(config, memory=replace(config.memory, width=width))


@dataclass
class SuiteJob(Job):
    """Run of a suite; it starts with an empty folder."""

    order: dict[str, Any] | None = None
    """Facts that the worker and readers of the results need beside the run's config."""

    def start(self) -> None:
        """Remove the files of an earlier attempt and start the process."""
        for folder in (self.place.folder, self.place.tensorboard):
            shutil.rmtree(folder, ignore_errors=True)
        self.place.folder.mkdir(parents=True)
        write_json(self.place.folder / ORDER, self.order)
        super().start()


def read_run(folder: Path) -> SuiteRun | None:
    """Return the results of the run in a folder; None unless it and all its evaluations are finished."""
    summary = read_finished(folder)
    if summary is None:
        return None
    order, is_transferred = read_table(folder / ORDER), (folder / TRANSFER).is_file()
    with reading(folder, "no run of a suite"):
        if order["transfer"] is not None and not is_transferred:
            return None
        evaluation = build(Evaluation, read_json(folder / TRANSFER), "transfer") if is_transferred else None
        transfer = None if evaluation is None else HeldOut.of(evaluation)
        run = SuiteRun.of(convert(str, order["task"], "task"), summary, transfer, read_curve(folder / CURVE))
        return SuiteRun.from_json(asdict(run))


def read_runs(folder: Path) -> list[SuiteRun]:
    """Return all finished runs in the folder of a suite."""
    found = (read_run(order.parent) for order in sorted(folder.glob(f"runs/*/*/*/{ORDER}")))
    return [run for run in found if run is not None]


class Suite:
    """Runs of a suite, and the files about them."""

    def __init__(self, config: SuiteConfig, code: str, command: str, console: Console) -> None:
        self.config = config
        self.folder = config.out.resolve()
        self.code = code
        self.command = command
        self.console = console
        self.known = read_known(self.folder)
        self.started: list[SuiteJob] = []
        """Jobs that this command runs."""

    def jobs(self, contenders: Iterable[Contender], seeds: Iterable[int]) -> list[SuiteJob]:
        """Return the jobs that are not finished; all contenders with one seed come before the next seed.

        :raises UserError: if a finished run had other options
        """
        found = [self._job(contender, seed) for seed in seeds for contender in contenders]
        return [job for job in found if job.name not in self.known.runs and not is_finished(job)]

    def _job(self, contender: Contender, seed: int) -> SuiteJob:
        task = contender.task
        transfer = task.transferred().arguments if task.transfer else None
        config = replace(contender.config, seed=seed)
        plain = Job.within(self.folder, contender.label, config, self.command)
        order = {"task": task.name, "code": self.code, "transfer": transfer}
        worker = "ctrl.experiments.suite.worker"
        return SuiteJob(plain.label, config, plain.place, worker=worker, cwd=self.folder / CODE, order=order)

    def run(self, jobs: Sequence[SuiteJob]) -> int:
        """Run the jobs, write the results whenever one ends, and return the exit code of `run_jobs`."""
        self.started += jobs
        # One line for each run that ends: bars for hundreds of runs fit no terminal.
        plain = Console(file=self.console.file, force_terminal=False, highlight=False)
        return run_jobs(jobs, self.config.jobs or provenance.usable_cores(), self.folder, plain, self.write)

    def rest(self, contenders: Sequence[Contender]) -> list[SuiteJob]:
        """Return the jobs with further seeds, for each core and task with its best learning rate."""
        rate = self.results().rate
        best = [one for one in contenders if rate(one.task.name, one.config.core) == one.config.ppo.learning_rate]
        return self.jobs(best, range(1, self.config.seeds))

    def to_json(self) -> dict[str, Any]:
        """Return all finished runs in the folder as plain data, including those of earlier commands."""
        runs = list({**self.known.runs, **{run.job_name: run for run in read_runs(self.folder)}}.values())
        asked = {task.name for task in chosen_tasks(self.config.tasks)} | {run.task for run in runs}
        cores = list(dict.fromkeys([*self.config.cores, *(run.core for run in runs)]))
        return {
            "schema": SCHEMA,
            "command": self.command,
            "code": self.code,
            "settings": self.config.settings,
            "versions": provenance.versions(),
            "machine": provenance.machine(),
            "tasks": {name: task_facts(task, self.config) for name, task in TASKS.items() if name in asked},
            "cores": cores,
            "notes": [*notes(self.config, cores), *self.known.notes],
            "origins": self.known.notes,
            "runs": [asdict(run) for run in runs],
            "failures": [asdict(failure) for failure in failed_runs(self.started)],
        }

    def results(self) -> Results:
        """Return the results so far."""
        return Results.from_json(self.to_json())

    def write(self) -> None:
        """Write the results so far as JSON and as a table."""
        data = self.to_json()
        results = Results.from_json(data)
        write_json(self.folder / RESULTS, data | {"tuning": results.tuning()}, indent=None)
        (self.folder / TABLE).write_text(markdown(results))


def is_finished(job: Job) -> bool:
    """Return True if the folder of a job holds its finished run already.

    :raises UserError: if that run had other options
    """
    if read_run(job.place.folder) is None:
        return False
    require_same_options(job, REMEDY)
    return True


REMEDY = "name another --out, or add --overwrite to remove all that is there and start anew"


def task_facts(task: SuiteTask, config: SuiteConfig) -> dict[str, Any]:
    """Return the facts about a task that a reader of the results needs."""
    other = task.transferred()
    transfer = {"changes": list(task.transfer), "chance": other.chance, "perfect": other.perfect}
    return {
        "env": task.env,
        "arguments": task.options(config.num_envs).env_arguments,
        "steps": train_config(config, task, REFERENCE).run.steps,
        "score": task.score,
        "chance": task.chance,
        "perfect": task.perfect,
        "transfer": transfer if task.transfer else None,
    }


def notes(config: SuiteConfig, cores: Sequence[str]) -> list[str]:
    """Return the notes that explain the tables, which show `cores`."""
    own, rates = f"{config.ppo.learning_rate:g}", ", ".join(f"{rate:g}" for rate in RATES)
    tuned, others = (", ".join(core for core in cores if (core in TUNED) is part) for part in (True, False))
    found = [
        f"Mean of the seeds (lowest–highest) over {config.eval_episodes} held-out episodes a seed. "
        "Bold where the lowest seed of a core is above every seed of all others.",
        "success: share of episodes. normalised: the return, random play 0, perfect play 1. return: as it is. "
        "chance: the best agent without memory; for tasks of other packages, random play.",
    ]
    if others or not config.tune:
        found.append(f"{others if config.tune else 'All cores'}: one learning rate for all tasks, {own}.")
    if tuned and config.tune:
        found.append(f"{tuned}: on each task the best of {rates} by seed 0's return in the last fifth of training.")
    if tuned:
        found.append(f"{tuned}: the least width with at least as many parameters as {REFERENCE} has.")
    at_a_time = config.jobs or provenance.usable_cores()
    return [*found, f"One thread a run, {at_a_time} at a time, on {provenance.machine()['cpu']}."]


def open_suite(config: SuiteConfig) -> str:
    """Create the folder of the suite, or check the one to be continued.

    :return: fingerprint of the code that its runs are made with
    :raises UserError: if the results in it were made by other code or with other settings
    """
    code = fingerprint(sources())
    known = load_known(config, code)  # first, so that an error leaves earlier results alone
    folder, marker = config.out, config.out / MARKER
    found = None if config.overwrite or not marker.is_file() else read_table(marker)
    if found is not None and "suite" in found:
        with reading(marker, "no options of a suite"):
            _check_same(config, found, code)
        copy_code(folder / CODE)  # anew: the fingerprint covers what trains, and other files there would run too
    else:
        open_folder(folder, overwrite=config.overwrite, name="suite")
        copy_code(folder / CODE)
        write_json(marker, {"suite": config.settings, "code": code})
    if known is not None:
        write_json(folder / KNOWN, known, indent=None)
    return code


def _check_same(config: SuiteConfig, found: dict[str, Any], code: str) -> None:
    copy, out = (config.out / CODE).resolve(), config.out.resolve()
    require(
        code == found["code"] == fingerprint(copied(copy)),
        f"{config.out} holds results of other code ({found['code']}, this is {code}); {REMEDY}, or go on with the code "
        f"that they were made with: run `python -m ctrl.experiments suite --out {out}` in {copy}",
    )
    changes = list(differences(found["suite"], config.settings))
    require(not changes, f"{config.out} holds results with other options ({'; '.join(changes)}); {REMEDY}")


def show(results: Results, console: Console) -> None:
    """Print the tables and the failed runs."""
    console.print(tables(results))
    print_failures(results.failures, console)


def run_command(config: SuiteConfig, console: Console) -> int:
    """Run `ctrl suite` and return its exit code: 0 if all runs finished, 1 if one failed, 130 after Ctrl-C."""
    if config.table is not None:
        results = read_results(config.table)
        with reading(config.table, "no sound results of a suite"):
            show(results, console)
        return 0
    torch.set_num_threads(1)  # more threads only wait for each other while other runs keep the machine busy
    contenders = plan(config)  # first, so that an error leaves earlier results alone
    suite = Suite(config, open_suite(config), provenance.command(), console)
    exit_code = suite.run(suite.jobs(contenders, [0]))
    if exit_code != INTERRUPTED:
        exit_code = max(exit_code, suite.run(suite.rest(contenders)))
    suite.write()
    show(suite.results(), console)
    console.print(f"numbers: {config.out / RESULTS}\n  table: {config.out / TABLE}", soft_wrap=True)
    return exit_code
