"""Shared tools of the tests of `MemoryImpala`: a small agent, envs that show their position, leftovers of a process."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_toys import CORES, STAGGERED, ToldEpisodes, fill_once, make_model
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from ctrl.agents import MemoryImpala
from ctrl.agents.impala.trajectories import TrajectoryBatch, trajectory_batch
from ctrl.agents.impala.vtrace import VTrace
from ctrl.agents.policy.policy_data import Evaluated

WINDOW, WINDOWS = 6, 4
"""Number of steps in a window, and of windows in an update."""
UPDATE = WINDOW * WINDOWS * len(STAGGERED)
"""Number of steps in an update."""


def make_impala(
    env: Any, core: str = "compressive", *, policy: Any = "MlpMemoryPolicy", **options: Any
) -> MemoryImpala:
    """Return a small agent, by default without actors: an update has 4 windows of 6 steps, in 3 envs.

    The learning rate is constant.
    """
    small = {"core": core, "core_kwargs": CORES.get(core, {}), "encoder_arch": [8], "net_arch": [8]}
    options["policy_kwargs"] = {**small, **options.get("policy_kwargs", {})}
    sizes = {"num_actors": 0, "n_steps": WINDOW, "windows_per_update": WINDOWS}
    return MemoryImpala(policy, env, **{**sizes, "learning_rate": 3e-4, "seed": 0, "device": "cpu", **options})


BOTH = pytest.mark.parametrize("make", [make_model, make_impala], ids=["ppo", "impala"])
"""Both algorithms. An update of each has `UPDATE` steps in the staggered envs."""


class PlacedEpisodes(ToldEpisodes):
    """`ToldEpisodes` that also observes the process it runs in: (copy, episode, step, place)."""

    observation_space = spaces.Box(-1000.0, 1000.0, (4,), np.float32)

    def observe(self) -> np.ndarray:
        return np.array([self.copy, self.episode, self.step_count, os.getpid() % 997], dtype=np.float32)


class FaultyEpisodes(PlacedEpisodes):
    """Env with a fault in actors, but not in the process that made it.

    :param fault: kind of the fault, see `maybe_go_wrong`
    :param at: step of the fault, counted over all episodes; 0 for the first reset
    :param once: file that exists after the first fault, so that there is no second one; None to repeat the fault
    :param helper: True to start a process that nobody ends and that, like a fork, inherits all open files
    """

    def __init__(
        self, fault: str = "none", *, at: int = 10, once: Path | None = None, helper: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        self.fault, self.at, self.once, self.helper = fault, at, once, helper
        self.home, self.steps = os.getpid(), 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.fault == "unpickling":
            raise OSError("no such game")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        if self.steps == 0 and os.getpid() != self.home:
            if self.helper:
                subprocess.Popen(["sleep", "1000"], close_fds=False)
            self.maybe_go_wrong()
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation, reward, *rest = super().step(action)
        if self.maybe_go_wrong():
            reward = float("nan")
        return observation, reward, *rest  # type: ignore[return-value]

    def maybe_go_wrong(self) -> bool:
        """Return True if the reward must be NaN."""
        if os.getpid() == self.home or self.steps != self.at or (self.once is not None and self.once.exists()):
            return False
        if self.once is not None:
            self.once.touch()
        if self.fault == "hanging":
            time.sleep(1000)
        if self.fault == "raising":
            raise BrokenPipeError("the cable is out")
        if self.fault == "exiting":
            os._exit(7)
        if self.fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return self.fault == "nan"


class Drawn(ToldEpisodes):
    """Env that shows (process, a number of its own generator, one of numpy's global generator), drawn at each reset."""

    drawn = (0.0, 0.0)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.drawn = (self.np_random.random(), np.random.random())  # noqa: NPY002 - as some envs do
        return self.observe(), {}

    def observe(self) -> np.ndarray:
        return np.array([os.getpid() % 997, *self.drawn], dtype=np.float32)


class Everything(gym.Env[Any, Any]):
    """Env whose observation is a dict of an image, a number and a vector; actions are a box."""

    observation_space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (3, 36, 40), np.uint8),
            "number": spaces.Discrete(5),
            "vector": spaces.Box(-1, 1, (2,), np.float64),
        }
    )
    action_space = spaces.Box(-0.3, 0.4, (2, 2), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        ended = bool(self.np_random.random() < 0.2)
        return self.observation_space.sample(), 1.0, ended, False, {"big": np.zeros(10**6), "text": "x"}


class Images(ToldEpisodes):
    """Env that shows `side` by `side` pixels; no episode ends."""

    def __init__(self, side: int) -> None:
        self.observation_space = spaces.Box(0, 255, (side, side), np.uint8)
        super().__init__(lengths=[10**9])

    def observe(self) -> np.ndarray:
        return np.full(self.observation_space.shape, self.step_count % 256, dtype=np.uint8)


class Locked(ToldEpisodes):
    """Env that cannot be pickled."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lock = threading.Lock()


def placed_makers(lengths: Sequence[Sequence[int]] = STAGGERED, **options: Any) -> list[Callable[[], PlacedEpisodes]]:
    """Return one maker of `PlacedEpisodes` per copy."""
    return [
        lambda copy=copy, told=told: PlacedEpisodes(told, copy=copy, **options) for copy, told in enumerate(lengths)
    ]  # type: ignore[misc]


class StopOnce(BaseCallback):
    """Callback that ends learning once a condition holds, which it checks at each step.

    :raises AssertionError: if the condition does not hold within some seconds
    """

    def __init__(self, condition: Callable[[], bool], seconds: float = 60.0) -> None:
        super().__init__()
        self.condition = condition
        self.seconds = seconds

    def _on_training_start(self) -> None:
        self.deadline = time.monotonic() + self.seconds

    def _on_step(self) -> bool:
        assert time.monotonic() < self.deadline, f"not within {self.seconds} s"
        return not self.condition()


def collect(model: MemoryImpala) -> TrajectoryBatch:
    """Let a model without actors fill its buffer, without learning; return the buffer's windows."""
    fill_once(model)
    return trajectory_batch(model.rollout_buffer, model.policy)


def evaluated(model: MemoryImpala, batch: TrajectoryBatch) -> Evaluated:
    """Return the learner's evaluation of the windows, with the current policy."""
    model.policy.set_training_mode(True)
    with torch.no_grad():
        return model.policy.evaluate_windows(batch.windows)


def targets(model: MemoryImpala, batch: TrajectoryBatch) -> VTrace:
    return model._targets(batch, evaluated(model, batch))


def children() -> set[int]:
    """Return the running descendants of this process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # the process has ended meanwhile
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found, fresh = set(), {os.getpid()}
    while fresh:
        fresh = {pid for pid, parent in parents.items() if parent in fresh}
        found |= fresh
    return found


def alive(pid: int) -> bool:
    """Return True if a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def named_memory() -> set[str]:
    """Return the names of shared memory blocks, which can outlive the processes that use them."""
    return set(os.listdir("/dev/shm")) if Path("/dev/shm").exists() else set()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """Return the number of seconds until a condition holds.

    :raises AssertionError: if it does not hold in time
    """
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"not within {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - begun
