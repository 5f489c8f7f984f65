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
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import ctrl
from ctrl import Tier
from ctrl.core import Acting
from ctrl.experiments.bench.harness import (
    SEED,
    Case,
    Column,
    Row,
    Table,
    Turn,
    measure,
    milliseconds,
    seconds_per_call,
    turns_note,
)
from ctrl.experiments.bench.options import TorchOptions
from ctrl.experiments.bench.subjects.agents import N_STEPS, fresh_agent, memory_config
from ctrl.experiments.bench.subjects.cores import INPUT_SIZE, WARM_UP, drawn, warm_state
from ctrl.experiments.errors import require, require_at_least
from ctrl.experiments.report.summary import bytes_text, duration_text
from ctrl.experiments.runs.build import build_model

SLICES = 10
DRAWN = 128
"""Number of inputs drawn beforehand; they are repeated in a cycle."""
ROLLOUT_ENVS = 8
WINDOWS = (128, 32, 16)


@dataclass(frozen=True)
class Options(TorchOptions):
    """Cost of a long episode, and of more slots, envs and layers, in time and in bytes."""

    episode_steps: int = 1_000_000
    """Number of steps of the long episode, in one env; a multiple of 10."""
    steps: int = 200
    """Number of timed steps in a turn, for each number of slots, envs or layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "steps")
        steps = self.episode_steps
        require(steps >= 10 and steps % 10 == 0, f"--episode-steps must be a multiple of 10, got {steps}")


@dataclass(frozen=True)
class Sizes:
    """Sizes with which an acting step is timed."""

    slots: int = 32
    """Number of raw slots of a layer; it has as many compressed ones."""
    envs: int = 16
    layers: int = 2

    def core(self) -> ctrl.MemoryCore[Any]:
        """Build the core."""
        memory = [Tier(self.slots), Tier(self.slots, 4, "conv")]
        return ctrl.make_core("compressive", INPUT_SIZE, layers=self.layers, memory=memory)


DEFAULT = Sizes()
VARIED = {"slots": (8, 16, 32, 64, 128, 256), "envs": (1, 4, 16, 64, 256), "layers": (1, 2, 4, 8)}
"""Values of each size that varies while the others are as in `DEFAULT`, whose own value is among them."""


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Return the resident memory of the process in bytes, or its peak if the system reports nothing else."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def drawn_inputs(envs: int) -> itertools.cycle[torch.Tensor]:
    """Return an endless iterator over inputs [B, I]."""
    return itertools.cycle(drawn(DRAWN, envs, INPUT_SIZE).unbind())


def play_episode(acting: Acting[Any], steps: int, show: Callable[[int, Row], None]) -> list[Row]:
    """Act for an episode of `steps` steps.

    :param show: called with the number (from 1) and the results of each tenth when it ends
    :return: seconds of a step in each tenth, and the resident memory of the process at its end
    """
    inputs = drawn_inputs(acting.batch_size)
    first = torch.ones(acting.batch_size, dtype=torch.bool)
    later = ~first
    resets = itertools.chain([first], itertools.repeat(later))
    slices = []
    for number in range(1, SLICES + 1):
        seconds = seconds_per_call(lambda: acting.step(next(inputs), next(resets)), steps // SLICES)
        slices.append({"seconds_per_step": seconds, "resident_bytes": resident_bytes()})
        show(number, slices[-1])
    return slices


def measure_episode(steps: int, console: Console) -> Row:
    """Play the long episode in one env."""
    core = DEFAULT.core()
    before, acting = resident_bytes(), core.acting(core.initial_state(1))

    def show(number: int, tenth: Row) -> None:
        left = duration_text((SLICES - number) * tenth["seconds_per_step"] * steps / SLICES)
        milliseconds, memory = 1e3 * tenth["seconds_per_step"], bytes_text(tenth["resident_bytes"])
        console.print(f"slice {number}/{SLICES}  {milliseconds:.3f} ms a step, {memory}, {left} left")

    return {"resident_bytes_before": before, "slices": play_episode(acting, steps, show)}


def turn(core: ctrl.MemoryCore[Any], envs: int, steps: int) -> Turn:
    """Time steps of all envs, starting from a warm state."""
    acting, inputs = core.acting(warm_state(core, envs)), drawn_inputs(envs)
    reset = torch.zeros(envs, dtype=torch.bool)
    return {"seconds_per_step": seconds_per_call(lambda: acting.step(next(inputs), reset), steps, WARM_UP)}


def measure_varied(varied: str, options: Options, console: Console) -> list[Row]:
    """Measure the values of one size in turns."""
    console.print(f"{varied} vary")
    cases = []
    for value in VARIED[varied]:
        sizes = replace(DEFAULT, **{varied: value})
        core = sizes.core()
        about = {"varied": varied, "case": asdict(sizes), "state_bytes": core.state_bytes}
        cases.append(Case(f"{varied} {value}", about, partial(turn, core, sizes.envs, options.steps)))
    return measure(cases, options.repeats, console, {"ratio": f"{varied} {getattr(DEFAULT, varied)}"})


def measure_rollout(core: str, window: int) -> Row:
    """Collect a rollout and count its bytes.

    :return: bytes of the states that are kept (`snapshots`, one for each window), of all other arrays (`rest`), and of
        the states if there were one for each step; `ratio` is that of the whole rollout with those to its real size
    """
    config = memory_config(core)
    build = partial(build_model, replace(config, ppo=replace(config.ppo, window=window, n_epochs=1)))
    with fresh_agent(build, ROLLOUT_ENVS) as model:
        model.learn(ROLLOUT_ENVS * N_STEPS)
    buffer = model.rollout_buffer
    states = [tensor for state in buffer.snapshots.values() for tensor in (*state.core, *state[1:])]
    snapshots = sum(tensor.nbytes for tensor in states)
    rest = sum(value.nbytes for value in vars(buffer).values() if isinstance(value, np.ndarray))
    return rollout_row(core, window, snapshots, rest)


def rollout_row(core: str, window: int, snapshots: int, rest: int) -> Row:
    """Return the row of a rollout; see `measure_rollout`."""
    sizes = {"core": core, "window": window, "snapshots": snapshots, "rest": rest}
    every_step = snapshots * window
    return {**sizes, "every_step": every_step, "ratio": (rest + every_step) / (rest + snapshots)}


def run(options: Options, console: Console) -> Row:
    """Count the bytes of rollouts, measure the cases, and play the long episode."""
    rollouts = [measure_rollout("compressive", window) for window in WINDOWS] + [measure_rollout("lstm", N_STEPS)]
    cases = [row for varied in VARIED for row in measure_varied(varied, options, console)]
    sizes = {"episode_steps": options.episode_steps, "steps": options.steps, "warm_up": WARM_UP, "seed": SEED}
    return {
        "sizes": {**sizes, "rollout_envs": ROLLOUT_ENVS, "rollout_steps": N_STEPS},
        "reference": asdict(DEFAULT),
        "episode": measure_episode(options.episode_steps, console),
        "cases": cases,
        "rollouts": rollouts,
    }


def tables(report: Row) -> list[Table]:
    """List the tables of the long episode, of the cases and of rollouts."""
    return [_episode_table(report), _cases_table(report["cases"]), _rollouts_table(report["rollouts"])]


def _episode_table(report: Row) -> Table:
    steps, slices = report["sizes"]["episode_steps"], report["episode"]["slices"]
    first, before = slices[0]["seconds_per_step"], bytes_text(report["episode"]["resident_bytes_before"])
    return Table(
        f"one episode of {steps:,} steps in one env",
        list(enumerate(slices, start=1)),
        [
            Column("step", lambda row: f"{row[0] * steps // SLICES:,}"),
            Column("ms a step", lambda row: milliseconds(row[1]["seconds_per_step"])),
            Column("ratio", lambda row: f"{row[1]['seconds_per_step'] / first:.2f}"),
            Column("resident memory", lambda row: bytes_text(row[1]["resident_bytes"])),
        ],
        [f"ms of a step, mean over a tenth of the episode; ratio to the first tenth; {before} before it"],
    )


def _cases_table(rows: list[Row]) -> Table:
    default = f"{DEFAULT.slots} slots of each tier, {DEFAULT.envs} envs, {DEFAULT.layers} layers"
    return Table(
        "acting, all slots full",
        rows,
        [
            Column("with", lambda row: f"{row['varied']} {row['case'][row['varied']]}"),
            Column.median("ms a step", "seconds_per_step", milliseconds),
            Column.range("range", "seconds_per_step", milliseconds),
            Column.ratio("ratio", "ratio"),
            Column("state of an env", _size("state_bytes")),
        ],
        [
            turns_note(rows, "ms of one acting step of all envs"),
            f"ratio of ms to {default}, from which one thing varies",
        ],
    )


def _rollouts_table(rows: list[Row]) -> Table:
    return Table(
        f"bytes of a rollout, {ROLLOUT_ENVS} envs × {N_STEPS} steps of CartPole",
        rows,
        [
            Column.text("core", "core"),
            Column.text("window", "window"),
            Column("states", _size("snapshots")),
            Column("the rest", _size("rest")),
            Column("each step", _size("every_step")),
            Column.ratio("ratio", "ratio"),
        ],
        [
            "states: one for each window, as the buffer keeps them; each step: if there were one for each step",
            "ratio of the whole rollout with a state for each step to the rollout as it is",
        ],
    )


def _size(name: str) -> Callable[[Row], str]:
    return lambda row: bytes_text(row[name])
