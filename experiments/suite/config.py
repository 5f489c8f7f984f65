"""Options of `ctrl suite`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ctrl.experiments.errors import require, require_at_least, require_distinct
from ctrl.experiments.options import RECURRENT_CORES, MemoryOptions, PPOOptions, Switch, open_option, require_cores

RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates that a recurrent core is tried with on each task."""
TUNED = RECURRENT_CORES
"""Cores with the best of `RATES` and as many parameters as ours; the others have one learning rate for all tasks."""
REFERENCE = "compressive"
"""Core whose number of parameters the tuned ones must reach."""
SETTINGS = ("tune", "steps_scale", "num_envs", "eval_episodes", "device", "memory", "ppo")
"""Options that all results in a folder share."""


@dataclass(frozen=True)
class SuiteConfig:
    """Train our default core and its rivals on all memory tasks with several seeds; write one JSON file and one table.

    If it is started again with the same --out, it continues where it was stopped.
    """

    tasks: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="(default: all)")] = ()
    """Tasks to train on, such as `recall-250 copy-4-8`."""
    cores: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = (
        *(REFERENCE, "transformer_xl", "lstm", "gru"),
    )
    """Memories to compare: compressive, transformer_xl, gtrxl, lstm, gru, mingru, feedforward."""
    seeds: int = 3
    """Number of runs of each core on each task, with seeds 0, 1, 2 …"""
    jobs: Annotated[int | None, open_option("one for each CPU core")] = None
    """Number of runs at the same time, each in a process of its own with one thread."""
    tune: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: --tune)")] = True
    """Choose one of three learning rates for lstm, gru and mingru on each task by seed 0, or use --learning-rate."""
    steps_scale: float = 1.0
    """Factor on the training steps of each task; below 1 for a short trial."""
    num_envs: int = 64
    """Number of copies of a task that are stepped together."""
    eval_episodes: int = 100
    """Held-out episodes (seeds that training never uses) of the evaluation after training."""
    device: str = "auto"
    """Device of the agents: cpu, cuda or auto."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("results/suite")
    """Folder for the results; finished runs in it are kept."""
    overwrite: Switch = False
    """Remove the results that --out holds, and start anew."""
    known: Annotated[Path | None, open_option("none", "FILE")] = None
    """File suite.json of another suite with the same code and options; its runs are taken over and not repeated."""
    table: Annotated[Path | None, open_option("train", "DIR")] = None
    """Show the tables of this folder, or of this suite.json, and train nothing."""
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    ppo: PPOOptions = field(default_factory=PPOOptions)

    def __post_init__(self) -> None:
        require_distinct(self, "tasks")
        require_distinct(self, "cores")
        require(bool(self.cores), "--cores must name at least one core")
        require_cores((*self.cores, REFERENCE), self.memory, self.ppo)
        require_at_least(1, self, "seeds", "jobs", "num_envs", "eval_episodes")
        require(0 < self.steps_scale <= 1000, f"--steps-scale must be above 0 and at most 1000, got {self.steps_scale}")

    def rates(self, core: str) -> tuple[float, ...]:
        """Return the learning rates that a core is tried with."""
        return RATES if self.tune and core in TUNED else (self.ppo.learning_rate,)

    @property
    def settings(self) -> dict[str, Any]:
        """Options that all results in a folder share, as plain data."""
        return {name: value for name, value in asdict(self).items() if name in SETTINGS}
