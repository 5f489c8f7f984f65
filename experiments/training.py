"""One training run: learn, keep checkpoints and curves, save, evaluate, and say what it brought.

However it ends, the folder holds what can be used: `model.zip` when training finished or was stopped, the last good
checkpoint when a number was not finite, and `summary.json` with the reason.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure

from ctrl.agents import ActorError, NonFiniteError
from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.experiments import provenance
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.evaluate import evaluate_run, reconstruction_errors
from ctrl.experiments.folders import CHECKPOINTS, CURVE, MARKER, MODEL, SUMMARY, open_folder, slug, write_json
from ctrl.experiments.models import build_model, parameter_count
from ctrl.experiments.progress import LiveReporter, Reporter
from ctrl.experiments.signals import StopRequests
from ctrl.experiments.summary import CURVE_COLUMNS, Point, RunSummary, run_table
from ctrl.experiments.tasks import make_task, training_seed

FINISHED, INTERRUPTED, FAILED = "finished", "interrupted", "failed"


@dataclass(frozen=True)
class Place:
    """Where a run writes, and the command line that it came from."""

    folder: Path
    tensorboard: Path
    command: str

    def write_config(self, config: TrainConfig) -> None:
        """Keep the options, so that the run can be read and repeated."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {"command": self.command, "tensorboard": str(self.tensorboard), "options": config.to_json()}
        write_json(self.folder / MARKER, data)


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    summary: RunSummary
    exit_code: int


class Taken(NamedTuple):
    """Time in seconds, on the wall and of the processor with all its threads."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Taken:
        """Read both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Taken) -> Taken:
        """Return what has passed since `start`."""
        return Taken(self.wall - start.wall, self.cpu - start.cpu)


@contextmanager
def prepared(config: TrainConfig) -> Iterator[MemoryAlgorithm]:
    """Build task and agent, before anything is written; the task is closed in the end.

    :raises UserError: where the task or the agent cannot be built
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    env = make_task(config.task, seed=training_seed(config.seed), training=True)
    try:
        model = build_model(config, env)
        env.seed(training_seed(config.seed))  # the agent seeds its envs too; seeds of two runs must not overlap
        yield model
    finally:
        env.close()


def train(
    model: MemoryAlgorithm, config: TrainConfig, place: Place, reporter: Reporter, *, parent: int | None = None
) -> Outcome:
    """Train, save and evaluate one agent.

    :param model: what `prepared` built
    :param config: what it was built from
    :param place: where to write
    :param reporter: what shows the progress
    :param parent: process that the run stops with, if any
    """
    place.write_config(config)
    outcome = _learn(model, config, place, reporter, StopRequests(parent))
    write_json(place.folder / SUMMARY, outcome.summary.to_json())
    if outcome.summary.status != FINISHED or not config.run.eval_episodes:
        return outcome
    summary = replace(
        outcome.summary,
        evaluation=evaluate_run(model, config),
        reconstruction_error=reconstruction_errors(model, config),
    )
    write_json(place.folder / SUMMARY, summary.to_json())
    return Outcome(summary, exit_code=0)


def _learn(
    model: MemoryAlgorithm, config: TrainConfig, place: Place, reporter: Reporter, stop: StopRequests
) -> Outcome:
    recorder = Recorder(config, place.folder, reporter, stop)
    model.set_logger(configure(str(place.tensorboard), ["tensorboard"]))
    status, exit_code, message = FINISHED, 0, ""
    start = Taken.now()
    with stop, recorder:
        try:
            model.learn(config.run.steps, callback=recorder)
            if stop.requested:
                status, exit_code = INTERRUPTED, stop.exit_code
                message = f"stopped at step {model.num_timesteps:,}; the model is saved in {place.folder / MODEL}"
        except (NonFiniteError, ActorError) as error:
            status, exit_code = FAILED, 1
            kept = recorder.keep_last_good()
            message = f"{error}; training stopped. The last good checkpoint is kept: {kept}"
        taken = Taken.now().since(start)
        if status != FAILED:
            model.save(place.folder / MODEL)
    model.logger.close()
    return Outcome(_summarise(model, config, place, recorder, taken, status, message), exit_code)


def _summarise(
    model: MemoryAlgorithm,
    config: TrainConfig,
    place: Place,
    recorder: Recorder,
    taken: Taken,
    status: str,
    message: str,
) -> RunSummary:
    last = recorder.last
    return RunSummary(
        core=config.core,
        seed=config.seed,
        env=config.task.env,
        env_kwargs=config.task.env_arguments,
        status=status,
        steps=model.num_timesteps,
        parameters=parameter_count(model),
        state_bytes=model.policy.core.state_bytes,
        steps_per_second=model.num_timesteps / taken.wall,
        wall_seconds=taken.wall,
        cpu_seconds=taken.cpu,
        training_return=None if last is None else last.return_,
        training_success=None if last is None or np.isnan(last.success) else last.success,
        message=message,
        command=place.command,
        versions=provenance.versions(),
        machine=provenance.machine(),
        hyperparameters=config.to_json(),
    )


class Recorder(BaseCallback):
    """Writes the curve, keeps checkpoints, moves the progress bar and hears requests to stop."""

    def __init__(self, config: TrainConfig, folder: Path, reporter: Reporter, stop: StopRequests) -> None:
        super().__init__()
        self.config = config
        self.folder = folder
        self.reporter = reporter
        self.stop = stop
        self.last: Point | None = None
        """The last point of the curve at which episodes ended."""
        self._returns: list[float] = []
        self._successes: list[float] = []
        self._next_checkpoint = 0

    def __enter__(self) -> Recorder:
        (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        self._file = (self.folder / CURVE).open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(CURVE_COLUMNS)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()
        self._checkpoint()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:  # which a Monitor adds when an episode ends
                self._count_episode(info)
        self.reporter.advance(self.num_timesteps)
        return not self.stop.requested

    # An update lies between two rollouts, so its time is part of the speed that is recorded here.
    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self._record()
        if self.num_timesteps >= self._next_checkpoint:
            self._checkpoint()

    def _on_training_end(self) -> None:
        self._record()

    def keep_last_good(self) -> Path:
        """Save the weights as they are if they are finite, and return the last good checkpoint.

        A number that is not finite is noticed before it changes a weight, so these weights are good as a rule.
        """
        if all(bool(torch.isfinite(parameter).all()) for parameter in self.model.policy.parameters()):
            self._checkpoint()
        return max((self.folder / CHECKPOINTS).glob("*.zip"))

    def _count_episode(self, info: dict[str, Any]) -> None:
        self._returns.append(float(info["episode"]["r"]))
        if "is_success" in info:
            self._successes.append(float(info["is_success"]))

    def _record(self) -> None:
        point = Point(
            self.num_timesteps,
            float(np.mean(self._returns)) if self._returns else float("nan"),
            float(np.mean(self._successes)) if self._successes else float("nan"),
            len(self._returns),
            self.num_timesteps / (time.perf_counter() - self._start),
        )
        if point.episodes:
            self.last = point
        self._writer.writerow((point.steps, *(f"{value:.6g}" for value in point[1:])))
        self._file.flush()
        self.reporter.record(point)
        self._returns, self._successes = [], []

    def _checkpoint(self) -> None:
        path = self.folder / CHECKPOINTS / f"step_{self.num_timesteps:012d}.zip"
        partial = path.with_name(f".partial-{path.name}")
        self.model.save(partial)
        os.replace(partial, path)  # a crash while saving never leaves half a checkpoint
        self._next_checkpoint = self.num_timesteps + self.config.run.checkpoint_interval


def run_command(config: TrainConfig, console: Console) -> int:
    """Carry out `ctrl train`."""
    name = f"{slug(config.task.env)}-{config.core}"
    with prepared(config) as model:
        folder = open_folder(config.out, overwrite=config.overwrite, name=name)
        console.print(f"results go to {folder}", soft_wrap=True)
        place = Place(folder, folder / "tensorboard", provenance.command())
        with LiveReporter(console, name, config.run.steps) as reporter:
            outcome = train(model, config, place, reporter)
    if outcome.summary.message:
        console.print(outcome.summary.message, style="yellow" if outcome.exit_code > 1 else "bold red", soft_wrap=True)
    if outcome.summary.status != FAILED:
        console.print(run_table(outcome.summary))
        _say_what_next(folder, console)
    return outcome.exit_code


def _say_what_next(folder: Path, console: Console) -> None:
    for what, line in (
        ("evaluate", f"ctrl evaluate {folder}"),
        ("look", f"{provenance.tool('tensorboard')} --logdir {folder / 'tensorboard'}"),
    ):
        console.print(f"{what:>8}: {line}", soft_wrap=True)
