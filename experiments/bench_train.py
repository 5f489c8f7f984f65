"""`ctrl bench train`: training speed of `MemoryPPO` beside stable-baselines3's PPO and sb3-contrib's RecurrentPPO.

All train on CartPole without its velocities: 8 envs × 128 steps, 4 epochs × 4 minibatches of 256 steps, Adam, one
process. The agents with memory have parameters within 10 % of the compressive one's; PPO without memory is shown with
its default networks, as a ceiling. The agents take turns (A B C D, A B C D, …), each turn with a fresh agent and the
same seed, so that all turns of an agent do the same work and what else the machine does meets all agents.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean, median
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from ctrl.experiments.config import BenchConfig, MemoryOptions, TrainConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.models import TOLERANCE, build_model, closest, match_width, parameter_count
from ctrl.experiments.summary import titled

NUM_ENVS, N_STEPS, N_EPOCHS, MINIBATCHES = 8, 128, 4, 4
BATCH_SIZE = NUM_ENVS * N_STEPS // MINIBATCHES
REFERENCE = "compressive"
SEED = 0


class PositionsOnly(gym.ObservationWrapper[NDArray[np.float32], int, NDArray[np.float32]]):
    """CartPole that shows the cart's position and the pole's angle, but not their velocities."""

    KEPT = (0, 2)

    def __init__(self, env: gym.Env[NDArray[np.float32], int]) -> None:
        super().__init__(env)
        full = env.observation_space
        assert isinstance(full, spaces.Box)
        kept = list(self.KEPT)
        self.observation_space = spaces.Box(full.low[kept], full.high[kept], dtype=np.float32)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Leave the velocities out."""
        return observation[list(self.KEPT)]


@dataclass(frozen=True)
class Turn:
    """What one agent took for the timed updates of one turn."""

    steps_per_second: float
    acting_seconds: float
    """Time a step spends in acting and in the env, all envs together, mean over the updates."""
    learning_seconds: float
    """Time of the gradient steps that follow, mean over the updates."""


@dataclass(frozen=True)
class Measured:
    """All turns of one agent."""

    agent: str
    parameters: int
    turns: list[Turn]

    @property
    def speeds(self) -> list[float]:
        """Env steps per second of each turn."""
        return [turn.steps_per_second for turn in self.turns]

    def to_json(self, reference: Measured) -> dict[str, Any]:
        """Return the turns, their median and range, and the ratio to `reference`."""
        return {
            **asdict(self),
            "median_steps_per_second": median(self.speeds),
            "range_steps_per_second": [min(self.speeds), max(self.speeds)],
            "ratio_to_" + reference.agent: ratio(self, reference),
        }


def ratio(one: Measured, other: Measured) -> float:
    """Return how many times as fast `one` is as `other`: the median over turns of the ratio within a turn."""
    return median(a / b for a, b in zip(one.speeds, other.speeds, strict=True))


class Stopwatch(BaseCallback):
    """Notes when acting starts and ends in each update."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[float] = []
        self.ends: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.starts.append(time.perf_counter())

    def _on_rollout_end(self) -> None:
        self.ends.append(time.perf_counter())

    def _on_training_end(self) -> None:
        self.starts.append(time.perf_counter())

    def turn(self) -> Turn:
        """Summarise all updates but the first, which also pays for warming up."""
        starts, ends = self.starts[1:], self.ends[1:]
        acting = fmean(end - start for start, end in zip(starts, ends, strict=False))
        learning = fmean(start - end for start, end in zip(starts[1:], ends, strict=True))
        return Turn(NUM_ENVS * N_STEPS / (acting + learning), acting, learning)


def run_turn(build: Callable[[VecEnv], Any], updates: int) -> Turn:
    """Train a fresh agent for one update that is not timed and `updates` that are."""
    env = make_cartpole(NUM_ENVS)
    try:
        model = build(env)
        model.set_logger(Logger(folder=None, output_formats=[]))
        watch = Stopwatch()
        model.learn((1 + updates) * NUM_ENVS * N_STEPS, callback=watch)
        return watch.turn()
    finally:
        env.close()


def make_cartpole(num_envs: int) -> VecEnv:
    """Build CartPole without velocities."""
    return make_vec_env("CartPole-v1", n_envs=num_envs, wrapper_class=PositionsOnly, seed=SEED)


def agents() -> dict[str, Callable[[VecEnv], Any]]:
    """Return what builds each agent, by name, with matched parameters."""
    env = make_cartpole(NUM_ENVS)
    try:
        reference = _memory_config(REFERENCE)
        target = parameter_count(build_model(reference, env))
        lstm = _memory_config("lstm")
        width = match_width(lstm, env, target).width
        lstm = replace(lstm, memory=replace(lstm.memory, width=width))
        hidden = _matched_recurrent(env, target)
    finally:
        env.close()
    return {
        f"MemoryPPO {REFERENCE}": partial(build_model, reference),
        "MemoryPPO lstm": partial(build_model, lstm),
        "sb3-contrib RecurrentPPO": partial(_recurrent_ppo, hidden),
        "SB3 PPO, no memory": _plain_ppo,
    }


def _memory_config(core: str) -> TrainConfig:
    config = TrainConfig(core=core, seed=SEED, memory=MemoryOptions())
    ppo = replace(config.ppo, n_steps=N_STEPS, n_epochs=N_EPOCHS, batch_size=BATCH_SIZE)
    return replace(config, ppo=ppo, run=replace(config.run, device="cpu"))


def _sb3_arguments() -> dict[str, Any]:
    return {"n_steps": N_STEPS, "n_epochs": N_EPOCHS, "batch_size": BATCH_SIZE, "seed": SEED, "device": "cpu"}


def _plain_ppo(env: VecEnv) -> PPO:
    return PPO("MlpPolicy", env, **_sb3_arguments())


def _recurrent_ppo(hidden: int, env: VecEnv) -> Any:
    try:
        from sb3_contrib import RecurrentPPO
    except ImportError:
        raise UserError('the benchmark needs sb3-contrib: pip install "ctrl-memory[bench]"') from None
    # One LSTM for actor and critic, as one core serves both in MemoryPPO.
    kwargs = {"lstm_hidden_size": hidden, "shared_lstm": True, "enable_critic_lstm": False}
    return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=kwargs, **_sb3_arguments())


def _matched_recurrent(env: VecEnv, target: int) -> int:
    def count(hidden: int) -> int:
        return parameter_count(_recurrent_ppo(hidden, env))

    hidden, parameters = closest(count, target, highest=1024)
    if abs(parameters / target - 1) > TOLERANCE:
        raise UserError(f"no LSTM size of RecurrentPPO comes within {TOLERANCE:.0%} of {target:,} parameters")
    return hidden


def measure(config: BenchConfig, console: Console) -> list[Measured]:
    """Let the agents take turns."""
    builders = agents()
    turns: dict[str, list[Turn]] = {name: [] for name in builders}
    for repeat in range(config.repeats):
        for name, build in builders.items():
            turns[name].append(run_turn(build, config.updates))
            speed = turns[name][-1].steps_per_second
            console.print(f"turn {repeat + 1}/{config.repeats}  {name:<34} {speed:8,.0f} steps/s", soft_wrap=True)
    env = make_cartpole(NUM_ENVS)
    counts = {name: parameter_count(build(env)) for name, build in builders.items()}
    env.close()
    return [Measured(name, counts[name], turns[name]) for name in builders]


def bench_table(results: Sequence[Measured], threads: int) -> RenderableType:
    """Build the table of the benchmark; the ratios are to RecurrentPPO, if it is there."""
    reference = _ratio_reference(results)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("agent", style="bold", no_wrap=True)
    for name in ("params", "steps/s", "range", "act", "learn", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.agent,
            f"{result.parameters:,}",
            f"{median(result.speeds):,.0f}",
            f"{min(result.speeds):,.0f}–{max(result.speeds):,.0f}",
            f"{1e3 * fmean(turn.acting_seconds for turn in result.turns):,.0f}",
            f"{1e3 * fmean(turn.learning_seconds for turn in result.turns):,.0f}",
            f"{ratio(result, reference):.2f}",
        )
    title = f"training on CartPole without velocities, {NUM_ENVS} envs × {N_STEPS} steps, {N_EPOCHS} epochs"
    turns = len(results[0].turns)
    note = f"median of {turns} interleaved turns; act and learn: ms an update; torch threads: {threads}"
    return titled(title, table, f"{note}\nratio of steps/s to {reference.agent}")


def _ratio_reference(results: Sequence[Measured]) -> Measured:
    return next((result for result in results if "RecurrentPPO" in result.agent), results[0])


def run(config: BenchConfig, console: Console) -> dict[str, Any]:
    """Measure, show the table, and return what the report holds of it."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    threads = torch.get_num_threads()
    results = measure(config, console)
    console.print(bench_table(results, threads))
    reference = _ratio_reference(results)
    sizes = {"num_envs": NUM_ENVS, "n_steps": N_STEPS, "n_epochs": N_EPOCHS, "batch_size": BATCH_SIZE}
    return {
        "torch_threads": threads,
        "sizes": {**sizes, "updates": config.updates, "seed": SEED},
        "agents": [result.to_json(reference) for result in results],
    }
