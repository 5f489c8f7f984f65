"""Recording of a training run: its curves, its checkpoints, and the time that learning took."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat

from ctrl.agents import GymnasiumVecEnv
from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.agents.resuming.random_state import kept_random_state
from ctrl.agents.vec_envs.infos import episode_of, success_of
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.report.summary import CURVE_COLUMNS, Evaluation, Point, read_curve, recent
from ctrl.experiments.report.tensorboard import log_evaluation
from ctrl.experiments.runs.checkpoints import ModelFiles, Progress
from ctrl.experiments.runs.progress import Reporter
from ctrl.experiments.runs.run_folder import CHECKPOINTS, CURVE, HELD_OUT, written_whole
from ctrl.experiments.runs.signals import StopRequests
from ctrl.experiments.trained.evaluate import evaluate_run

SHARE, NATIVE_SHARE = 0.1, 0.4
"""Env steps of an evaluation during training, as a share of the training steps between two evaluations.

An evaluation then takes about a twentieth of the time, since nothing is learned in it. `NATIVE_SHARE` is for native
vector envs, in which more copies hardly take longer.
"""
MOST_EPISODES = 32
"""Largest number of episodes in an evaluation during training."""


class ElapsedTime(NamedTuple):
    """Elapsed time in seconds: wall time, and processor time of all threads."""

    wall: float = 0.0
    cpu: float = 0.0

    @classmethod
    def now(cls) -> ElapsedTime:
        """Return the present readings of both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def plus(self, other: ElapsedTime) -> ElapsedTime:
        """Return the sum of both times."""
        return ElapsedTime(self.wall + other.wall, self.cpu + other.cpu)

    def minus(self, other: ElapsedTime) -> ElapsedTime:
        """Return the time without `other`, or the time since the reading `other`."""
        return ElapsedTime(self.wall - other.wall, self.cpu - other.cpu)


class CurveFile:
    """Learning curve as a CSV file that can be read while it grows.

    :param path: of the file
    :param kept: number of rows of an earlier part of the run to go on from; None for a new file
    :param steps: rows after this step are not kept
    """

    def __init__(self, path: Path, kept: int | None = None, steps: int = 0) -> None:
        self.points = [] if kept is None else [point for point in read_curve(path)[:kept] if point.steps <= steps]
        """Rows so far."""
        lines = path.read_text().splitlines()[1 : 1 + len(self.points)] if self.points else []
        with written_whole(path) as partial:
            partial.write_text("\r\n".join([",".join(CURVE_COLUMNS), *lines, ""]), newline="")
        self._file = path.open("a", newline="")
        self._writer = csv.writer(self._file)

    def add(self, point: Point) -> None:
        """Write a row."""
        self.points.append(point)
        self._writer.writerow((point.steps, *(f"{value:.6g}" for value in point[1:])))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Recorder(BaseCallback):
    """Callback that writes curves and checkpoints, reports the progress and ends training when a stop is requested.

    Now and then it evaluates the agent between two updates. An evaluation does not change training, and its time does
    not count as time of learning.

    :param resumed: progress at the model file that training goes on from; None for a new run
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        reporter: Reporter,
        stop: StopRequests,
        resumed: Progress | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.folder = folder
        self.reporter = reporter
        self.stop = stop
        self.files = ModelFiles(folder, config.run.keep_checkpoints)
        self.evaluating = ElapsedTime()
        """Time that the evaluations so far have taken."""
        self._resumed = resumed
        self._at_start = resumed is not None  # the first rollout begins where the model file was written
        self._before = ElapsedTime() if resumed is None else ElapsedTime(*resumed.learning)
        self._returns: list[float] = [] if resumed is None else list(resumed.returns)
        self._successes: list[float] = [] if resumed is None else list(resumed.successes)
        self._next_checkpoint = 0 if resumed is None else resumed.next_checkpoint
        self._next_evaluation = (config.run.evaluation_interval or 0) if resumed is None else resumed.next_evaluation
        self._score = None if resumed is None else resumed.score
        self._at_end: Progress | None = None

    def __enter__(self) -> Recorder:
        (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        old = self._resumed
        steps = 0 if old is None else old.steps
        self._start = ElapsedTime.now()
        self._curve = CurveFile(self.folder / CURVE, None if old is None else old.curve_rows, steps)
        self._held_out = CurveFile(self.folder / HELD_OUT, None if old is None else old.held_out_rows, steps)
        return self

    def __exit__(self, *_: object) -> None:
        self._curve.close()
        self._held_out.close()

    @property
    def is_new(self) -> bool:
        """True unless training goes on from a model file."""
        return self._resumed is None

    @property
    def points(self) -> list[Point]:
        """Learning curve so far."""
        return self._curve.points

    @property
    def learning(self) -> ElapsedTime:
        """Time that learning has taken so far, in all parts of the run."""
        return self._before.plus(ElapsedTime.now().minus(self._start).minus(self.evaluating))

    def _on_training_start(self) -> None:
        self._start = ElapsedTime.now()
        if self._resumed is None:
            self._checkpoint()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info and (record := episode_of(info)) is not None:
                self._count_episode(record, info)
        self.reporter.advance(self.num_timesteps)
        return not self.stop.requested

    # The update of the last rollout is done by now, so its time is part of the speed that is recorded here. A
    # checkpoint comes last: whatever was written at its step is then complete when a run is resumed from it.
    def _on_rollout_start(self) -> None:
        if self._at_start:
            self._at_start = False
            return
        if self.num_timesteps:
            self._record()
        interval = self.config.run.evaluation_interval
        if interval is not None and self.num_timesteps >= self._next_evaluation:
            self._evaluate(interval)
        if self.num_timesteps >= self._next_checkpoint:
            self._checkpoint()

    def _on_training_end(self) -> None:
        if self.stop.requested:
            self._at_end = self.progress()  # a resumed run has no row in mid-rollout
        self._record()

    def progress(self) -> Progress:
        """Return the state of the recording, so that a resumed run records on."""
        return Progress(
            steps=self.num_timesteps,
            curve_rows=len(self._curve.points),
            held_out_rows=len(self._held_out.points),
            next_checkpoint=self._next_checkpoint,
            next_evaluation=self._next_evaluation,
            returns=list(self._returns),
            successes=list(self._successes),
            learning=(self.learning.wall, self.learning.cpu),
            score=self._score,
        )

    def save_model(self) -> Path:
        """Save the model at the end of training, and return its path."""
        return self.files.add_model(self.model, self._at_end or self.progress())

    def keep_last_good(self) -> None:
        """Save the present weights if they are finite.

        A number that is not finite is noticed before it changes a weight, so the present weights are usually good.
        """
        if all(bool(torch.isfinite(parameter).all()) for parameter in self.model.policy.parameters()):
            self._checkpoint()

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Write the results of held-out episodes at the present step, also to TensorBoard."""
        success = math.nan if evaluation.success is None else evaluation.success
        speed = self.points[-1].steps_per_second if self.points else math.nan
        self._held_out.add(Point(self.num_timesteps, evaluation.return_mean, success, evaluation.episodes, speed))
        self._score = evaluation.return_mean if evaluation.success is None else evaluation.success
        log_evaluation(self.logger, evaluation, self.num_timesteps)

    def _evaluate(self, interval: int) -> None:
        start = ElapsedTime.now()
        native = isinstance(self.training_env.unwrapped, GymnasiumVecEnv)
        lengths = [info["l"] for info in self.model.ep_info_buffer or ()]
        episodes = affordable_episodes(lengths, interval * (NATIVE_SHARE if native else SHARE))
        if episodes:
            with kept_random_state():  # tasks of other packages may draw from global generators
                evaluation = evaluate_run(cast(MemoryAlgorithm, self.model), self.config, episodes=episodes)
            self.add_evaluation(evaluation)
        self.evaluating = self.evaluating.plus(ElapsedTime.now().minus(start))
        self._next_evaluation = self.num_timesteps + interval

    def _count_episode(self, record: dict[str, Any], info: dict[str, Any]) -> None:
        self._returns.append(float(record["r"]))
        if (success := success_of(info)) is not None:
            self._successes.append(success)

    def _record(self) -> None:
        point = Point(
            self.num_timesteps,
            float(np.mean(self._returns)) if self._returns else math.nan,
            float(np.mean(self._successes)) if self._successes else math.nan,
            len(self._returns),
            self.num_timesteps / self.learning.wall,
        )
        self._curve.add(point)
        self.reporter.record(recent(self.points))
        self._returns, self._successes = [], []
        if self.config.run.evaluation_interval is None:
            self._score = _known_result(recent(self.points))

    def _checkpoint(self) -> None:
        self._next_checkpoint = self.num_timesteps + self.config.run.checkpoint_interval
        for writer in self.logger.output_formats:
            if isinstance(writer, TensorBoardOutputFormat):
                writer.writer.flush()  # what was logged before a checkpoint outlives a kill after it
        self.files.add_checkpoint(self.model, self.progress())


def _known_result(point: Point) -> float | None:
    """Return the success, else the return, of the latest training episodes; None where none has ended."""
    result = point.return_ if math.isnan(point.success) else point.success
    return None if math.isnan(result) else result


def affordable_episodes(lengths: Sequence[float], steps: float) -> int:
    """Return the number of episodes of an evaluation during training.

    :param lengths: steps of the latest training episodes
    :param steps: env steps that the evaluation may take
    :return: at most `MOST_EPISODES`; 0 before the first training episode has ended, since its length is not known
    """
    return min(MOST_EPISODES, int(steps / fmean(lengths))) if lengths else 0
