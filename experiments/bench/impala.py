"""`ctrl bench impala`: training speed of `MemoryImpala` beside `MemoryPPO` and RLlib's IMPALA with its LSTM.

All agents train on CartPole without its velocities, with equally many envs in total, and with parameter counts within
10 % of the compressive agent's. A turn has a fixed number of seconds after a warm-up that is not timed. The envs of
IMPALA are in actor processes beside a learner. PPO steps all envs in its own process and learns on all CPU cores. An
env step counts when a learner has it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated

from rich.console import Console
from stable_baselines3.common.callbacks import BaseCallback

from ctrl.experiments.bench.harness import Case, Column, Row, Table, Turn, measure, turns_note, values
from ctrl.experiments.bench.options import Names, TorchOptions, require_names
from ctrl.experiments.bench.subjects.agents import (
    MINIBATCHES,
    PAPER,
    fresh_agent,
    make_cartpole,
    matched_config,
    memory_config,
    target_of,
)
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.errors import UserError, require, require_at_least
from ctrl.experiments.options import ImpalaOptions, open_option
from ctrl.experiments.report.summary import MISSING
from ctrl.experiments.runs.build import build_model, parameter_count

WINDOW = 64
"""Steps of a window of IMPALA, ours and RLlib's; those of PPO have 128, see `bench.subjects.agents`."""
WARM_UP = 5.0
"""Seconds that are not timed, counted from the first steps that reach a learner."""
SCRIPT = Path(__file__).parent / "subjects" / "rllib_impala.py"

LABELS = {
    "impala_compressive": "MemoryImpala compressive",
    "impala_lstm": "MemoryImpala lstm",
    "ppo_compressive": "MemoryPPO compressive",
    "ppo_lstm": "MemoryPPO lstm",
    "rllib_lstm": "RLlib IMPALA lstm",
}


AGENTS = tuple(LABELS)
"""Agents: algorithm and core."""


@dataclass(frozen=True)
class Options(TorchOptions):
    """Training speed of MemoryImpala beside MemoryPPO and RLlib's IMPALA with its LSTM, on all CPU cores."""

    actors: int = 2
    """Number of actor processes, of MemoryImpala and of RLlib."""
    num_envs: int = 8
    """Number of copies of the task in each actor process; MemoryPPO steps all of them together."""
    agents: Names = AGENTS[:-1]
    """Agents to measure: impala_compressive, impala_lstm, ppo_compressive, ppo_lstm, and with --rllib rllib_lstm."""
    rllib: Annotated[Path | None, open_option("leave RLlib out", "PYTHON")] = None
    """Python of a separate environment where RLlib is installed: pip install "ray[rllib]==2.60.0" torch."""
    seconds: float = 20.0
    """Number of timed seconds in a turn, after some that are not timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "actors", "num_envs")
        multiple = self.num_envs % MINIBATCHES == 0
        require(multiple, f"--num-envs must be a multiple of {MINIBATCHES}, got {self.num_envs}")
        require(self.seconds > 0, f"--seconds must be above 0, got {self.seconds}")
        require_names("agent", self, AGENTS)
        asked = "rllib_lstm" in self.agents
        require(not asked or self.rllib is not None, "--agents rllib_lstm needs --rllib PYTHON")
        runs = self.rllib is None or shutil.which(self.rllib) is not None
        require(runs, f"--rllib must be a Python that can be run, got {self.rllib}")


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


def configs(options: Options) -> tuple[dict[str, TrainConfig], int]:
    """Return the configs of our own agents among those to measure, and the number of parameters that all have."""
    with closing(make_cartpole(options.num_envs)) as env:
        target = target_of(PAPER, env)
        cores = {core: matched_config(memory_config(core), env, target) for core in (PAPER, "lstm")}
    found = {}
    for agent in options.agents:
        algorithm, _, core = agent.partition("_")
        if algorithm == "ppo":
            found[agent] = cores[core]
        if algorithm == "impala":
            # Options that only PPO has go back to their default, since IMPALA refuses them.
            ppo = replace(cores[core].ppo, n_steps=WINDOW, n_epochs=type(cores[core].ppo).n_epochs)
            impala = ImpalaOptions(num_actors=options.actors)
            found[agent] = replace(cores[core], algorithm="impala", ppo=ppo, impala=impala)
    return found, target


def envs_of_a_process(agent: str, options: Options) -> int:
    """Return the number of envs of each acting process, so that all agents have equally many in total."""
    return options.num_envs * (options.actors if agent.startswith("ppo") else 1)


def turn(config: TrainConfig, num_envs: int, seconds: float) -> Turn:
    """Train a fresh agent of ours.

    :return: `policy_lag` is the number of updates by which the acting weights were older at the end, for IMPALA only
    """
    with fresh_agent(partial(build_model, config), num_envs) as model:
        watch = Timed(seconds)
        with suppress(_Done):
            model.learn(10**9, callback=watch, log_interval=None)
        lag = model.logger.name_to_value.get("train/policy_lag")
        return {
            "steps_per_second": watch.speed,
            "parameters": parameter_count(model),
            **({} if lag is None else {"policy_lag": lag}),
        }


def rllib_turn(options: Options, parameters: int) -> Turn:
    """Train RLlib's agent in its own Python environment.

    :return: the version of `ray` too; the other versions in the report are those of our own environment
    :raises UserError: if it fails; the message has the end of its stderr
    """
    flags = {
        "--parameters": parameters,
        "--actors": options.actors,
        "--envs": options.num_envs,
        "--window": WINDOW,
        "--seconds": options.seconds,
        "--warm-up": WARM_UP,
    }
    words = [str(word) for pair in flags.items() for word in pair]
    # Isolated (-I): the names of the files beside the script would hide modules of the standard library.
    result = subprocess.run([str(options.rllib), "-I", str(SCRIPT), *words], capture_output=True, text=True)
    lines = result.stdout.strip().splitlines()
    if result.returncode or not lines:
        raise UserError(f"--rllib {options.rllib} failed:\n{result.stderr.strip()[-2000:]}")
    told = json.loads(lines[-1])
    return {name: told[name] for name in ("steps_per_second", "parameters", "ray")}


def run(options: Options, console: Console) -> Row:
    """Measure the agents in turns."""
    ours, parameters = configs(options)
    cases = []
    for agent in options.agents:
        train = partial(rllib_turn, options, parameters)
        if agent in ours:
            train = partial(turn, ours[agent], envs_of_a_process(agent, options), options.seconds)
        cases.append(Case(agent, {"agent": agent}, train))
    sizes = {"actors": options.actors, "num_envs": options.num_envs, "window": WINDOW, "seconds": options.seconds}
    return {"sizes": sizes, "agents": measure(cases, options.repeats, console, {"ratio_to_last": options.agents[-1]})}


def tables(report: Row) -> list[Table]:
    """List the only table."""
    sizes, rows = report["sizes"], report["agents"]
    return [
        Table(
            f"training on CartPole without velocities, {sizes['actors']} × {sizes['num_envs']} envs",
            rows,
            [
                Column("agent", lambda row: LABELS[row["agent"]]),
                Column("params", lambda row: f"{row['turns'][0]['parameters']:,}"),
                Column.median("steps/s", "steps_per_second"),
                Column.range("range", "steps_per_second"),
                Column(
                    "lag", lambda row: f"{median(values(row, 'policy_lag')):.1f}" if "policy_lag" in row else MISSING
                ),
                Column.ratio("ratio", "ratio_to_last"),
            ],
            [
                turns_note(rows, f"each {sizes['seconds']:g} s; ratio of steps/s to the last row"),
                "lag: updates by which the weights that acted were older",
                "torch threads: of MemoryPPO; MemoryImpala's learner has as many as its actors leave it cores",
            ],
        )
    ]
