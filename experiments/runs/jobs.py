"""Parallel training runs, each in a process of its own: what `ctrl compare`, `ctrl ablate` and `ctrl suite` share.

A run that fails is reported and does not stop the others. Results are written whenever a run ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from ctrl.experiments.config import TrainConfig
from ctrl.experiments.errors import UserError, require
from ctrl.experiments.report.summary import (
    FailedRun,
    Point,
    RunSummary,
    duration_text,
    evaluation_text,
    read_curve,
    recent,
)
from ctrl.experiments.runs.progress import point_text, training_progress
from ctrl.experiments.runs.run_folder import CURVE, HELD_OUT, MARKER, SUMMARY, clear_run, differences, read_json
from ctrl.experiments.runs.training import FINISHED, RUNNING, Place

POLL_SECONDS = 0.25
PATIENCE_SECONDS = 60
"""Seconds that a stopped run may take to save before it is killed."""
LOG = "log.txt"


@dataclass
class Job:
    """One training run and, once it is started, its process."""

    label: str
    """Name of the compared setting; runs with the same label differ only in their seed."""
    config: TrainConfig
    place: Place
    process: subprocess.Popen[bytes] | None = None
    result: RunSummary | FailedRun | None = None
    worker: str = "ctrl.experiments.runs.worker"
    """Module that the process runs."""
    trust: bool = False
    """Whether code from the run's own files may run, where the run goes on."""
    cwd: Path | None = None
    """Working directory of the process, from which it imports first; `place` must then be absolute. None for ours."""

    @classmethod
    def within(cls, folder: Path, label: str, config: TrainConfig, command: str) -> Job:
        """Create a job whose run has its folders inside `folder`."""
        name = Path(label) / f"seed{config.seed}"
        return cls(label, config, Place(folder / "runs" / name, folder / "tensorboard" / name, command))

    @property
    def name(self) -> str:
        """Name of the run, here and in TensorBoard."""
        return f"{self.label}/seed{self.config.seed}"

    def start(self) -> None:
        """Start the process, which goes on with a run in its folder that has the same options.

        Its output goes to a log file there.
        """
        if not self._is_begun():
            clear_run(self.place.folder)
        self.place.write_config(self.config)
        arguments = [sys.executable, "-m", self.worker, str(self.place.folder), str(os.getpid())]
        arguments += ["trust"] if self.trust else []
        with (self.place.folder / LOG).open("wb") as log:
            # A session of its own: Ctrl-C reaches the run once, through `ask_to_stop`.
            self.process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_worker_env(),
                cwd=self.cwd,
                start_new_session=True,
            )

    def _is_begun(self) -> bool:
        """Return True if the folder holds a run with these options, or with fewer steps."""
        try:
            options = read_json(self.place.folder / MARKER)["options"]
            fewer = options["run"]["steps"] <= self.config.run.steps
            options["run"]["steps"] = self.config.run.steps
            there = TrainConfig.from_json(options)
        except (UserError, KeyError, TypeError, ValueError):
            return False
        return fewer and not list(differences(there.to_json(), self.config.to_json()))

    def read_ended(self) -> None:
        """Read the result of a run that another command has started."""
        done = read_finished(self.place.folder)
        if done is None or done.steps < self.config.run.steps:
            self.result = FailedRun(self.label, self.config.seed, "has not finished")
        else:
            self.result = done

    def poll(self) -> bool:
        """Return True if the run has ended, and read its result then."""
        if self.process is None or self.process.poll() is None:
            return False
        self.result = self._read_result(self.process.returncode)
        return True

    def ask_to_stop(self) -> None:
        """Ask the run to save and end, if it is running."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)

    def wait_for_stop(self) -> None:
        """Wait for the end of the run; kill it after `PATIENCE_SECONDS`."""
        if self.process is None:
            return
        try:
            self.process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def points(self) -> list[Point]:
        """Return the learning curve so far."""
        return read_curve(self.place.folder / CURVE)

    def held_out(self) -> list[Point]:
        """Return the results of the held-out episodes so far."""
        return read_curve(self.place.folder / HELD_OUT)

    def _read_result(self, exit_code: int) -> RunSummary | FailedRun:
        path = self.place.folder / SUMMARY
        if path.is_file():
            summary = RunSummary.read(path)
            if summary.status == FINISHED and exit_code == 0:
                return summary
            if summary.status not in (FINISHED, RUNNING):
                return FailedRun(self.label, self.config.seed, summary.message)
        lines = (self.place.folder / LOG).read_text(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {exit_code}"
        return FailedRun(self.label, self.config.seed, f"{reason} (see {self.place.folder / LOG})")


def _worker_env() -> dict[str, str]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **threads}


def failed_runs(jobs: Sequence[Job]) -> list[FailedRun]:
    """Return the runs that have ended and did not finish."""
    return [job.result for job in jobs if isinstance(job.result, FailedRun)]


def read_finished(folder: Path) -> RunSummary | None:
    """Return the summary of the run in a folder; None unless the run has finished and was evaluated, if it is to be."""
    if not (folder / SUMMARY).is_file():
        return None
    summary = RunSummary.read(folder / SUMMARY)
    evaluates = TrainConfig.read(folder / MARKER).run.eval_episodes > 0
    return None if summary.status != FINISHED or (evaluates and summary.evaluation is None) else summary


def require_same_options(job: Job, remedy: str) -> None:
    """Raise a `UserError`, which ends in `remedy`, if the run in the folder of `job` had other options."""
    there = TrainConfig.read(job.place.folder / MARKER)
    changes = list(differences(there.to_json(), job.config.to_json()))
    require(not changes, f"{job.place.folder} holds a run with other options ({'; '.join(changes)}); {remedy}")


INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""


def run_jobs(jobs: Sequence[Job], parallel: int, folder: Path, console: Console, on_end: Callable[[], None]) -> int:
    """Run all jobs in their order, `parallel` at a time.

    :param jobs: jobs that are not started yet
    :param parallel: largest number of processes at a time
    :param folder: folder of the results, to be shown
    :param console: shows the progress
    :param on_end: called whenever a run has ended, and after Ctrl-C
    :return: the exit code: 0 if all runs finished, 1 if one failed, `INTERRUPTED` after Ctrl-C, once the runs have
        saved their results so far
    """
    if not jobs:
        return 0
    parallel = min(parallel, len(jobs))
    console.print(f"{len(jobs)} runs, {parallel} at a time; results go to {folder}", soft_wrap=True)
    display = Display(jobs, console)
    with display.progress if console.is_terminal else nullcontext():
        try:
            _run_all(jobs, parallel, display, on_end)
        except KeyboardInterrupt:
            console.print("stopping; the runs save what they have …")
            _stop(jobs)
            for job in jobs:
                job.poll()
            on_end()
            return INTERRUPTED
        except BaseException:
            _stop(jobs)  # after any other error, no process is left behind
            raise
    return 1 if failed_runs(jobs) else 0


def _stop(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.ask_to_stop()
    for job in jobs:
        job.wait_for_stop()


def _run_all(jobs: Sequence[Job], parallel: int, display: Display, on_end: Callable[[], None]) -> None:
    waiting = list(jobs)
    running: list[Job] = []
    while waiting or running:
        while waiting and len(running) < parallel:
            running.append(waiting.pop(0))
            running[-1].start()
        time.sleep(POLL_SECONDS)
        for job in list(running):
            if job.poll():
                running.remove(job)
                on_end()
            display.update(job)


class Display:
    """Progress of all runs: one bar for each; without a terminal, one line when a run ends."""

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.console = console
        self.progress: Progress = training_progress(console)
        self._tasks: dict[str, TaskID] = {
            job.name: self.progress.add_task(job.name, total=job.config.run.steps, state="waiting") for job in jobs
        }

    def update(self, job: Job) -> None:
        """Show the progress of a run."""
        points = job.points()
        steps = min(points[-1].steps, job.config.run.steps) if points else 0
        state = point_text(recent(points)) if points else "starting"
        if steps >= job.config.run.steps:
            state = "evaluating"
        if job.result is not None:
            state = result_text(job.result)
            if not self.console.is_terminal:
                self.console.print(f"{job.name}: {state}", soft_wrap=True)
        self.progress.update(self._tasks[job.name], completed=steps, state=state)


def result_text(result: RunSummary | FailedRun) -> str:
    """Describe in a few words how a run ended."""
    if isinstance(result, FailedRun):
        return f"[red]failed[/]: {result.message}"
    if result.evaluation is None:
        return f"done in {duration_text(result.wall_seconds)}"
    return f"{evaluation_text(result.evaluation)} in {duration_text(result.wall_seconds)}"
