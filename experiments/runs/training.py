"""One training run: train, save checkpoints and curves, save the model, evaluate it and write a summary.

However the run ends, its folder holds usable results: `model.zip` if training finished or was stopped, the last good
checkpoint if training failed (such as by a number that is not finite), and `summary.json` with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from stable_baselines3.common.logger import configure

from ctrl.agents import ActorError, NonFiniteError
from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.report import provenance, tensorboard
from ctrl.experiments.report.summary import RunSummary, recent, run_table
from ctrl.experiments.report.tables import print_places
from ctrl.experiments.runs.build import build_model, parameter_count
from ctrl.experiments.runs.evaluate import evaluate_run, reconstruction_errors
from ctrl.experiments.runs.progress import LiveReporter, Reporter
from ctrl.experiments.runs.recorder import ElapsedTime, Recorder
from ctrl.experiments.runs.run_folder import MARKER, MODEL, SUMMARY, open_folder, slug, write_json
from ctrl.experiments.runs.signals import StopRequests
from ctrl.experiments.runs.tasks import make_task, stated_scores, training_seed

FINISHED, INTERRUPTED, FAILED = "finished", "interrupted", "failed"


@dataclass(frozen=True)
class Place:
    """Folders that a run writes to, and the command line that it came from."""

    folder: Path
    tensorboard: Path
    command: str

    def write_config(self, config: TrainConfig) -> None:
        """Write the options, so that the run can be read and repeated."""
        self.folder.mkdir(parents=True, exist_ok=True)
        data = {"command": self.command, "tensorboard": str(self.tensorboard), "options": config.to_json()}
        write_json(self.folder / MARKER, data)


@dataclass(frozen=True)
class Outcome:
    """Summary and exit code of a run."""

    summary: RunSummary
    exit_code: int


@contextmanager
def prepared(config: TrainConfig) -> Iterator[MemoryAlgorithm]:
    """Build the task and the agent, before anything is written, and close the task in the end.

    :raises UserError: if the task or the agent cannot be built
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    env = make_task(config.task, seed=training_seed(config.seed), training=True)
    try:
        model = build_model(config, env)
        env.seed(training_seed(config.seed))  # again: the agent's own seeding may overlap with other runs
        yield model
    finally:
        env.close()


def train(
    model: MemoryAlgorithm, config: TrainConfig, place: Place, reporter: Reporter, *, parent: int | None = None
) -> Outcome:
    """Train, save and evaluate one agent.

    :param model: agent that `prepared` built
    :param config: options that it was built from
    :param place: folders to write to
    :param reporter: shows the progress
    :param parent: id of the process whose end stops the run, if any
    """
    place.write_config(config)
    stop = StopRequests(parent)
    with Recorder(config, place.folder, reporter, stop) as recorder, logged(model, place):
        outcome = _learn(model, config, place, recorder, stop)
        write_json(place.folder / SUMMARY, outcome.summary.to_json())
        if outcome.summary.status != FINISHED or not config.run.eval_episodes:
            return outcome
        summary = _evaluated(model, config, recorder, outcome.summary)
    write_json(place.folder / SUMMARY, summary.to_json())
    return Outcome(summary, exit_code=0)


@contextmanager
def logged(model: MemoryAlgorithm, place: Place) -> Iterator[None]:
    """Log the agent to TensorBoard inside the `with` block."""
    model.set_logger(configure(str(place.tensorboard), ["tensorboard"]))
    try:
        yield
    finally:
        model.logger.close()


def _learn(
    model: MemoryAlgorithm, config: TrainConfig, place: Place, recorder: Recorder, stop: StopRequests
) -> Outcome:
    status, exit_code, message = FINISHED, 0, ""
    start = ElapsedTime.now()
    with stop:
        try:
            model.learn(config.run.steps, callback=recorder)
            if stop.requested:
                status, exit_code = INTERRUPTED, stop.exit_code
                message = f"stopped at step {model.num_timesteps:,}; the model is saved in {place.folder / MODEL}"
        except (NonFiniteError, ActorError) as error:
            status, exit_code = FAILED, 1
            kept = recorder.keep_last_good()
            message = f"{error}; training stopped. The last good checkpoint is kept: {kept}"
        taken = ElapsedTime.now().minus(start).minus(recorder.evaluating)
        if status != FAILED:
            model.save(place.folder / MODEL)
    return Outcome(_summarise(model, config, place, recorder, taken, status, message), exit_code)


def _evaluated(model: MemoryAlgorithm, config: TrainConfig, recorder: Recorder, summary: RunSummary) -> RunSummary:
    evaluation = evaluate_run(model, config)
    recorder.add_evaluation(evaluation)
    return replace(summary, evaluation=evaluation, reconstruction_error=reconstruction_errors(model, config))


def _summarise(
    model: MemoryAlgorithm,
    config: TrainConfig,
    place: Place,
    recorder: Recorder,
    taken: ElapsedTime,
    status: str,
    message: str,
) -> RunSummary:
    last = recent(recorder.points) if recorder.points else None
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
        training_episodes=0 if last is None else last.episodes,
        training_return=_known(last and last.return_),
        training_success=_known(last and last.success),
        scores=stated_scores(config.task),
        message=message,
        command=place.command,
        versions=provenance.versions(),
        machine=provenance.machine(),
        hyperparameters=config.to_json(),
    )


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def run_command(config: TrainConfig, console: Console) -> int:
    """Run `ctrl train` and return its exit code."""
    name = f"{slug(config.task.env)}-{config.core}"
    with prepared(config) as model:
        folder = open_folder(config.out, overwrite=config.overwrite, name=name)
        console.print(f"results go to {folder}", soft_wrap=True)
        place = Place(folder, folder / "tensorboard", provenance.command())
        tensorboard.write_references(place.tensorboard, config.task, config.run.steps)
        with LiveReporter(console, name, config.run.steps) as reporter:
            outcome = train(model, config, place, reporter)
    if outcome.summary.message:
        console.print(outcome.summary.message, style="yellow" if outcome.exit_code > 1 else "bold red", soft_wrap=True)
    if outcome.summary.status != FAILED:
        console.print(run_table(outcome.summary))
        print_places(console, ("evaluate", f"ctrl evaluate {folder}"), *tensorboard.how_to_look(place.tensorboard))
    return outcome.exit_code
