"""`ctrl bench impala`: training speed of `MemoryImpala` beside `MemoryPPO` and RLlib's IMPALA with its LSTM.

All agents train on CartPole without its velocities, with equally many envs in total, and with parameter counts within
10 % of the compressive agent's. A turn has a fixed number of seconds after a warm-up that is not timed. The envs of
IMPALA are in actor processes beside a learner. PPO steps all envs in its own process and learns on all CPU cores. An
env step counts when a learner has it.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console, RenderableType
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from ctrl.experiments.bench.config import BenchImpala
from ctrl.experiments.bench.train import TARGET, make_cartpole, matched_config, memory_config
from ctrl.experiments.bench.turns import (
    framed,
    range_text,
    ratio,
    ratio_text,
    shower,
    summarise,
    take_turns,
    use_threads,
)
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.options import ImpalaOptions
from ctrl.experiments.runs.build import build_model, parameter_count

WINDOW = 64
"""Steps of a window of IMPALA, ours and RLlib's; those of PPO have 128, see `ctrl.experiments.bench.train`."""
WARM_UP = 5.0
"""Seconds that are not timed, counted from the first steps that reach a learner."""
TOOL = Path(__file__).resolve().parents[2] / "tools" / "rllib_impala.py"

LABELS = {
    "impala_compressive": "MemoryImpala compressive",
    "impala_lstm": "MemoryImpala lstm",
    "ppo_compressive": "MemoryPPO compressive",
    "ppo_lstm": "MemoryPPO lstm",
    "rllib_lstm": "RLlib IMPALA lstm",
}


@dataclass(frozen=True)
class Turn:
    """Results of one agent in one turn."""

    steps_per_second: float
    parameters: int
    policy_lag: float | None = None
    """Number of updates by which the acting weights were older, at the end; None for PPO and if it is not reported."""
    ray: str | None = None
    """Version of ray, for RLlib only; the other versions in the report are those of our own environment."""


class Timed(BaseCallback):
    """Callback that ends training `seconds` after the warm-up and measures the speed in between."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.first: float | None = None
        self.begin: tuple[int, float] | None = None
        self.speed = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """Read the clock only between two updates, so that whole updates are timed."""
        now = time.perf_counter()
        if self.first is None and self.num_timesteps:
            self.first = now
        if self.first is None or now < self.first + WARM_UP:
            return
        if self.begin is None:
            self.begin = (self.num_timesteps, now)
            return
        steps, begin = self.begin
        self.speed = (self.num_timesteps - steps) / (now - begin)
        if now > begin + self.seconds:
            raise _Done


class _Done(Exception):
    """Signal that the time of the turn is up."""


def configs(asked: BenchImpala) -> dict[str, TrainConfig]:
    """Return the configs of our own agents among those to measure, with matched parameter counts."""
    env = make_cartpole(asked.num_envs)
    try:
        target = parameter_count(build_model(memory_config(TARGET), env))
        cores = {core: matched_config(core, env, target) for core in (TARGET, "lstm")}
    finally:
        env.close()
    found = {}
    for agent in asked.agents:
        algorithm, _, core = agent.partition("_")
        if algorithm == "ppo":
            found[agent] = cores[core]
        if algorithm == "impala":
            # Options that only PPO has go back to their default, since IMPALA refuses them.
            ppo = replace(cores[core].ppo, n_steps=WINDOW, n_epochs=type(cores[core].ppo).n_epochs)
            found[agent] = replace(
                cores[core], algorithm="impala", ppo=ppo, impala=ImpalaOptions(num_actors=asked.actors)
            )
    return found


def envs_of_a_process(agent: str, asked: BenchImpala) -> int:
    """Return the number of envs of each acting process, so that all agents have equally many in total."""
    return asked.num_envs * (asked.actors if agent.startswith("ppo") else 1)


def run_turn(config: TrainConfig, num_envs: int, seconds: float) -> Turn:
    """Train a fresh agent of ours and return its results."""
    env = make_cartpole(num_envs)
    try:
        model = build_model(config, env)
        model.set_logger(Logger(folder=None, output_formats=[]))
        watch = Timed(seconds)
        with suppress(_Done):
            model.learn(10**9, callback=watch, log_interval=None)  # type: ignore[arg-type]
        return Turn(watch.speed, parameter_count(model), model.logger.name_to_value.get("train/policy_lag"))
    finally:
        env.close()


def run_rllib(asked: BenchImpala, parameters: int) -> Turn:
    """Train RLlib's agent in its own Python environment and return its results.

    :raises UserError: if it fails; the message has the end of its stderr
    """
    options = {
        "--parameters": parameters,
        "--actors": asked.actors,
        "--envs": asked.num_envs,
        "--window": WINDOW,
        "--seconds": asked.seconds,
        "--warm-up": WARM_UP,
    }
    words = [str(word) for pair in options.items() for word in pair]
    result = subprocess.run([str(asked.rllib), str(TOOL), *words], capture_output=True, text=True)
    lines = result.stdout.strip().splitlines()
    if result.returncode or not lines:
        raise UserError(f"--rllib {asked.rllib} failed:\n{result.stderr.strip()[-2000:]}")
    told = json.loads(lines[-1])
    return Turn(told["steps_per_second"], told["parameters"], ray=told["ray"])


def measure(asked: BenchImpala, console: Console) -> dict[str, list[Turn]]:
    """Measure the agents in turns."""
    ours = configs(asked)
    env = make_cartpole(asked.num_envs)
    try:
        parameters = parameter_count(build_model(memory_config(TARGET), env))
    finally:
        env.close()
    workers: dict[str, Callable[[], Turn]] = {}
    for agent in asked.agents:
        if agent in ours:
            workers[agent] = partial(run_turn, ours[agent], envs_of_a_process(agent, asked), asked.seconds)
        else:
            workers[agent] = partial(run_rllib, asked, parameters)
    show = shower(console, asked.repeats, lambda turn: f"{turn.steps_per_second:8,.0f} steps/s")
    return take_turns(workers, asked.repeats, show)


def impala_table(turns: dict[str, list[Turn]], asked: BenchImpala, threads: int) -> RenderableType:
    """Build the table of the benchmark."""
    reference = asked.agents[-1]
    return framed(
        f"training on CartPole without velocities, {asked.actors} × {asked.num_envs} envs",
        ["agent", "params", "steps/s", "range", "lag", "ratio"],
        [_cells(agent, turns, reference) for agent in turns],
        [
            f"median of {asked.repeats} interleaved turns of {asked.seconds:g} s; ratio of steps/s to the last row",
            "lag: updates by which the weights that acted were older",
            "torch threads: of MemoryPPO; MemoryImpala's learner has as many as its actors leave it cores",
        ],
        threads,
    )


def _cells(agent: str, turns: dict[str, list[Turn]], reference: str) -> Sequence[str]:
    mine = turns[agent]
    speeds = [turn.steps_per_second for turn in mine]
    lags = [turn.policy_lag for turn in mine if turn.policy_lag is not None]
    return [
        LABELS[agent],
        f"{mine[0].parameters:,}",
        f"{median(speeds):,.0f}",
        range_text(speeds),
        f"{median(lags):.1f}" if lags else "–",
        ratio_text(ratio(speeds, [turn.steps_per_second for turn in turns[reference]])),
    ]


def run(config: BenchImpala, console: Console) -> dict[str, Any]:
    """Run the benchmark, print its table and return its part of the report."""
    threads = use_threads(config.threads)
    turns = measure(config, console)
    console.print(impala_table(turns, config, threads))
    return {
        "torch_threads": threads,
        "sizes": {"actors": config.actors, "num_envs": config.num_envs, "window": WINDOW, "seconds": config.seconds},
        "agents": [
            {
                "agent": agent,
                "turns": [asdict(turn) for turn in each],
                "steps_per_second": summarise([turn.steps_per_second for turn in each]),
            }
            for agent, each in turns.items()
        ],
    }
