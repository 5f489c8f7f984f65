"""`ctrl bench profile`: time of an update of `MemoryPPO` by phase.

The task and the sizes are those of `ctrl bench train`. Clocks are wrapped around the methods of one model and of its
env, buffer and policy; the library itself has none. Phases do not overlap:

    env         step of the envs
    act         step of the policy, and values that only bootstrap
    buffer      storing steps and states, laying them out as windows
    plan        the core's plan of the windows, once for the rollout
    advantage   returns and advantages
    forward     from `evaluate_windows` to the losses
    backward    from `zero_grad` to the last gradient
    optimizer   gradient norms, clips and Adam
    rest        picking minibatches, checks, statistics, callbacks
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console, RenderableType
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ctrl.agents import MemoryPPO
from ctrl.experiments.bench.config import MINIBATCHES, BenchProfile
from ctrl.experiments.bench.train import N_EPOCHS, N_STEPS, agents, make_cartpole
from ctrl.experiments.bench.turns import SEED, framed, number_of, shower, summarise, take_turns, use_threads

PHASES = ("env", "act", "buffer", "plan", "advantage", "forward", "backward", "optimizer", "rest")

Turn = dict[str, float]
"""Seconds of an update by phase, and of the whole update under `TOTAL`."""
TOTAL = "total"


class Case(NamedTuple):
    """Core and number of envs to measure."""

    core: str
    num_envs: int

    def __str__(self) -> str:
        return f"{self.core}, {self.num_envs} envs"


class Clocks:
    """Clocks that time the phases of a model's updates, from now on.

    :param model: agent that has acted already, so that all its parts exist
    """

    def __init__(self, model: MemoryPPO) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._inner = [0.0]
        self._mark = 0.0
        self._wrap_acting(model)
        self._wrap_learning(model)

    def wrap(self, owner: Any, name: str, phase: str) -> None:
        """Add the time in a method of one object to a phase, without the time in wrapped methods that it calls."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                spent = time.perf_counter() - begin
                self.seconds[phase] += spent - self._inner.pop()
                self._inner[-1] += spent

        setattr(owner, name, timed)

    def _wrap_acting(self, model: MemoryPPO) -> None:
        actor, buffer = model._actor, model.rollout_buffer
        self.wrap(model.env, "step", "env")
        self.wrap(actor, "act", "act")
        self.wrap(actor, "tell_rewards", "act")
        self.wrap(model.policy, "values_after", "act")
        self.wrap(actor, "state", "buffer")
        for name in ("reset", "add_snapshot", "add_step", "all_windows"):
            self.wrap(buffer, name, "buffer")
        self.wrap(model.policy.core, "plan", "plan")
        self.wrap(buffer, "compute_returns_and_advantage", "advantage")
        self.wrap(model, "_optimize", "optimizer")

    def _wrap_learning(self, model: MemoryPPO) -> None:
        """Time forward and backward: forward ends where the gradients are zeroed, backward with the last gradient."""
        policy: Any = model.policy
        evaluate_windows, zero_grad = policy.evaluate_windows, policy.zero_grad

        def begin(*args: Any, **kwargs: Any) -> Any:
            self._mark = time.perf_counter()
            return evaluate_windows(*args, **kwargs)

        def turn(*args: Any, **kwargs: Any) -> None:
            self._count("forward")
            zero_grad(*args, **kwargs)

        def end(parameter: Tensor) -> None:
            self._count("backward")

        policy.evaluate_windows, policy.zero_grad = begin, turn
        for parameter in policy.parameters():
            parameter.register_post_accumulate_grad_hook(end)

    def _count(self, phase: str) -> None:
        """Add the time since the last mark to a phase, and set the mark to now."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._mark
        self._mark = now


@dataclass(frozen=True)
class ProfileResult:
    """Results of one core at one number of envs, in all turns."""

    core: str
    num_envs: int
    turns: list[Turn]

    def milliseconds(self, phase: str) -> float:
        """Return the milliseconds of a phase in an update, median over the turns."""
        return 1e3 * median(turn[phase] for turn in self.turns)

    def share(self, phase: str) -> float:
        """Return the share of a phase in an update: the median over turns of the share within a turn."""
        return median(turn[phase] / turn[TOTAL] for turn in self.turns)

    def to_json(self) -> dict[str, Any]:
        """Return the results of all turns, and their median and range, as plain data."""
        seconds = {phase: summarise([turn[phase] for turn in self.turns]) for phase in (*PHASES, TOTAL)}
        shares = {phase: self.share(phase) for phase in PHASES}
        about = {"core": self.core, "num_envs": self.num_envs, "turns": self.turns}
        return {**about, "seconds_per_update": seconds, "share": shares}


def per_update(seconds: Mapping[str, float], total: float, updates: int) -> Turn:
    """Return the seconds of an update by phase; the phase `rest` has the time that no clock counted."""
    rest = total - sum(seconds.values())
    return {phase: each / updates for phase, each in {**seconds, "rest": rest, TOTAL: total}.items()}


def run_turn(build: Callable[[VecEnv], Any], num_envs: int, updates: int) -> Turn:
    """Train a fresh agent for one update without clocks and `updates` with them; return the seconds of an update."""
    env = make_cartpole(num_envs)
    try:
        model = build(env)
        model.set_logger(Logger(folder=None, output_formats=[]))
        model.learn(num_envs * N_STEPS)
        clocks = Clocks(model)
        begin = time.perf_counter()
        model.learn(updates * num_envs * N_STEPS, reset_num_timesteps=False)
        return per_update(clocks.seconds, time.perf_counter() - begin, updates)
    finally:
        env.close()


def measure(config: BenchProfile, console: Console) -> list[ProfileResult]:
    """Measure all cores at all numbers of envs in turns."""
    builders, _ = agents(config.cores)
    workers = {
        Case(core, num_envs): partial(run_turn, builders[core], num_envs, config.updates)
        for core in config.cores
        for num_envs in config.num_envs
    }
    show = shower(console, config.repeats, lambda turn: f"{1e3 * turn[TOTAL]:8,.0f} ms an update")
    turns = take_turns(workers, config.repeats, show)
    return [ProfileResult(*case, each) for case, each in turns.items()]


def profile_table(results: Sequence[ProfileResult], threads: int) -> RenderableType:
    """Build the table of one core, with two columns for each number of envs."""
    columns = ["phase", *(head for result in results for head in (f"{result.num_envs} envs\nms", "\nshare"))]
    rows = [[phase, *(cell for result in results for cell in _cells(result, phase))] for phase in (*PHASES, TOTAL)]
    notes = [
        f"median of {len(results[0].turns)} interleaved turns; ms of an update and share of all of it",
        f"CartPole without velocities, {N_STEPS} steps, {N_EPOCHS} epochs × {MINIBATCHES} minibatches",
    ]
    return framed(f"phases of an update, MemoryPPO {results[0].core}", columns, rows, notes, threads)


def _cells(result: ProfileResult, phase: str) -> tuple[str, str]:
    return number_of(result.milliseconds(phase)), "" if phase == TOTAL else f"{result.share(phase):.1%}"


def run(config: BenchProfile, console: Console) -> dict[str, Any]:
    """Run the benchmark, print its tables and return its part of the report."""
    threads = use_threads(config.threads)
    results = measure(config, console)
    for core in config.cores:
        console.print(profile_table([result for result in results if result.core == core], threads))
    sizes = {"n_steps": N_STEPS, "n_epochs": N_EPOCHS, "minibatches": MINIBATCHES, "updates": config.updates}
    return {
        "torch_threads": threads,
        "sizes": {**sizes, "num_envs": config.num_envs, "seed": SEED},
        "cores": [result.to_json() for result in results],
    }
