"""Several cores on one task with several seeds: the same steps, the same envs, each run in a process of its own.

Results are written as they come. A run that fails is reported and takes no other with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from ctrl.experiments import provenance
from ctrl.experiments.config import CompareConfig, TrainConfig
from ctrl.experiments.folders import CURVE, MARKER, SUMMARY, open_folder, read_json, slug, write_json
from ctrl.experiments.models import Match, build_model, match_width, parameter_count
from ctrl.experiments.plots import learning_curves, save_figure
from ctrl.experiments.progress import point_text, training_progress
from ctrl.experiments.summary import (
    SCHEMA,
    FailedRun,
    Point,
    RunSummary,
    aggregate,
    comparison_table,
    count_text,
    duration_text,
    evaluation_text,
    read_curve,
)
from ctrl.experiments.tasks import known_scores, make_task, success_reference
from ctrl.experiments.training import FINISHED, Place

POLL_SECONDS = 0.25
PATIENCE_SECONDS = 60
"""How long a stopped run may take to save before it is killed."""
PICTURE = "learning_curves.png"
LOG = "log.txt"


@dataclass
class Job:
    """One run and, once it is started, its process."""

    config: TrainConfig
    place: Place
    process: subprocess.Popen[bytes] | None = None
    result: RunSummary | FailedRun | None = None

    @property
    def name(self) -> str:
        """The run's name, here and in TensorBoard."""
        return f"{self.config.core}/seed{self.config.seed}"

    def start(self) -> None:
        """Start the process; what it prints goes to its folder."""
        self.place.write_config(self.config)
        arguments = [sys.executable, "-m", "ctrl.experiments.worker", str(self.place.folder), str(os.getpid())]
        with (self.place.folder / LOG).open("wb") as log:
            # A session of its own: Ctrl-C reaches the run once, through `ask_to_stop`.
            self.process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_worker_env(), start_new_session=True
            )

    def poll(self) -> bool:
        """Return whether the run has ended, and read its result if so."""
        if self.process is None or self.process.poll() is None:
            return False
        self.result = self._read_result(self.process.returncode)
        return True

    def ask_to_stop(self) -> None:
        """Ask the run, if it is running, to save and end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def wait_for_stop(self) -> None:
        """Wait for the run's end; kill it if it does not listen."""
        if self.process is None:
            return
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def points(self) -> list[Point]:
        """Return the run's curve so far."""
        return read_curve(self.place.folder / CURVE)

    def _read_result(self, exit_code: int) -> RunSummary | FailedRun:
        path = self.place.folder / SUMMARY
        if path.is_file():
            summary = RunSummary.from_json(read_json(path))
            if summary.status == FINISHED and exit_code == 0:
                return summary
            if summary.status != FINISHED:
                return FailedRun(self.config.core, self.config.seed, summary.message)
        lines = (self.place.folder / LOG).read_text(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {exit_code}"
        return FailedRun(self.config.core, self.config.seed, f"{reason} (see {self.place.folder / LOG})")


def _worker_env() -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads}


def plan(config: CompareConfig, console: Console) -> list[TrainConfig]:
    """Return one training run for each core and seed, seeds outermost, so that a stop leaves comparable runs."""
    by_core = [_train_config(config, core) for core in config.cores]
    check = make_task(replace(config.task, num_envs=1), seed=0, training=True)
    try:
        counts = [parameter_count(build_model(core, check)) for core in by_core]  # what doesn't fit is told at once
        if config.match_parameters:
            by_core = [by_core[0], *(_matched(core, check, counts[0], console) for core in by_core[1:])]
    finally:
        check.close()
    return [replace(core, seed=seed) for seed in range(config.seeds) for core in by_core]


def _train_config(config: CompareConfig, core: str) -> TrainConfig:
    learning_rate = config.rates.get(core, config.ppo.learning_rate)
    run = replace(config.run, threads=config.run.threads or 1)
    ppo = replace(config.ppo, learning_rate=learning_rate)
    return TrainConfig(core=core, task=config.task, run=run, memory=config.memory, ppo=ppo)


def _matched(config: TrainConfig, env: Any, target: int, console: Console) -> TrainConfig:
    match: Match = match_width(config, env, target)
    console.print(
        f"{config.core}: width {match.width} gives {match.parameters:,} parameters, "
        f"{match.difference:+.1%} against {target:,}",
        soft_wrap=True,
    )
    return replace(config, memory=replace(config.memory, width=match.width))


class Comparison:
    """The runs of a comparison and what is written about them."""

    def __init__(self, config: CompareConfig, folder: Path, jobs: Sequence[Job], command: str) -> None:
        self.config = config
        self.folder = folder
        self.jobs = jobs
        self.command = command
        self.start = time.perf_counter()

    @property
    def runs(self) -> list[RunSummary]:
        """The runs that finished, core by core."""
        done = [job.result for job in self.jobs if isinstance(job.result, RunSummary)]
        return sorted(done, key=lambda run: (self.config.cores.index(run.core), run.seed))

    @property
    def failures(self) -> list[FailedRun]:
        """The runs that did not."""
        return [job.result for job in self.jobs if isinstance(job.result, FailedRun)]

    def write(self) -> None:
        """Write `summary.json` with what there is so far."""
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
            "failures": [asdict(failure) for failure in self.failures],
        }
        write_json(self.folder / SUMMARY, data)

    def draw(self) -> Path | None:
        """Draw the learning curves of all runs that have one; None if none has."""
        curves: dict[str, list[list[Point]]] = {}
        for job in self.jobs:
            points = job.points()
            if points:
                curves.setdefault(job.config.core, []).append(points)
        if not curves:
            return None
        path = self.folder / PICTURE
        save_figure(learning_curves(curves, title=task_title(self.config), **self._reference(curves)), path)
        return path

    def show(self, console: Console) -> None:
        """Print the table, and below it where everything is."""
        scores = known_scores(self.config.task)
        baselines = {} if scores is None else {"no memory": scores.memoryless, "perfect": scores.perfect}
        if self.runs:
            run = self.config.run
            caption = f"{run.eval_episodes} held-out episodes a seed, after {count_text(run.steps)} steps of training"
            console.print(comparison_table(aggregate(self.runs), task_title(self.config), baselines, caption))
        for failure in self.failures:
            console.print(f"{failure.core}/seed{failure.seed}: {failure.message}", style="bold red", soft_wrap=True)
        picture = self.draw()
        self._say_where(console, picture)

    def _say_where(self, console: Console, picture: Path | None) -> None:
        lines = {
            "wall time": duration_text(time.perf_counter() - self.start),
            "picture": str(picture) if picture else "none",
            "numbers": str(self.folder / SUMMARY),
            "TensorBoard": f"{provenance.tool('tensorboard')} --logdir {self.folder / 'tensorboard'}",
        }
        for name, text in lines.items():
            console.print(f"{name:>11}: {text}", soft_wrap=True)
        if len(self.config.cores) > 1:
            console.print(
                f"{'':>13}(colour its runs by the regex ([^/]+)/ to see one colour for each core)", markup=False
            )

    def _reference(self, curves: Mapping[str, Sequence[Sequence[Point]]]) -> dict[str, Any]:
        scores = known_scores(self.config.task)
        has_success = any(point.success == point.success for seeds in curves.values() for run in seeds for point in run)
        value = success_reference(self.config.task) if has_success else scores and scores.memoryless
        return {
            "metric": "success" if has_success else "return",
            "reference": None if value is None else ("best without memory", value),
        }


def task_title(config: CompareConfig) -> str:
    """Name the task with its arguments."""
    arguments = ", ".join(config.task.env_kwargs)
    return f"{config.task.env} ({arguments})" if arguments else config.task.env


def compare(
    config: CompareConfig, runs: Sequence[TrainConfig], folder: Path, console: Console, command: str
) -> tuple[Comparison, int]:
    """Train every core with every seed and write what comes out.

    :param config: the comparison
    :param runs: what `plan` made of it
    :param folder: where to write
    :param console: where to show the progress
    :param command: the command line to keep with the results
    :return: the comparison, and the exit code: 0 if all runs finished, 1 if one failed, 130 after Ctrl-C
    """
    write_json(folder / MARKER, {"command": command, "comparison": asdict(config) | {"out": str(folder)}})
    jobs = [Job(run, _place(run, folder, command)) for run in runs]
    comparison = Comparison(config, folder, jobs, command)
    parallel = min(config.jobs or provenance.usable_cores(), len(jobs))
    console.print(f"{len(jobs)} runs, {parallel} at a time; results go to {folder}", soft_wrap=True)
    with _display(jobs, console) as display:
        try:
            _run_all(comparison, parallel, display)
        except KeyboardInterrupt:
            console.print("stopping; the runs save what they have …")
            _stop(jobs)
            for job in jobs:
                job.poll()
            comparison.write()
            return comparison, 128 + signal.SIGINT
        except BaseException:
            _stop(jobs)  # whatever went wrong here, no process is left behind
            raise
    return comparison, 1 if comparison.failures else 0


def _stop(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.ask_to_stop()
    for job in jobs:
        job.wait_for_stop()


def _place(run: TrainConfig, folder: Path, command: str) -> Place:
    name = Path(run.core) / f"seed{run.seed}"
    return Place(folder / "runs" / name, folder / "tensorboard" / name, command)


def _run_all(comparison: Comparison, parallel: int, display: Display) -> None:
    waiting = list(comparison.jobs)
    running: list[Job] = []
    while waiting or running:
        while waiting and len(running) < parallel:
            running.append(waiting.pop(0))
            running[-1].start()
        time.sleep(POLL_SECONDS)
        for job in list(running):
            if job.poll():
                running.remove(job)
                comparison.write()
            display.update(job)


class Display:
    """One bar for each run; where there is no terminal, one line when a run ends."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.console = console
        self.progress: Progress = training_progress(console)
        self._tasks: dict[str, TaskID] = {
            job.name: self.progress.add_task(job.name, total=job.config.run.steps, state="waiting") for job in jobs
        }

    def update(self, job: Job) -> None:
        """Show where a run is."""
        points = job.points()
        steps = min(points[-1].steps, job.config.run.steps) if points else 0
        state = point_text(points[-1]) if points else "starting"
        if steps >= job.config.run.steps:
            state = "evaluating"
        if job.result is not None:
            state = result_text(job.result)
            if not self.console.is_terminal:
                self.console.print(f"{job.name}: {state}", soft_wrap=True)
        self.progress.update(self._tasks[job.name], completed=steps, state=state)


def result_text(result: RunSummary | FailedRun) -> str:
    """Say in a few words how a run ended."""
    if isinstance(result, FailedRun):
        return f"[red]failed[/]: {result.message}"
    if result.evaluation is None:
        return f"done in {duration_text(result.wall_seconds)}"
    return f"{evaluation_text(result.evaluation)} in {duration_text(result.wall_seconds)}"


@contextmanager
def _display(jobs: Sequence[Job], console: Console) -> Iterator[Display]:
    display = Display(jobs, console)
    if not console.is_terminal:
        yield display
        return
    with display.progress:
        yield display


def run_command(config: CompareConfig, console: Console) -> int:
    """Carry out `ctrl compare`."""
    runs = plan(config, console)  # first, so that a mistake leaves earlier results alone
    folder = open_folder(config.out, overwrite=config.overwrite, name=f"{slug(config.task.env)}-compare")
    comparison, exit_code = compare(config, runs, folder, console, provenance.command())
    comparison.show(console)
    comparison.write()
    return exit_code
