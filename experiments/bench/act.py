"""`ctrl bench act`: time of one acting step, without gradients and with fixed weights.

The compressive core (2 layers, width 64, 32 raw and 32 compressed slots) and the LSTM core act by `core.acting`, beside
one step of `torch.nn.LSTM`. Both LSTMs have one layer, and their parameter counts are within 10 % of the compressive
core's. All slots are full. The episodes of the envs have different ages, so that some envs compress at each step.

For one env, `predict` of a `MemoryPPO` policy is timed beside `core.step` on the same state. The difference is the cost
of the encoder, the heads and the conversion from numpy and back.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import torch
from rich.console import Console
from torch import nn

import ctrl
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
    values,
)
from ctrl.experiments.bench.options import Integers, TorchOptions, require_numbers
from ctrl.experiments.bench.subjects.agents import (
    PAPER,
    closest_size,
    make_cartpole,
    matched_config,
    memory_config,
    target_of,
)
from ctrl.experiments.bench.subjects.cores import INPUT_SIZE, WARM_UP, drawn, parameters_of, warm_state
from ctrl.experiments.errors import require_at_least
from ctrl.experiments.runs.build import build_model, core_kwargs

REFERENCE = "torch.nn.LSTM"
CORES = ("compressive", "lstm")

Step = Callable[[], object]


@dataclass(frozen=True)
class Options(TorchOptions):
    """Time of one acting step beside torch.nn.LSTM, and the time that `predict` adds to it."""

    repeats: int = 5
    """Number of turns; median and range over the turns are reported."""
    batch_sizes: Integers = (1, 16, 64, 256)
    """Numbers of envs that act together; each is measured."""
    steps: int = 400
    """Number of timed steps in a turn, after some that are not timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_numbers(self, "batch_sizes")
        require_at_least(1, self, "steps")


def models() -> dict[str, nn.Module]:
    """Build the models to compare, by name; all have about as many parameters."""
    torch.manual_seed(SEED)
    compressive = ctrl.make_core("compressive", INPUT_SIZE, **core_kwargs(PAPER, memory_config(PAPER).memory))
    units = closest_size(lambda size: parameters_of(nn.LSTM(INPUT_SIZE, size)), parameters_of(compressive))
    return {
        "compressive": compressive,
        "lstm": ctrl.make_core("lstm", INPUT_SIZE, width=units),
        REFERENCE: nn.LSTM(INPUT_SIZE, units),
    }


def stepper(model: nn.Module, batch_size: int) -> Step:
    """Return a function that takes one acting step in `batch_size` envs, starting from a warm state."""
    inputs = drawn(batch_size, INPUT_SIZE)
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


def step_turn(model: nn.Module, batch_size: int, steps: int) -> Turn:
    """Time steps from a fresh warm state."""
    return {"seconds_per_step": seconds_per_call(stepper(model, batch_size), steps, WARM_UP)}


def predictors(core: str) -> tuple[Step, Step]:
    """Return two steps of one env from the same state: `predict` of a policy with a core, and a step of the core."""
    with closing(make_cartpole(1)) as env:
        policy = build_model(matched_config(memory_config(core), env, target_of(PAPER, env)), env).policy
    state = policy.initial_state(1)._replace(core=warm_state(policy.core, 1))
    leaves = tuple(leaf.numpy() for leaf in (*state.core, state.previous_action, state.previous_reward))
    observation, reset = np.zeros((1, 2), dtype=np.float32), torch.zeros(1, dtype=torch.bool)
    core_step = torch.no_grad()(partial(policy.core.step, drawn(1, policy.core.input_size), state.core, reset))
    return partial(policy.predict, observation, leaves, np.zeros(1, dtype=bool)), core_step


def predict_turn(predict: Step, core_step: Step, steps: int) -> Turn:
    """Time `predict`, its core alone, and what `predict` takes beyond its core."""
    whole, core = (seconds_per_call(step, steps, WARM_UP) for step in (predict, core_step))
    return {"predict_seconds": whole, "core_step_seconds": core, "overhead_seconds": whole - core}


def run(options: Options, console: Console) -> Row:
    """Time the models in turns at each batch size, and then `predict`."""
    compared, steps = models(), []
    for size in options.batch_sizes:
        console.print(f"batch {size}")
        cases = [
            Case(
                name,
                {"model": name, "batch_size": size, "parameters": parameters_of(model)},
                partial(step_turn, model, size, options.steps),
            )
            for name, model in compared.items()
        ]
        steps += measure(cases, options.repeats, console, {"ratio": REFERENCE})
    cases = [Case(core, {"core": core}, partial(predict_turn, *predictors(core), options.steps)) for core in CORES]
    return {
        "sizes": {"input_size": INPUT_SIZE, "steps": options.steps, "warm_up": WARM_UP, "seed": SEED},
        "reference": REFERENCE,
        "steps": steps,
        "predict": measure(cases, options.repeats, console),
    }


def tables(report: Row) -> list[Table]:
    """List the tables of acting steps and of `predict`."""
    steps, predict = report["steps"], report["predict"]
    return [
        Table(
            "one acting step, all slots full, episodes of different ages",
            steps,
            [
                Column.text("core", "model"),
                Column.text("batch", "batch_size"),
                Column.count("params", "parameters"),
                Column.median("ms a step", "seconds_per_step", milliseconds),
                Column.range("range", "seconds_per_step", milliseconds),
                Column(
                    "env steps/s", lambda row: f"{row['batch_size'] / median(values(row, 'seconds_per_step')):,.0f}"
                ),
                Column.ratio("ratio", "ratio"),
            ],
            [
                turns_note(steps, "ms of one step of all envs; no gradient"),
                f"ratio of ms to {REFERENCE}, a step of one time step at the same batch; above 1 is slower",
            ],
        ),
        Table(
            "MemoryPPO.predict for one env",
            predict,
            [
                Column.text("core", "core"),
                Column.median("predict, ms", "predict_seconds", milliseconds),
                Column.range("range", "predict_seconds", milliseconds),
                Column.median("core.step, ms", "core_step_seconds", milliseconds),
                Column.range("range", "core_step_seconds", milliseconds),
                Column.median("overhead, ms", "overhead_seconds", milliseconds),
            ],
            [
                turns_note(predict, "ms of a call, one env"),
                "overhead: predict less core.step on the same state",
            ],
        ),
    ]
