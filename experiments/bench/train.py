"""`ctrl bench train`: training speed of `MemoryPPO` beside stable-baselines3's PPO and sb3-contrib's RecurrentPPO.

All agents train on CartPole without its velocities: 128 steps, 4 epochs × 4 minibatches at every number of envs, Adam,
one process. Their parameter counts are within 10 % of the compressive agent's, except for PPO with its default
networks, which is shown as a ceiling. The agents take turns. Each turn has a fresh agent and the same seed, so that all
turns of an agent do the same work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import fmean, median
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from rich.console import Console, RenderableType
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from ctrl.experiments.bench.config import MINIBATCHES, BenchTrain
from ctrl.experiments.bench.turns import SEED, framed, ratio_text, ratios, shower, summarise, take_turns, use_threads
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.options import ATTENTION_CORES, MemoryOptions
from ctrl.experiments.runs.build import TOLERANCE, build_model, closest, match_width, parameter_count
from ctrl.experiments.runs.core_options import of_core

N_STEPS, N_EPOCHS = 128, 4
TARGET = "compressive"
"""Agent whose number of parameters the others are matched to."""
LAYERS, MEMORY = 2, "32,32x4"
"""Layers and tiers of attention cores: 32 raw slots and 32 slots of 4 steps, with the paper's compressor and loss."""
REFERENCES = ("recurrent_ppo", "matched_ppo")
"""Agents that the ratios refer to."""

LABELS = {
    "recurrent_ppo": "RecurrentPPO",
    "matched_ppo": "PPO, matched MLP",
    "default_ppo": "PPO, default MLP",
}

Builder = Callable[[VecEnv], Any]


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
    """Results of one agent in the timed updates of one turn."""

    steps_per_second: float
    acting_seconds: float
    """Seconds of a rollout, acting and env steps, mean over the updates."""
    learning_seconds: float
    """Seconds of the gradient steps that follow, mean over the updates."""


@dataclass(frozen=True)
class TrainResult:
    """Results of one agent at one number of envs, in all turns."""

    agent: str
    num_envs: int
    parameters: int
    turns: list[Turn]
    ratios: dict[str, float]
    """Ratios of steps per second, by `ratio_to_…`; empty if no reference was measured."""

    @property
    def label(self) -> str:
        """Name of the agent in the table."""
        return LABELS.get(self.agent, self.agent)

    @property
    def speeds(self) -> list[float]:
        """Env steps per second of each turn, all envs together."""
        return [turn.steps_per_second for turn in self.turns]

    def to_json(self) -> dict[str, Any]:
        """Return the results of all turns, their median and range, and the ratios, as plain data."""
        data = asdict(self)
        return {**data, **data.pop("ratios"), "steps_per_second": summarise(self.speeds)}


def measured(counts: Mapping[str, int], num_envs: int, turns: Mapping[str, list[Turn]]) -> list[TrainResult]:
    """Combine the results at one number of envs.

    :param counts: numbers of parameters by agent
    :param turns: results of all turns by agent
    """
    speeds = {agent: [turn.steps_per_second for turn in each] for agent, each in turns.items()}
    return [
        TrainResult(agent, num_envs, counts[agent], each, ratios(speeds, agent, REFERENCES))
        for agent, each in turns.items()
    ]


class Stopwatch(BaseCallback):
    """Callback that notes the start and end of acting in each update of `steps` env steps, all envs together."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
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
        """Summarise all updates but the first, which includes the warm-up."""
        starts, ends = self.starts[1:], self.ends[1:]
        acting = fmean(end - start for start, end in zip(starts, ends, strict=False))
        learning = fmean(start - end for start, end in zip(starts[1:], ends, strict=True))
        return Turn(self.steps / (acting + learning), acting, learning)


def run_turn(build: Builder, num_envs: int, updates: int) -> Turn:
    """Train a fresh agent for one update that is not timed and `updates` that are; return the results."""
    env = make_cartpole(num_envs)
    try:
        model = build(env)
        model.set_logger(Logger(folder=None, output_formats=[]))
        watch = Stopwatch(num_envs * N_STEPS)
        model.learn((1 + updates) * watch.steps, callback=watch)
        return watch.turn()
    finally:
        env.close()


def make_cartpole(num_envs: int) -> VecEnv:
    """Build CartPole without velocities."""
    return make_vec_env("CartPole-v1", n_envs=num_envs, wrapper_class=PositionsOnly, seed=SEED)


def agents(names: Sequence[str]) -> tuple[dict[str, Builder], dict[str, int]]:
    """Return the builders of the agents and their numbers of parameters, which are matched, both by name.

    :param names: some of `AGENTS`
    :raises UserError: if sb3-contrib is needed and missing, or no size comes close to the target
    """
    env = make_cartpole(MINIBATCHES)
    try:
        target = parameter_count(build_model(memory_config(TARGET), env))
        builders = {name: _builder(name, env, target) for name in names}
        return builders, {name: parameter_count(build(env)) for name, build in builders.items()}
    finally:
        env.close()


def _builder(name: str, env: VecEnv, target: int) -> Builder:
    if name == "recurrent_ppo":
        return partial(_recurrent_ppo, _matched(lambda size: partial(_recurrent_ppo, size), env, target))
    if name == "matched_ppo":
        return partial(_plain_ppo, _matched(lambda size: partial(_plain_ppo, size), env, target))
    if name == "default_ppo":
        return partial(_plain_ppo, None)
    return partial(_memory_ppo, matched_config(name, env, target))


def matched_config(core: str, env: VecEnv, target: int) -> TrainConfig:
    """Return the config of `MemoryPPO` with a core, whose width brings it to about `target` parameters."""
    config = memory_config(core)
    if core == TARGET:
        return config
    return replace(config, memory=replace(config.memory, width=match_width(config, env, target).width))


def memory_config(core: str) -> TrainConfig:
    """Return the config of `MemoryPPO` with a core and the paper's kind of memory, for rollouts of `N_STEPS`."""
    layers = LAYERS if core in ATTENTION_CORES else None
    memory = MemoryOptions(memory=MEMORY, compressor="conv", layers=layers)
    config = TrainConfig(core=core, seed=SEED, memory=of_core(memory, core))
    ppo = replace(config.ppo, n_steps=N_STEPS, n_epochs=N_EPOCHS)
    return replace(config, ppo=ppo, run=replace(config.run, device="cpu"))


def _memory_ppo(config: TrainConfig, env: VecEnv) -> Any:
    return build_model(replace(config, ppo=replace(config.ppo, batch_size=_batch_size(env))), env)


def _batch_size(env: VecEnv) -> int:
    return env.num_envs * N_STEPS // MINIBATCHES


def _sb3_arguments(env: VecEnv) -> dict[str, Any]:
    return {"n_steps": N_STEPS, "n_epochs": N_EPOCHS, "batch_size": _batch_size(env), "seed": SEED, "device": "cpu"}


def _plain_ppo(hidden: int | None, env: VecEnv) -> PPO:
    # Two hidden layers for each of actor and critic, as by default, where they have 64 units.
    kwargs = None if hidden is None else {"net_arch": {"pi": [hidden, hidden], "vf": [hidden, hidden]}}
    return PPO("MlpPolicy", env, policy_kwargs=kwargs, **_sb3_arguments(env))


def _recurrent_ppo(hidden: int, env: VecEnv) -> Any:
    try:
        from sb3_contrib import RecurrentPPO
    except ImportError:
        raise UserError('the benchmark needs sb3-contrib: pip install "ctrl-memory[bench]"') from None
    # One LSTM for actor and critic, as one core serves both in MemoryPPO.
    kwargs = {"lstm_hidden_size": hidden, "shared_lstm": True, "enable_critic_lstm": False}
    return RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=kwargs, **_sb3_arguments(env))


def _matched(builder: Callable[[int], Builder], env: VecEnv, target: int) -> int:
    """Return the size with which the agent of `builder` has about `target` parameters."""
    size, parameters = closest(lambda size: parameter_count(builder(size)(env)), target, highest=1024)
    if abs(parameters / target - 1) > TOLERANCE:
        raise UserError(
            f"no size comes within {TOLERANCE:.0%} of {target:,} parameters; the closest has {parameters:,}"
        )
    return size


def measure(config: BenchTrain, console: Console) -> list[TrainResult]:
    """Measure the agents in turns, at each number of envs."""
    builders, counts = agents(config.agents)
    results = []
    for num_envs in config.num_envs:
        workers = {name: partial(run_turn, build, num_envs, config.updates) for name, build in builders.items()}
        console.print(f"{num_envs} envs")
        show = shower(console, config.repeats, lambda turn: f"{turn.steps_per_second:8,.0f} steps/s")
        results += measured(counts, num_envs, take_turns(workers, config.repeats, show))
    return results


def train_table(results: Sequence[TrainResult], threads: int) -> RenderableType:
    """Build the table of the benchmark."""
    return framed(
        f"training on CartPole without velocities, {N_STEPS} steps, {N_EPOCHS} epochs × {MINIBATCHES} minibatches",
        ["agent", "envs", "params", "steps/s", "range", "act", "learn", "ratio", "ratio\nto MLP"],
        [_cells(result) for result in results],
        [
            f"median of {len(results[0].turns)} interleaved turns; act and learn: ms an update",
            "ratio of steps/s to RecurrentPPO, and to PPO with the matched MLP, of as many envs",
            "by core: MemoryPPO; RecurrentPPO: sb3-contrib, LSTM; PPO: stable-baselines3, no memory",
        ],
        threads,
    )


def _cells(result: TrainResult) -> list[str]:
    return [
        result.label,
        str(result.num_envs),
        f"{result.parameters:,}",
        f"{median(result.speeds):,.0f}",
        f"{min(result.speeds):,.0f}–{max(result.speeds):,.0f}",
        f"{1e3 * fmean(turn.acting_seconds for turn in result.turns):,.0f}",
        f"{1e3 * fmean(turn.learning_seconds for turn in result.turns):,.0f}",
        *(ratio_text(result.ratios.get(f"ratio_to_{name}")) for name in REFERENCES),
    ]


def run(config: BenchTrain, console: Console) -> dict[str, Any]:
    """Run the benchmark, print its table and return its part of the report."""
    threads = use_threads(config.threads)
    results = measure(config, console)
    console.print(train_table(results, threads))
    sizes = {"num_envs": config.num_envs, "n_steps": N_STEPS, "n_epochs": N_EPOCHS, "minibatches": MINIBATCHES}
    return {
        "torch_threads": threads,
        "sizes": {**sizes, "updates": config.updates, "seed": SEED},
        "agents": [result.to_json() for result in results],
    }
