"""One training run: train, save checkpoints and curves, save the model, evaluate it and write a summary.

However the run ends, its folder holds usable results: `model.zip` if training finished or was stopped, the last
checkpoints in any case, and `summary.json` with the reason. A run that was killed is `running` there. The traceback of
an error is in `error.txt`. `ctrl train --resume` goes on from the newest whole model file.
"""

from __future__ import annotations

import math
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import torch
from rich.console import Console
from stable_baselines3.common.logger import configure

from ctrl.agents import ActorError, NonFiniteError
from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.report import provenance, tensorboard
from ctrl.experiments.report.summary import RunSummary, recent, run_table
from ctrl.experiments.report.tables import print_places
from ctrl.experiments.runs.build import build_model, load_to_go_on, parameter_count
from ctrl.experiments.runs.checkpoints import Progress, Start, whole_models
from ctrl.experiments.runs.progress import LiveReporter, Reporter
from ctrl.experiments.runs.recorder import ElapsedTime, Recorder
from ctrl.experiments.runs.resume import find_start, is_done, stored_tensorboard
from ctrl.experiments.runs.run_folder import ERROR_LOG, MARKER, SUMMARY, open_folder, slug, write_json
from ctrl.experiments.runs.signals import StopRequests
from ctrl.experiments.runs.tasks import make_task, stated_scores, training_seed
from ctrl.experiments.trained.evaluate import evaluate_run, reconstruction_errors

FINISHED, INTERRUPTED, FAILED, RUNNING = "finished", "interrupted", "failed", "running"


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
def prepared(config: TrainConfig, start: Start | None = None) -> Iterator[MemoryAlgorithm]:
    """Build the task and the agent, before anything is written, and close the task in the end.

    :param start: model file to go on from; None to build a new agent
    :raises UserError: if the task or the agent cannot be built or loaded
    """
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    env = make_task(config.task, seed=training_seed(config.seed), training=True)
    try:
        if start is None:
            model = build_model(config, env)
            env.seed(training_seed(config.seed))  # again: the agent's own seeding may overlap with other runs
        else:
            model = load_to_go_on(start.path, config, env)
        yield model
    finally:
        env.close()


def train(
    model: MemoryAlgorithm,
    config: TrainConfig,
    place: Place,
    reporter: Reporter,
    *,
    parent: int | None = None,
    start: Start | None = None,
) -> Outcome:
    """Train, save and evaluate one agent.

    :param model: agent that `prepared` built or loaded
    :param config: options that it was built from
    :param place: folders to write to
    :param reporter: shows the progress
    :param parent: id of the process whose end stops the run, if any
    :param start: model file that training goes on from; None for a new run
    """
    run = _Run(model, config, place, StopRequests(parent))
    with run.stop, _threads_logged(place.folder / ERROR_LOG):
        try:
            place.write_config(config)
            resumed = None if start is None else start.progress
            with Recorder(config, place.folder, reporter, run.stop, resumed) as recorder, logged(model, place, resumed):
                run.recorder = recorder
                run.write_summary(RUNNING, f"not ended yet, or killed; go on with: ctrl train --resume {place.folder}")
                run.learn_and_evaluate()
        except KeyboardInterrupt:
            run.note_interrupt()
        except Exception as error:
            run.note_error(error)
        with run.stop.held():
            return run.outcome()


@contextmanager
def logged(model: MemoryAlgorithm, place: Place, resumed: Progress | None = None) -> Iterator[None]:
    """Log the agent to TensorBoard inside the `with` block; a resumed run replaces what came after its start."""
    logger = configure(str(place.tensorboard), ["tensorboard"])
    if resumed is not None:
        tensorboard.drop_after(logger, resumed.steps)
    model.set_logger(logger)
    try:
        yield
    finally:
        model.logger.close()


@contextmanager
def _threads_logged(path: Path) -> Iterator[None]:
    """Write the tracebacks of other threads, such as TensorBoard's, to a file and not on the screen."""

    def log(failed: threading.ExceptHookArgs) -> None:
        with suppress(OSError), path.open("a") as file:
            traceback.print_exception(failed.exc_type, failed.exc_value, failed.exc_traceback, file=file)

    before, threading.excepthook = threading.excepthook, log
    try:
        yield
    finally:
        threading.excepthook = before


class _Run:
    """A training run and how it ends."""

    def __init__(self, model: MemoryAlgorithm, config: TrainConfig, place: Place, stop: StopRequests) -> None:
        self.model, self.config, self.place, self.stop = model, config, place, stop
        self.recorder: Recorder | None = None
        self.summary: RunSummary | None = None
        self.status, self.exit_code, self.message = RUNNING, 0, ""

    def learn_and_evaluate(self) -> None:
        """Train to the end, or until a stop is requested; save the model; evaluate it if it is trained to the end."""
        recorder = self._recorder()
        left = self.config.run.steps - self.model.num_timesteps
        if left > 0:
            self.model.learn(left, callback=recorder, reset_num_timesteps=recorder.is_new)
        else:
            recorder.init_callback(self.model)
            recorder.num_timesteps = self.model.num_timesteps  # which only `learn` would tell it
        path = recorder.save_model()
        if self.stop.requested:
            self.status, self.exit_code = INTERRUPTED, self.stop.exit_code
            self.message = f"stopped at step {self.model.num_timesteps:,}; the model is saved in {path}"
            return
        self.status = FINISHED
        if self.config.run.eval_episodes:
            self.stop.at_once = True
            self.write_summary(FINISHED, "")
            self._evaluate(recorder)

    def _evaluate(self, recorder: Recorder) -> None:
        evaluation = evaluate_run(self.model, self.config)
        errors = reconstruction_errors(self.model, self.config)
        recorder.add_evaluation(evaluation)
        self.summary = replace(self._summarise(FINISHED, ""), evaluation=evaluation, reconstruction_error=errors)

    def note_interrupt(self) -> None:
        """Note a stop at once, in which nothing more was saved, or in which the evaluation was cut."""
        self.exit_code = self.stop.exit_code
        if self.status == FINISHED:
            self.message = (
                f"trained, but stopped in the evaluation; go on with: ctrl train --resume {self.place.folder}"
            )
            return
        self.status = INTERRUPTED
        self.message = f"stopped at once at step {self.model.num_timesteps:,}; {self._last_good()}"

    def note_error(self, error: Exception) -> None:
        """Note an error, keep its traceback in a file, and save the weights if they are good."""
        self.exit_code, self.status, self.summary = 1, FAILED, None
        with suppress(OSError), (self.place.folder / ERROR_LOG).open("a") as file:
            traceback.print_exception(error, file=file)
        with suppress(Exception):  # the same disk may refuse this, too
            if self.recorder is not None:
                self.recorder.keep_last_good()
        self.message = f"{error_text(error)}; training stopped. {self._last_good()}"

    def outcome(self) -> Outcome:
        """Write the summary, if the disk takes it, and return it with the exit code."""
        summary = self.summary or self._summarise(self.status, self.message)
        try:
            write_json(self.place.folder / SUMMARY, summary.to_json())
        except OSError as error:
            summary = replace(summary, message=f"{self.message}; {SUMMARY} could not be written: {error_text(error)}")
        return Outcome(summary, self.exit_code)

    def write_summary(self, status: str, message: str) -> None:
        """Write the summary as it is now."""
        write_json(self.place.folder / SUMMARY, self._summarise(status, message).to_json())

    def _recorder(self) -> Recorder:
        assert self.recorder is not None
        return self.recorder

    def _last_good(self) -> str:
        """Say where the newest whole model is."""
        newest = next(whole_models(self.place.folder, lambda _: None), None)
        return "no model was saved" if newest is None else f"The last good checkpoint is kept: {newest.path}"

    def _summarise(self, status: str, message: str) -> RunSummary:
        model, config, points = self.model, self.config, [] if self.recorder is None else self.recorder.points
        last = recent(points) if points else None
        taken = ElapsedTime() if self.recorder is None else self.recorder.learning
        return RunSummary(
            core=config.core,
            seed=config.seed,
            env=config.task.env,
            env_kwargs=config.task.env_arguments,
            status=status,
            steps=model.num_timesteps,
            parameters=parameter_count(model),
            state_bytes=model.policy.core.state_bytes,
            steps_per_second=model.num_timesteps / taken.wall if taken.wall else 0.0,
            wall_seconds=taken.wall,
            cpu_seconds=taken.cpu,
            training_episodes=0 if last is None else last.episodes,
            training_return=_known(last and last.return_),
            training_success=_known(last and last.success),
            scores=stated_scores(config.task),
            message=message,
            command=self.place.command,
            versions=provenance.versions(),
            machine=provenance.machine(),
            hyperparameters=config.to_json(),
        )


def error_text(error: BaseException) -> str:
    """Return an error in one line: of a longer text the first line, and the last one or those below a traceback."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    ending = list(takewhile(lambda line: not line.startswith(" "), reversed(lines)))[::-1]  # the error and its notes
    last = "; ".join(ending) if len(ending) < len(lines) else lines[-1] if lines else ""
    text = " ".join(line.strip() for line in dict.fromkeys([*lines[:1], last]))
    return text if isinstance(error, NonFiniteError | ActorError | UserError) else f"{type(error).__name__}: {text}"


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def run_command(config: TrainConfig, console: Console) -> int:
    """Run `ctrl train` and return its exit code."""
    if config.resume is not None:
        return _resume(config, config.resume, console)
    name = f"{slug(config.task.env)}-{config.core}"
    with prepared(config) as model:
        folder = open_folder(config.out, overwrite=config.overwrite, name=name)
        console.print(f"results go to {folder}", soft_wrap=True)
        place = Place(folder, folder / "tensorboard", provenance.command())
        tensorboard.write_references(place.tensorboard, config.task, config.run.steps)
        with LiveReporter(console, name, config.run.steps) as reporter:
            outcome = train(model, config, place, reporter)
    return _show(outcome, place, console)


def _resume(config: TrainConfig, folder: Path, console: Console) -> int:
    """Go on with the run in `folder`, from its newest whole model file."""
    start = find_start(folder, lambda text: console.print(text, style="yellow", soft_wrap=True))
    if is_done(folder, config, start):
        console.print(f"{folder} has finished; --steps with more than {config.run.steps:,} goes on", soft_wrap=True)
        return 0
    where = "begins anew: there is no checkpoint" if start is None else f"goes on from {start.path}"
    console.print(f"{folder} {where}", soft_wrap=True)
    place = Place(folder, stored_tensorboard(folder), provenance.command())
    with prepared(config, start) as model, LiveReporter(console, folder.name, config.run.steps) as reporter:
        outcome = train(model, config, place, reporter, start=start)
    return _show(outcome, place, console)


def _show(outcome: Outcome, place: Place, console: Console) -> int:
    if outcome.summary.message:
        console.print(outcome.summary.message, style="yellow" if outcome.exit_code > 1 else "bold red", soft_wrap=True)
    if outcome.summary.status != FAILED:
        console.print(run_table(outcome.summary))
        look = tensorboard.how_to_look(place.tensorboard)
        print_places(console, ("evaluate", f"ctrl evaluate {place.folder}"), *look)
    return outcome.exit_code
