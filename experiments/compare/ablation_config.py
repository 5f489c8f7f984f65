"""Options of `ctrl ablate` and its default settings, all of which are here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from ctrl.experiments.errors import flag, require, require_at_least, require_distinct, unknown
from ctrl.experiments.options import (
    MemoryOptions,
    Out,
    PPOOptions,
    RunOptions,
    Switch,
    TaskOptions,
    open_option,
    require_cores,
)

LOSSES = ("attention_reconstruction", "auto_encoding", "task")
"""Losses that can train a learned compressor; `task` is the task loss, without a reconstruction loss."""


@dataclass(frozen=True)
class Variant:
    """Compressor, and the loss that trains it."""

    compressor: str
    loss: str
    """One of `LOSSES`, or `none`."""
    paper: float | None = None
    """Bits per character on Enwik8 in the paper, lower is better (Rae et al. 2020, arXiv 1911.05507, section 5.2)."""

    @property
    def name(self) -> str:
        """Name of the variant, as `--variants` takes it."""
        return f"{self.compressor}+{self.loss}"

    def memory(self, options: MemoryOptions) -> MemoryOptions:
        """Return memory options with this compressor and loss."""
        if self.loss == "task":
            return replace(options, compressor=self.compressor, reconstruction="none", compression_gradient="task")
        return replace(
            options, compressor=self.compressor, reconstruction=self.loss, compression_gradient="reconstruction"
        )


VARIANTS = (
    Variant("conv", "attention_reconstruction", paper=0.973),
    Variant("conv", "auto_encoding", paper=0.984),
    Variant("conv", "task", paper=0.996),
    Variant("dilated_conv", "attention_reconstruction", paper=0.977),
    Variant("dilated_conv", "auto_encoding"),
    Variant("dilated_conv", "task"),
    *(Variant(compressor, loss) for compressor in ("gru", "attention", "select") for loss in LOSSES),
    Variant("select", "none"),  # other learned compressors start as the mean, so without a loss they equal `mean`
    Variant("surprise", "none"),
    Variant("most_missed", "none"),
    Variant("most_used", "none", paper=0.980),
    Variant("mean", "none", paper=0.982),
    Variant("max", "none", paper=0.986),
)
REFERENCE = VARIANTS[0]
"""Variant that the paper chose; the cost of a step is given as a multiple of its cost."""

LENGTH = 24
"""Steps from cue to query.

They are three times as many as the raw memory holds, so the answer must come from a compressed slot. They are less than
half of the steps of an env in an update, so that the task loss can reach the compressors: in most windows with a query,
its cue was compressed too.
"""
MEMORY = "8,8x4"
"""8 raw slots and 8 slots of 4 steps: 40 steps of reach. A cue is one of the 4 steps that its slot stands for."""
TASK = TaskOptions(env_kwargs=(f"length={LENGTH}", "num_cues=4"), num_envs=32)
RUN = RunOptions(steps=180_000, eval_episodes=200)
PPO = PPOOptions(n_steps=64, gamma=0.9)
CORE = "compressive"
"""Core of all variants."""


@dataclass(frozen=True)
class AblateConfig:
    """Train every compressor with every loss that it can learn from, on one task with several seeds.

    The default task is ctrl/Recall-v0 with length=24 and num_cues=4.
    """

    variants: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="(default: all)")] = ()
    """Variants to train, such as `conv+attention_reconstruction mean+none`."""
    seeds: int = 3
    """Number of runs of each variant, with seeds 0, 1, 2 …"""
    jobs: Annotated[int | None, open_option("one for each CPU core")] = None
    """Number of runs at the same time, each in a process of its own."""
    out: Out = None
    """Folder for the results."""
    overwrite: Switch = False
    """Replace the results that --out holds already."""
    resume: Switch = False
    """Keep the finished runs in --out and train the others."""
    table: Annotated[Path | None, open_option("train", "FILE")] = None
    """Print the table of this summary.json of an earlier ablation, and train nothing."""
    markdown: Switch = False
    """Print the table of --table as markdown."""
    task: TaskOptions = field(default_factory=lambda: TASK)
    run: RunOptions = field(default_factory=lambda: RUN)
    memory: MemoryOptions = field(default_factory=lambda: MemoryOptions(memory=MEMORY, layers=1))
    ppo: PPOOptions = field(default_factory=lambda: PPO)

    def __post_init__(self) -> None:
        require_at_least(1, self, "seeds", "jobs")
        require_distinct(self, "variants")
        require(not (self.resume and self.overwrite), "--resume keeps what --overwrite removes; give one of them")
        require(not self.resume or self.out is not None, "--resume needs the folder to go on in; name it with --out")
        require(self.table is not None or not self.markdown, "--markdown needs --table FILE")
        require_cores((CORE,), self.memory, self.ppo)
        for name in ("compressor", "reconstruction", "compression_gradient"):
            value = getattr(self.memory, name)
            require(value is None, f"{flag(name)} is what --variants chooses, got {value!r}")
        _ = self.chosen

    @property
    def chosen(self) -> tuple[Variant, ...]:
        """Variants to train, in the order in which they were named."""
        by_name = {variant.name: variant for variant in VARIANTS}
        for name in self.variants:
            if name not in by_name:
                raise unknown("variant", name, by_name, show=len(by_name))
        return tuple(by_name[name] for name in self.variants) or VARIANTS
