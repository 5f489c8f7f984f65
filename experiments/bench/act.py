"""`ctrl bench act`: time of one acting step, without gradients and with fixed weights.

The compressive core (2 layers, width 64, 32 raw and 32 compressed slots) and the LSTM core act by `core.acting`, beside
one step of `torch.nn.LSTM`. Both LSTMs have one layer, and their parameter counts are within 10 % of the compressive
core's. All slots are full. The episodes of the envs have different ages, so that some envs compress at each step.

For one env, `predict` of a `MemoryPPO` policy is timed beside `core.step` on the same state. The difference is the cost
of the encoder, the heads and the conversion from numpy and back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console, RenderableType
from torch import nn

import ctrl
from ctrl.experiments.bench.config import BenchAct
from ctrl.experiments.bench.train import TARGET, make_cartpole, matched_config, memory_config
from ctrl.experiments.bench.turns import (
    SEED,
    count,
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
from ctrl.experiments.errors import UserError
from ctrl.experiments.runs.build import TOLERANCE, build_model, closest, core_kwargs, parameter_count

INPUT_SIZE = 64
REFERENCE = "torch.nn.LSTM"
CORES = ("compressive", "lstm")
WARM_UP = 20
"""Number of steps at the start of a turn that are not timed."""

Step = Callable[[], object]


@dataclass(frozen=True)
class ActResult:
    """Results of one model at one batch size, in all turns."""

    model: str
    batch_size: int
    parameters: int
    seconds: list[float]
    """Seconds of one step of all envs, in each turn."""
    ratio: float | None = None
    """Ratio of seconds to those of the reference; None if there is no reference."""

    def to_json(self) -> dict[str, Any]:
        """Return the results of all turns, and their median and range, as plain data."""
        return {**asdict(self), "seconds_per_step": summarise(self.seconds)}


def matched_units(target: int) -> int:
    """Return the number of units with which one layer of `torch.nn.LSTM` has about `target` parameters."""
    units, parameters = closest(lambda size: count(nn.LSTM(INPUT_SIZE, size)), target, highest=1024)
    if abs(parameters / target - 1) > TOLERANCE:
        raise UserError(f"no LSTM comes within {TOLERANCE:.0%} of {target:,} parameters")
    return units


def models() -> dict[str, nn.Module]:
    """Build the models to compare, by name."""
    torch.manual_seed(SEED)
    compressive = ctrl.make_core("compressive", INPUT_SIZE, **core_kwargs(TARGET, memory_config(TARGET).memory))
    units = matched_units(count(compressive))
    return {
        "compressive": compressive,
        "lstm": ctrl.make_core("lstm", INPUT_SIZE, width=units),
        REFERENCE: nn.LSTM(INPUT_SIZE, units),
    }


def stepper(model: nn.Module, batch_size: int) -> Step:
    """Return a function that takes one acting step in `batch_size` envs, starting from a warm state."""
    inputs = torch.randn(batch_size, INPUT_SIZE, generator=torch.Generator().manual_seed(SEED))
    if isinstance(model, nn.LSTM):
        return _torch_stepper(model, inputs)
    assert isinstance(model, ctrl.MemoryCore)
    acting = model.acting(warm_state(model, batch_size))
    reset = torch.zeros(batch_size, dtype=torch.bool)
    return partial(acting.step, inputs, reset)


def _torch_stepper(lstm: nn.LSTM, inputs: torch.Tensor) -> Step:
    window = inputs[None]  # [1, B, I]
    zeros = torch.zeros(lstm.num_layers, len(inputs), lstm.hidden_size)
    state = (zeros, zeros)

    @torch.no_grad()
    def step() -> None:
        nonlocal state
        _, state = lstm(window, state)

    return step


def run_turn(make: Callable[[], Step], steps: int) -> float:
    """Return the mean seconds of a step; every turn starts from the same state, which `make` sets up."""
    step = make()
    seconds_per_call(step, WARM_UP)
    return seconds_per_call(step, steps)


def predictors(core: str) -> dict[str, Callable[[], Step]]:
    """Return, for `run_turn`, makers of two steps of one env on the same state: `predict`, and its core alone."""
    env = make_cartpole(1)
    try:
        target = parameter_count(build_model(memory_config(TARGET), env))
        policy = build_model(matched_config(core, env, target), env).policy
    finally:
        env.close()
    state = policy.initial_state(1)._replace(core=warm_state(policy.core, 1))
    leaves = tuple(leaf.numpy() for leaf in (*state.core, state.previous_action, state.previous_reward))
    observation, reset = np.zeros((1, 2), dtype=np.float32), torch.zeros(1, dtype=torch.bool)
    inputs = torch.randn(1, policy.core.input_size, generator=torch.Generator().manual_seed(SEED))
    core_step = torch.no_grad()(partial(policy.core.step, inputs, state.core, reset))
    predict = partial(policy.predict, observation, leaves, np.zeros(1, dtype=bool))
    return {"predict": lambda: predict, "core.step": lambda: core_step}


def measured(
    counts: Mapping[str, int], batch_size: int, turns: Mapping[str, list[float]], reference: str = REFERENCE
) -> list[ActResult]:
    """Combine the results at one batch size."""
    return [
        ActResult(name, batch_size, counts[name], seconds, ratio(seconds, turns[reference]))
        for name, seconds in turns.items()
    ]


@dataclass(frozen=True)
class Prediction:
    """Results of `predict`, and of its core alone, for one env, in all turns."""

    core: str
    predict: list[float]
    """Seconds of a call of `predict`, in each turn."""
    core_step: list[float]
    """Seconds of a call of `core.step` on the same state, in each turn."""

    @property
    def overhead(self) -> float:
        """Seconds that `predict` takes beyond its core: the median over turns of the difference within a turn."""
        return median(a - b for a, b in zip(self.predict, self.core_step, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return the results of all turns, and their median and range, as plain data."""
        summed = {"predict_seconds": summarise(self.predict), "core_step_seconds": summarise(self.core_step)}
        return {**asdict(self), **summed, "overhead_seconds": self.overhead}


def measure_steps(config: BenchAct, console: Console) -> list[ActResult]:
    """Time the models in turns, at each batch size."""
    compared = models()
    counts = {name: count(model) for name, model in compared.items()}
    results = []
    for batch_size in config.batch_sizes:
        console.print(f"batch {batch_size}")
        workers = {
            name: partial(run_turn, partial(stepper, model, batch_size), config.steps)
            for name, model in compared.items()
        }
        show = shower(console, config.repeats, lambda seconds: f"{1e3 * seconds:8.3f} ms")
        results += measured(counts, batch_size, take_turns(workers, config.repeats, show))
    return results


def measure_predictions(config: BenchAct, console: Console) -> list[Prediction]:
    """Time `predict` and `core.step` in turns, for each core."""
    results = []
    for core in CORES:
        console.print(f"predict, {core}")
        workers = {name: partial(run_turn, make, config.steps) for name, make in predictors(core).items()}
        show = shower(console, config.repeats, lambda seconds: f"{1e3 * seconds:8.3f} ms")
        turns = take_turns(workers, config.repeats, show)
        results.append(Prediction(core, turns["predict"], turns["core.step"]))
    return results


def steps_table(results: Sequence[ActResult], threads: int) -> RenderableType:
    """Build the table of acting steps."""
    rows = [
        [
            result.model,
            str(result.batch_size),
            f"{result.parameters:,}",
            number_of(1e3 * median(result.seconds)),
            range_text([1e3 * seconds for seconds in result.seconds]),
            f"{result.batch_size / median(result.seconds):,.0f}",
            ratio_text(result.ratio),
        ]
        for result in results
    ]
    notes = [
        f"median of {len(results[0].seconds)} interleaved turns; ms of one step of all envs; no gradient",
        f"ratio of ms to {REFERENCE}, a step of one time step at the same batch; above 1 is slower",
    ]
    columns = ["core", "batch", "params", "ms a step", "range", "env steps/s", "ratio"]
    return framed("one acting step, all slots full, episodes of different ages", columns, rows, notes, threads)


def predictions_table(results: Sequence[Prediction], threads: int) -> RenderableType:
    """Build the table of `predict`."""
    rows = [
        [
            result.core,
            number_of(1e3 * median(result.predict)),
            range_text([1e3 * seconds for seconds in result.predict]),
            number_of(1e3 * median(result.core_step)),
            range_text([1e3 * seconds for seconds in result.core_step]),
            number_of(1e3 * result.overhead),
        ]
        for result in results
    ]
    notes = [
        f"median of {len(results[0].predict)} interleaved turns; ms of a call, one env",
        "overhead: predict less core.step on the same state",
    ]
    columns = ["core", "predict, ms", "range", "core.step, ms", "range", "overhead, ms"]
    return framed("MemoryPPO.predict for one env", columns, rows, notes, threads)


def run(config: BenchAct, console: Console) -> dict[str, Any]:
    """Run the benchmark, print its tables and return its part of the report."""
    threads = use_threads(config.threads)
    steps = measure_steps(config, console)
    predictions = measure_predictions(config, console)
    console.print(steps_table(steps, threads))
    console.print(predictions_table(predictions, threads))
    return {
        "torch_threads": threads,
        "sizes": {"input_size": INPUT_SIZE, "steps": config.steps, "warm_up": WARM_UP, "seed": SEED},
        "reference": REFERENCE,
        "steps": [result.to_json() for result in steps],
        "predict": [result.to_json() for result in predictions],
    }
