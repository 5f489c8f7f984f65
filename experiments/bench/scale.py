"""`ctrl bench scale`: cost of a long episode, and of more slots, envs and layers, in time and in bytes.

The core is the compressive one with the paper's kind of memory: 2 layers, width 64, 32 raw slots and 32 slots of 4
steps that a convolution compresses. Only the size that varies is changed. The long episode is that of one env. Its
steps are timed in ten equal slices, and the resident memory of the process is read at the end of each slice; neither
should grow. The bytes of a rollout are those of a real one: the states that the buffer keeps, one for each window,
beside the bytes of one state for each step.
"""

from __future__ import annotations

import itertools
import os
import platform
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console, RenderableType

import ctrl
from ctrl import Tier
from ctrl.core import Acting
from ctrl.experiments.bench.config import BenchScale
from ctrl.experiments.bench.train import N_STEPS, make_cartpole, memory_config
from ctrl.experiments.bench.turns import (
    SEED,
    framed,
    number_of,
    range_text,
    ratio,
    ratio_text,
    seconds_per_call,
    shower,
    summarise,
    take_turns,
    use_threads,
    warm_state,
)
from ctrl.experiments.report.summary import bytes_text, duration_text
from ctrl.experiments.runs.build import build_model

INPUT_SIZE = 64
SLICES = 10
WARM_UP = 20
"""Number of steps at the start of a turn that are not timed."""
DRAWN = 128
"""Number of inputs drawn beforehand; they are repeated in a cycle."""
ROLLOUT_ENVS = 8
WINDOWS = (128, 32, 16)


@dataclass(frozen=True)
class Slice:
    """Results of a tenth of the long episode."""

    seconds_per_step: float
    resident_bytes: int
    """Resident memory of the process at the end of the slice."""


@dataclass(frozen=True)
class Case:
    """Sizes with which an acting step is timed."""

    slots: int = 32
    """Number of raw slots of a layer; it has as many compressed ones."""
    envs: int = 16
    layers: int = 2

    def __str__(self) -> str:
        return f"{self.slots} slots, {self.envs} envs, {self.layers} layers"

    def core(self) -> ctrl.MemoryCore[Any]:
        """Build the core."""
        memory = [Tier(self.slots), Tier(self.slots, 4, "conv")]
        return ctrl.make_core("compressive", INPUT_SIZE, layers=self.layers, memory=memory)


DEFAULT = Case()
VARIED: dict[str, list[Case]] = {
    "slots": [replace(DEFAULT, slots=slots) for slots in (8, 16, 32, 64, 128, 256)],
    "envs": [replace(DEFAULT, envs=envs) for envs in (1, 4, 16, 64, 256)],
    "layers": [replace(DEFAULT, layers=layers) for layers in (1, 2, 4, 8)],
}
"""Cases by the size that varies; `DEFAULT` is in each list."""


@dataclass(frozen=True)
class ScaleResult:
    """Results of one case, in all turns."""

    varied: str
    case: Case
    state_bytes: int
    """Bytes of the state of one env."""
    seconds: list[float]
    """Seconds of one step of all envs, in each turn."""
    ratio: float
    """Ratio of seconds to those of `DEFAULT`."""

    @property
    def value(self) -> int:
        """Value of the size that varies."""
        value: int = getattr(self.case, self.varied)
        return value

    def to_json(self) -> dict[str, Any]:
        """Return the results of all turns, and their median and range, as plain data."""
        return {**asdict(self), "seconds_per_step": summarise(self.seconds)}


@dataclass(frozen=True)
class Rollout:
    """Bytes of a rollout of `ROLLOUT_ENVS` envs and `N_STEPS` steps."""

    core: str
    window: int
    snapshots: int
    """Bytes of the states that are kept, one for each window."""
    rest: int
    """Bytes of observations, actions and the other arrays."""
    every_step: int
    """Bytes of the states if there were one for each step."""

    @property
    def saving(self) -> float:
        """Size of the whole rollout with a state for each step, as a multiple of its real size."""
        return (self.rest + self.every_step) / (self.rest + self.snapshots)


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Return the resident memory of the process in bytes, or its peak if the system reports nothing else."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def drawn_inputs(envs: int) -> itertools.cycle[torch.Tensor]:
    """Return an endless iterator over inputs [B, I]."""
    generator = torch.Generator().manual_seed(SEED)
    return itertools.cycle(torch.randn(DRAWN, envs, INPUT_SIZE, generator=generator).unbind())


def play_episode(acting: Acting[Any], steps: int, show: Callable[[int, Slice], None]) -> list[Slice]:
    """Act for an episode of `steps` steps and return the results of each tenth.

    :param show: called with the number (from 1) and the results of each slice when it ends
    """
    inputs = drawn_inputs(acting.batch_size)
    first = torch.ones(acting.batch_size, dtype=torch.bool)
    later = ~first
    resets = itertools.chain([first], itertools.repeat(later))
    slices = []
    for number in range(1, SLICES + 1):
        seconds = seconds_per_call(lambda: acting.step(next(inputs), next(resets)), steps // SLICES)
        slices.append(Slice(seconds, resident_bytes()))
        show(number, slices[-1])
    return slices


def measure_episode(steps: int, console: Console) -> list[Slice]:
    """Play the long episode in one env."""
    core = DEFAULT.core()
    acting = core.acting(core.initial_state(1))

    def show(number: int, slice_: Slice) -> None:
        left = duration_text((SLICES - number) * slice_.seconds_per_step * steps / SLICES)
        memory = bytes_text(slice_.resident_bytes)
        console.print(f"slice {number}/{SLICES}  {1e3 * slice_.seconds_per_step:.3f} ms a step, {memory}, {left} left")

    return play_episode(acting, steps, show)


def run_turn(core: ctrl.MemoryCore[Any], envs: int, steps: int) -> float:
    """Return the mean seconds of a step of all envs, starting from a warm state."""
    acting, inputs = core.acting(warm_state(core, envs)), drawn_inputs(envs)
    reset = torch.zeros(envs, dtype=torch.bool)
    seconds_per_call(lambda: acting.step(next(inputs), reset), WARM_UP)
    return seconds_per_call(lambda: acting.step(next(inputs), reset), steps)


def measured(
    varied: str, state_bytes: Mapping[Case, int], turns: Mapping[Case, list[float]], default: Case = DEFAULT
) -> list[ScaleResult]:
    """Combine the results of the cases in which one size varies."""
    return [
        ScaleResult(varied, case, state_bytes[case], seconds, ratio(seconds, turns[default]))
        for case, seconds in turns.items()
    ]


def measure_cases(config: BenchScale, console: Console) -> list[ScaleResult]:
    """Measure the cases in turns, for each size that varies."""
    results = []
    for varied, cases in VARIED.items():
        console.print(f"{varied} vary")
        cores = {case: case.core() for case in cases}
        workers = {case: partial(run_turn, core, case.envs, config.steps) for case, core in cores.items()}
        show = shower(console, config.repeats, lambda seconds: f"{1e3 * seconds:8.3f} ms")
        turns = take_turns(workers, config.repeats, show)
        results += measured(varied, {case: core.state_bytes for case, core in cores.items()}, turns)
    return results


def measure_rollout(core: str, window: int) -> Rollout:
    """Collect a rollout and count its bytes."""
    config = memory_config(core)
    env = make_cartpole(ROLLOUT_ENVS)
    try:
        model = build_model(replace(config, ppo=replace(config.ppo, window=window, n_epochs=1)), env)
        model.learn(ROLLOUT_ENVS * N_STEPS)
    finally:
        env.close()
    buffer = model.rollout_buffer
    states = [tensor for state in buffer.snapshots.values() for tensor in (*state.core, *state[1:])]
    snapshots = sum(tensor.nbytes for tensor in states)
    arrays = [value for value in vars(buffer).values() if isinstance(value, np.ndarray)]
    return Rollout(core, window, snapshots, sum(array.nbytes for array in arrays), snapshots * window)


def episode_table(slices: Sequence[Slice], steps: int, before: int, threads: int) -> RenderableType:
    """Build the table of the long episode."""
    rows = [
        [
            f"{number * steps // SLICES:,}",
            number_of(1e3 * slice_.seconds_per_step),
            ratio_text(slice_.seconds_per_step / slices[0].seconds_per_step),
            bytes_text(slice_.resident_bytes),
        ]
        for number, slice_ in enumerate(slices, start=1)
    ]
    notes = [
        f"ms of a step, mean over a tenth of the episode; ratio to the first tenth; {bytes_text(before)} before it",
    ]
    columns = ["step", "ms a step", "ratio", "resident memory"]
    return framed(f"one episode of {steps:,} steps in one env", columns, rows, notes, threads)


def cases_table(results: Sequence[ScaleResult], threads: int) -> RenderableType:
    """Build the table of the cases."""
    rows = [
        [
            f"{result.varied} {result.value}",
            number_of(1e3 * median(result.seconds)),
            range_text([1e3 * seconds for seconds in result.seconds]),
            ratio_text(result.ratio),
            bytes_text(result.state_bytes),
        ]
        for result in results
    ]
    default = f"{DEFAULT.slots} slots of each tier, {DEFAULT.envs} envs, {DEFAULT.layers} layers"
    notes = [
        f"median of {len(results[0].seconds)} interleaved turns; ms of one acting step of all envs",
        f"ratio of ms to {default}, from which one thing varies",
    ]
    columns = ["with", "ms a step", "range", "ratio", "state of an env"]
    return framed("acting, all slots full", columns, rows, notes, threads)


def rollouts_table(results: Sequence[Rollout]) -> RenderableType:
    """Build the table of the bytes of rollouts."""
    rows = [
        [
            result.core,
            str(result.window),
            bytes_text(result.snapshots),
            bytes_text(result.rest),
            bytes_text(result.every_step),
            ratio_text(result.saving),
        ]
        for result in results
    ]
    notes = [
        "states: one for each window, as the buffer keeps them; each step: if there were one for each step",
        "ratio of the whole rollout with a state for each step to the rollout as it is",
    ]
    columns = ["core", "window", "states", "the rest", "each step", "ratio"]
    return framed(f"bytes of a rollout, {ROLLOUT_ENVS} envs × {N_STEPS} steps of CartPole", columns, rows, notes)


def run(config: BenchScale, console: Console) -> dict[str, Any]:
    """Run the benchmark, print its tables and return its part of the report."""
    threads = use_threads(config.threads)
    rollouts = [measure_rollout("compressive", window) for window in WINDOWS] + [measure_rollout("lstm", N_STEPS)]
    cases = measure_cases(config, console)
    before = resident_bytes()
    slices = measure_episode(config.episode_steps, console)
    console.print(episode_table(slices, config.episode_steps, before, threads))
    console.print(cases_table(cases, threads))
    console.print(rollouts_table(rollouts))
    sizes = {"episode_steps": config.episode_steps, "steps": config.steps, "warm_up": WARM_UP, "seed": SEED}
    return {
        "torch_threads": threads,
        "sizes": {**sizes, "rollout_envs": ROLLOUT_ENVS, "rollout_steps": N_STEPS},
        "reference": asdict(DEFAULT),
        "episode": {"resident_bytes_before": before, "slices": [asdict(slice_) for slice_ in slices]},
        "cases": [result.to_json() for result in cases],
        "rollouts": [{**asdict(result), "ratio": result.saving} for result in rollouts],
    }
