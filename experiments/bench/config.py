"""Options of `ctrl bench`: one frozen dataclass for each benchmark; see `config`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from ctrl.experiments.errors import require, unknown
from ctrl.experiments.options import Switch, open_option, require_core

AGENTS = (
    "compressive",
    "transformer_xl",
    "gtrxl",
    "lstm",
    "gru",
    "mingru",
    "feedforward",
    "recurrent_ppo",
    "matched_ppo",
    "default_ppo",
)
"""Agents of `ctrl bench train`: MemoryPPO by the name of its core, and PPO of other packages."""
MODELS = ("compressive", "compressive_long", "lstm", "package")
"""Models of `ctrl bench unroll`; `compressive_long` has the memory that the package needs."""

MINIBATCHES = 4
"""Number of minibatches in each epoch of training, for every number of envs."""

Name = TypeVar("Name", int, str)
Integers = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT [INT ...]")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")]


def require_distinct(option: str, values: tuple[Name, ...]) -> None:
    """Raise a `UserError` if there are no `values`, or one comes twice."""
    require(bool(values), f"{option} must name at least one")
    listed = " ".join(map(str, values))
    require(len(set(values)) == len(values), f"{option} names one twice: {listed}")


def require_counts(option: str, values: tuple[int, ...], *, least: int = 1) -> None:
    """Raise a `UserError` unless `values` are distinct numbers of at least `least`."""
    require_distinct(option, values)
    for value in values:
        require(value >= least, f"{option} must be at least {least}, got {value}")


def require_num_envs(values: tuple[int, ...]) -> None:
    """Raise a `UserError` unless a minibatch can be the windows of a quarter of all envs."""
    require_counts("--num-envs", values)
    for value in values:
        require(value % MINIBATCHES == 0, f"--num-envs must be multiples of {MINIBATCHES}, got {value}")


@dataclass(frozen=True)
class BenchOptions:
    """Options of all benchmarks."""

    repeats: int = 3
    """Number of turns; median and range over the turns are reported."""
    out: Annotated[Path | None, open_option("printed only", "FILE")] = None
    """JSON file for the results."""
    overwrite: Switch = False
    """Replace the file that --out names."""

    def __post_init__(self) -> None:
        require_counts("--repeats", (self.repeats,))


@dataclass(frozen=True)
class TorchBench(BenchOptions):
    """Options of benchmarks that use torch."""

    threads: Annotated[int | None, open_option("torch's own")] = None
    """Number of CPU threads that torch may use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.threads is None or self.threads >= 1, f"--threads must be at least 1, got {self.threads}")


@dataclass(frozen=True)
class BenchTrain(TorchBench):
    """Training speed of MemoryPPO beside stable-baselines3's PPO and sb3-contrib's RecurrentPPO."""

    num_envs: Integers = (8,)
    """Numbers of copies of the task that are stepped together; each is measured."""
    agents: Names = AGENTS
    """Agents to measure: MemoryPPO by the name of its core; recurrent_ppo; matched_ppo and default_ppo (no memory)."""
    updates: int = 4
    """Number of timed updates in a turn, after one that is not timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_num_envs(self.num_envs)
        require_counts("--updates", (self.updates,))
        require_distinct("--agents", self.agents)
        for agent in self.agents:
            if agent not in AGENTS:
                raise unknown("agent", agent, AGENTS)


@dataclass(frozen=True)
class BenchEnvs(BenchOptions):
    """Speed of our native vector envs beside gymnasium's SyncVectorEnv of the same task."""

    num_envs: int = 256
    """Number of copies of a task that are stepped together."""
    tasks: Annotated[tuple[str, ...], open_option("all of ours", "[ID ...]")] = ()
    """Tasks to measure."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts("--num-envs", (self.num_envs,))


@dataclass(frozen=True)
class BenchAct(TorchBench):
    """Time of one acting step beside torch.nn.LSTM, and the time that `predict` adds to it."""

    repeats: int = 5
    """Number of turns; median and range over the turns are reported."""
    batch_sizes: Integers = (1, 16, 64, 256)
    """Numbers of envs that act together; each is measured."""
    steps: int = 400
    """Number of timed steps in a turn, after some that are not timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts("--batch-sizes", self.batch_sizes)
        require_counts("--steps", (self.steps,))


@dataclass(frozen=True)
class BenchUnroll(TorchBench):
    """Speed of forward and backward of a window, beside torch.nn.LSTM, a published package and the hardware's peak."""

    lengths: Integers = (32, 128, 512, 2048)
    """Numbers of steps of a window; each is measured."""
    widths: Integers = (64, 256, 512)
    """Numbers of features of a layer; each is measured."""
    models: Names = MODELS
    """Models to measure; package is compressive-transformer-pytorch, and compressive_long has as much memory."""
    tokens: int = 4096
    """Number of steps in all windows of a batch together; a batch has at least one window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts("--lengths", self.lengths, least=2)
        require_counts("--widths", self.widths)
        require_counts("--tokens", (self.tokens,))
        require_distinct("--models", self.models)
        for model in self.models:
            if model not in MODELS:
                raise unknown("model", model, MODELS)
        for width in self.widths:
            require(width % heads_of(width) == 0, f"--widths must be multiples of {heads_of(width)}, got {width}")


def heads_of(width: int) -> int:
    """Return the number of attention heads for a width in `ctrl bench unroll`."""
    return 4 if width <= 64 else 8


@dataclass(frozen=True)
class BenchScale(TorchBench):
    """Cost of a long episode, and of more slots, envs and layers, in time and in bytes."""

    episode_steps: int = 1_000_000
    """Number of steps of the long episode, in one env; a multiple of 10."""
    steps: int = 200
    """Number of timed steps in a turn, for each number of slots, envs or layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts("--steps", (self.steps,))
        steps = self.episode_steps
        require(steps >= 10 and steps % 10 == 0, f"--episode-steps must be a multiple of 10, got {steps}")


@dataclass(frozen=True)
class BenchProfile(TorchBench):
    """Time of an update of MemoryPPO by phase."""

    num_envs: Integers = (8, 64)
    """Numbers of copies of the task that are stepped together; each is measured."""
    cores: Names = ("compressive",)
    """Memories to measure: compressive, transformer_xl, gtrxl, lstm, gru, mingru, feedforward."""
    updates: int = 4
    """Number of timed updates in a turn, after one that is not timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_num_envs(self.num_envs)
        require_counts("--updates", (self.updates,))
        require_distinct("--cores", self.cores)
        for core in self.cores:
            require_core(core)


IMPALA_AGENTS = ("impala_compressive", "impala_lstm", "ppo_compressive", "ppo_lstm", "rllib_lstm")
"""Agents of `ctrl bench impala`: algorithm and core."""


@dataclass(frozen=True)
class BenchImpala(TorchBench):
    """Training speed of MemoryImpala beside MemoryPPO and RLlib's IMPALA with its LSTM, on all CPU cores."""

    actors: int = 2
    """Number of actor processes, of MemoryImpala and of RLlib."""
    num_envs: int = 8
    """Number of copies of the task in each actor process; MemoryPPO steps all of them together."""
    agents: Names = IMPALA_AGENTS[:-1]
    """Agents to measure: impala_compressive, impala_lstm, ppo_compressive, ppo_lstm, and with --rllib rllib_lstm."""
    rllib: Annotated[Path | None, open_option("leave RLlib out", "PYTHON")] = None
    """Python of a separate environment where RLlib is installed: pip install "ray[rllib]==2.60.0" torch."""
    seconds: float = 20.0
    """Number of timed seconds in a turn, after some that are not timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts("--actors", (self.actors,))
        require_num_envs((self.num_envs,))
        require(self.seconds > 0, f"--seconds must be above 0, got {self.seconds}")
        require_distinct("--agents", self.agents)
        for agent in self.agents:
            if agent not in IMPALA_AGENTS:
                raise unknown("agent", agent, IMPALA_AGENTS)
        asked = "rllib_lstm" in self.agents
        require(not asked or self.rllib is not None, "--agents rllib_lstm needs --rllib PYTHON")
        runs = self.rllib is None or shutil.which(self.rllib) is not None
        require(runs, f"--rllib must be a Python that can be run, got {self.rllib}")


AnyBench = BenchImpala | BenchTrain | BenchEnvs | BenchAct | BenchUnroll | BenchScale | BenchProfile


def _command(name: str) -> object:
    return tyro.conf.subcommand(name, prefix_name=False)


@dataclass(frozen=True)
class BenchConfig:
    """Measure training, envs, acting, unrolling, scaling, the phases of an update, or IMPALA."""

    what: (
        Annotated[BenchTrain, _command("train")]
        | Annotated[BenchEnvs, _command("envs")]
        | Annotated[BenchAct, _command("act")]
        | Annotated[BenchUnroll, _command("unroll")]
        | Annotated[BenchScale, _command("scale")]
        | Annotated[BenchProfile, _command("profile")]
        | Annotated[BenchImpala, _command("impala")]
    )
