"""`ctrl bench export`: a step of a whole policy in onnxruntime, beside our own acting path.

Both take observations from numpy and give actions to numpy, with the state kept from step to step: ours in place, that
of the graph as arrays that are passed on. All slots are full, and episodes have different ages.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from ctrl.agents.export.checking import open_graph
from ctrl.agents.export.graph import PolicyGraph
from ctrl.agents.export.writing import export_policy, require
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.policy.policy_data import policy_leaves
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
from ctrl.experiments.bench.options import Integers, TorchOptions, require_numbers
from ctrl.experiments.bench.subjects.agents import (
    DEFAULT,
    PAPER,
    make_cartpole,
    matched_config,
    memory_config,
    target_of,
)
from ctrl.experiments.bench.subjects.cores import WARM_UP, warm_state
from ctrl.experiments.errors import UserError, require_at_least
from ctrl.experiments.runs.build import build_model

AGENTS = (DEFAULT, PAPER, "lstm")
OURS, ONNX = "torch", "onnxruntime"

Step = Callable[[], object]


@dataclass(frozen=True)
class Options(TorchOptions):
    """Time of a step of whole policies in onnxruntime, beside our own acting path."""

    repeats: int = 5
    """Number of turns; median and range over the turns are reported."""
    batch_sizes: Integers = (1, 16, 64)
    """Numbers of envs that act together; each is measured."""
    steps: int = 200
    """Number of timed steps in a turn, after some that are not timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_numbers(self, "batch_sizes")
        require_at_least(1, self, "steps")


def policy_of(name: str) -> MemoryPolicy:
    """Build the policy of an agent of `AGENTS`, for CartPole without velocities."""
    with closing(make_cartpole(1)) as env:
        config = memory_config(name)
        if name == "lstm":
            config = matched_config(config, env, target_of(PAPER, env))
        policy = build_model(config, env).policy
    policy.set_training_mode(False)
    return policy


def acting_step(policy: MemoryPolicy, batch_size: int) -> Step:
    """Return a step of our own acting path."""
    actor = policy.actor(policy.initial_state(batch_size)._replace(core=warm_state(policy.core, batch_size)))
    observation, reset = np.zeros((batch_size, 2), dtype=np.float32), torch.zeros(batch_size, dtype=torch.bool)

    def step() -> np.ndarray:
        return policy.env_actions(actor.act(torch.from_numpy(observation), reset, deterministic=True).actions)

    return step


def graph_step(policy: MemoryPolicy, path: Path, batch_size: int, threads: int) -> Step:
    """Return a step of the exported graph."""
    run, graph = open_graph(path, "onnx", threads=threads), PolicyGraph(policy)
    state = policy.initial_state(batch_size)._replace(core=warm_state(policy.core, batch_size))
    leaves = dict(zip(graph.names, policy_leaves(state), strict=True))
    kept = {f"state_{name}": leaves[name].numpy() for name, _ in graph.leaves}
    observation, reset = np.zeros((batch_size, 2), dtype=np.float32), np.zeros(batch_size, dtype=bool)

    def step() -> np.ndarray:
        found = run({"observation": observation, "reset": reset, **kept})
        kept.update({f"state_{name}": found[f"next_state_{name}"] for name, _ in graph.leaves})
        return found["action"]

    return step


def step_turn(make: Callable[[], Step], steps: int) -> Turn:
    """Time steps from a fresh warm state."""
    return {"seconds_per_step": seconds_per_call(make(), steps, WARM_UP)}


def run(options: Options, console: Console) -> Row:
    """Export the policies, and time both ways in turns at each batch size."""
    try:
        require("onnx", "onnxscript", "onnxruntime")
    except ModuleNotFoundError as error:
        raise UserError(str(error)) from error
    threads, rows = options.threads or 1, list[Row]()
    policies = {name: policy_of(name) for name in AGENTS}
    with tempfile.TemporaryDirectory() as folder:
        for name, policy in policies.items():
            console.print(f"exporting {name}")
            export_policy(policy, Path(folder) / f"{name}.onnx")
        for name, policy in policies.items():
            for size in options.batch_sizes:
                console.print(f"{name}, batch {size}")
                ways = {
                    OURS: partial(acting_step, policy, size),
                    ONNX: partial(graph_step, policy, Path(folder) / f"{name}.onnx", size, threads),
                }
                cases = [
                    Case(way, {"agent": name, "way": way, "batch_size": size}, partial(step_turn, make, options.steps))
                    for way, make in ways.items()
                ]
                rows += measure(cases, options.repeats, console, {"ratio": OURS})
    return {"sizes": {"steps": options.steps, "warm_up": WARM_UP, "seed": SEED}, "reference": OURS, "steps": rows}


def tables(report: Row) -> list[Table]:
    """List the table of steps."""
    steps = report["steps"]
    return [
        Table(
            "one step of a whole policy, all slots full, episodes of different ages",
            steps,
            [
                Column.text("agent", "agent"),
                Column.text("by", "way"),
                Column.count("batch", "batch_size"),
                Column.median("ms a step", "seconds_per_step", milliseconds),
                Column.range("range", "seconds_per_step", milliseconds),
                Column.ratio("ratio", "ratio"),
            ],
            [
                turns_note(steps, "ms of one step of all envs"),
                f"ratio of ms to {OURS}, our acting path; above 1 is slower",
            ],
        )
    ]
