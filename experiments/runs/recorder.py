"""Recording of a training run: its curves, its checkpoints, and the time that learning took."""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from ctrl.agents import GymnasiumVecEnv
from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.report.summary import CURVE_COLUMNS, Evaluation, Point, recent
from ctrl.experiments.report.tensorboard import log_evaluation
from ctrl.experiments.runs.evaluate import evaluate_run
from ctrl.experiments.runs.progress import Reporter
from ctrl.experiments.runs.run_folder import CHECKPOINTS, CURVE, HELD_OUT
from ctrl.experiments.runs.signals import StopRequests

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
    """Learning curve as a CSV file that can be read while it grows."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(CURVE_COLUMNS)

    def add(self, point: Point) -> None:
        """Write a row."""
        self._writer.writerow((point.steps, *(f"{value:.6g}" for value in point[1:])))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Recorder(BaseCallback):
    """Callback that writes curves and checkpoints, reports the progress and ends training when a stop is requested.

    Now and then it evaluates the agent between two updates. An evaluation does not change training, and its time does
    not count as time of learning.
    """

    def __init__(self, config: TrainConfig, folder: Path, reporter: Reporter, stop: StopRequests) -> None:
        super().__init__()
        self.config = config
        self.folder = folder
        self.reporter = reporter
        self.stop = stop
        self.points: list[Point] = []
        """Learning curve so far."""
        self.evaluating = ElapsedTime()
        """Time that the evaluations so far have taken."""
        self._returns: list[float] = []
        self._successes: list[float] = []
        self._next_checkpoint = 0
        self._next_evaluation = config.run.evaluation_interval or 0

    def __enter__(self) -> Recorder:
        (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        self._curve = CurveFile(self.folder / CURVE)
        self._held_out = CurveFile(self.folder / HELD_OUT)
        return self

    def __exit__(self, *_: object) -> None:
        self._curve.close()
        self._held_out.close()

    def _on_training_start(self) -> None:
        self._start = ElapsedTime.now()
        self._checkpoint()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:  # a Monitor adds it when an episode ends
                self._count_episode(info)
        self.reporter.advance(self.num_timesteps)
        return not self.stop.requested

    # The update of the last rollout is done by now, so its time is part of the speed that is recorded here.
    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self._record()
        if self.num_timesteps >= self._next_checkpoint:
            self._checkpoint()
        interval = self.config.run.evaluation_interval
        if interval is not None and self.num_timesteps >= self._next_evaluation:
            self._evaluate(interval)

    def _on_training_end(self) -> None:
        self._record()

    def keep_last_good(self) -> Path:
        """Save the present weights if they are finite, and return the path of the last good checkpoint.

        A number that is not finite is noticed before it changes a weight, so the present weights are usually good.
        """
        if all(bool(torch.isfinite(parameter).all()) for parameter in self.model.policy.parameters()):
            self._checkpoint()
        return max((self.folder / CHECKPOINTS).glob("*.zip"))

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Write the results of held-out episodes at the present step, also to TensorBoard."""
        success = math.nan if evaluation.success is None else evaluation.success
        speed = self.points[-1].steps_per_second
        self._held_out.add(Point(self.num_timesteps, evaluation.return_mean, success, evaluation.episodes, speed))
        log_evaluation(self.logger, evaluation, self.num_timesteps)

    def _evaluate(self, interval: int) -> None:
        start = ElapsedTime.now()
        native = isinstance(self.training_env.unwrapped, GymnasiumVecEnv)
        lengths = [info["l"] for info in self.model.ep_info_buffer or ()]
        episodes = affordable_episodes(lengths, interval * (NATIVE_SHARE if native else SHARE))
        if episodes:
            self.add_evaluation(evaluate_run(cast(MemoryAlgorithm, self.model), self.config, episodes=episodes))
        self.evaluating = self.evaluating.plus(ElapsedTime.now().minus(start))
        self._next_evaluation = self.num_timesteps + interval

    def _count_episode(self, info: dict[str, Any]) -> None:
        self._returns.append(float(info["episode"]["r"]))
        if "is_success" in info:
            self._successes.append(float(info["is_success"]))

    def _record(self) -> None:
        seconds = ElapsedTime.now().minus(self._start).minus(self.evaluating).wall
        point = Point(
            self.num_timesteps,
            float(np.mean(self._returns)) if self._returns else math.nan,
            float(np.mean(self._successes)) if self._successes else math.nan,
            len(self._returns),
            self.num_timesteps / seconds,
        )
        self.points.append(point)
        self._curve.add(point)
        self.reporter.record(recent(self.points))
        self._returns, self._successes = [], []

    def _checkpoint(self) -> None:
        path = self.folder / CHECKPOINTS / f"step_{self.num_timesteps:012d}.zip"
        partial = path.with_name(f".partial-{path.name}")
        self.model.save(partial)
        os.replace(partial, path)  # a crash while saving never leaves half a checkpoint
        self._next_checkpoint = self.num_timesteps + self.config.run.checkpoint_interval


def affordable_episodes(lengths: Sequence[float], steps: float) -> int:
    """Return the number of episodes of an evaluation during training.

    :param lengths: steps of the latest training episodes
    :param steps: env steps that the evaluation may take
    :return: at most `MOST_EPISODES`; 0 before the first training episode has ended, since its length is not known
    """
    return min(MOST_EPISODES, int(steps / fmean(lengths))) if lengths else 0
