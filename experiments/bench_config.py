"""What can be asked of `ctrl bench`: one frozen dataclass for each thing that is measured; see `config`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import tyro

from ctrl.experiments.config import Switch, open_option, require_core
from ctrl.experiments.errors import require, unknown

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
"""What `ctrl bench train` compares: MemoryPPO by its core, and the PPOs of others."""
MODELS = ("compressive", "compressive_long", "lstm", "package")
"""What `ctrl bench unroll` compares; "long" has the memory that the package asks for."""

MINIBATCHES = 4
"""Of each epoch of training, at every number of envs."""

Name = TypeVar("Name", int, str)
Integers = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT [INT ...]")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")]


def require_distinct(option: str, values: tuple[Name, ...]) -> None:
    """Raise a `UserError` unless `values` are some, and none comes twice."""
    require(bool(values), f"{option} must name at least one")
    listed = " ".join(map(str, values))
    require(len(set(values)) == len(values), f"{option} names one twice: {listed}")


def require_counts(option: str, values: tuple[int, ...], *, least: int = 1) -> None:
    """Raise a `UserError` unless `values` are distinct numbers of at least `least`."""
    require_distinct(option, values)
    for value in values:
        require(value >= least, f"{option} must be at least {least}, got {value}")


def require_num_envs(values: tuple[int, ...]) -> None:
    """Raise a `UserError` unless a minibatch of windows can be a quarter of all envs."""
    require_counts("--num-envs", values)
    for value in values:
        require(value % MINIBATCHES == 0, f"--num-envs must be multiples of {MINIBATCHES}, got {value}")


@dataclass(frozen=True)
class BenchOptions:
    """What all benchmarks have."""

    repeats: int = 3
    """Turns of each of those compared; median and range are reported."""
    out: Annotated[Path | None, open_option("printed only", "FILE")] = None
    """JSON file for the results."""
    overwrite: Switch = False
    """Replace the file that --out names."""

    def __post_init__(self) -> None:
        require_counts("--repeats", (self.repeats,))


@dataclass(frozen=True)
class TorchBench(BenchOptions):
    """What benchmarks of networks have."""

    threads: Annotated[int | None, open_option("torch's own")] = None
    """CPU threads that torch may use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.threads is None or self.threads >= 1, f"--threads must be at least 1, got {self.threads}")


@dataclass(frozen=True)
class BenchTrain(TorchBench):
    """Training speed of MemoryPPO beside stable-baselines3's PPO and sb3-contrib's RecurrentPPO."""

    num_envs: Integers = (8,)
    """Copies of the task that are stepped together; each number is measured."""
    agents: Names = AGENTS
    """Agents to measure: MemoryPPO by the name of its core; recurrent_ppo; matched_ppo and default_ppo (no memory)."""
    updates: int = 4
    """Timed updates of a turn, after one that is not timed."""

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
    """Our native vector envs beside gymnasium's SyncVectorEnv of the same task."""

    num_envs: int = 256
    """Copies of a task that are stepped together."""
    tasks: Annotated[tuple[str, ...], open_option("all of ours", "[ID ...]")] = ()
    """Tasks to measure."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts("--num-envs", (self.num_envs,))


@dataclass(frozen=True)
class BenchAct(TorchBench):
    """How long one acting step takes, beside torch.nn.LSTM, and what `predict` adds to it."""

    repeats: int = 5
    """Turns of each of those compared; median and range are reported."""
    batch_sizes: Integers = (1, 16, 64, 256)
    """Envs that act together; each number is measured."""
    steps: int = 400
    """Timed steps of a turn, after some that are not timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts("--batch-sizes", self.batch_sizes)
        require_counts("--steps", (self.steps,))


@dataclass(frozen=True)
class BenchUnroll(TorchBench):
    """Forward and backward of a window, beside torch.nn.LSTM, a published package, and the matrix-product peak."""

    lengths: Integers = (32, 128, 512, 2048)
    """Steps of a window; each number is measured."""
    widths: Integers = (64, 256, 512)
    """Features of a layer; each number is measured."""
    models: Names = MODELS
    """Models to measure; package is compressive-transformer-pytorch, compressive_long has its memory."""
    tokens: int = 4096
    """Steps of all windows of a batch together; a batch has at least one window."""

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
    """Return the attention heads at a width in `ctrl bench unroll`."""
    return 4 if width <= 64 else 8


@dataclass(frozen=True)
class BenchScale(TorchBench):
    """What a long episode, more slots, envs and layers cost in time and in bytes."""

    episode_steps: int = 1_000_000
    """Steps of the long episode, in one env; a multiple of 10."""
    steps: int = 200
    """Timed steps of a turn when slots, envs or layers vary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_counts("--steps", (self.steps,))
        steps = self.episode_steps
        require(steps >= 10 and steps % 10 == 0, f"--episode-steps must be a multiple of 10, got {steps}")


@dataclass(frozen=True)
class BenchProfile(TorchBench):
    """Where the time of an update of MemoryPPO goes, by phase."""

    num_envs: Integers = (8, 64)
    """Copies of the task that are stepped together; each number is measured."""
    cores: Names = ("compressive",)
    """Memories to measure: compressive, transformer_xl, gtrxl, lstm, gru, mingru, feedforward."""
    updates: int = 4
    """Timed updates of a turn, after one that is not timed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_num_envs(self.num_envs)
        require_counts("--updates", (self.updates,))
        require_distinct("--cores", self.cores)
        for core in self.cores:
            require_core(core)


IMPALA_AGENTS = ("impala_compressive", "impala_lstm", "ppo_compressive", "ppo_lstm", "rllib_lstm")
"""What `ctrl bench impala` compares: algorithm and memory."""


@dataclass(frozen=True)
class BenchImpala(TorchBench):
    """Training speed of MemoryImpala beside MemoryPPO and RLlib's IMPALA with its LSTM, on all cores."""

    actors: int = 2
    """Processes that act, of MemoryImpala and of RLlib."""
    num_envs: int = 8
    """Copies of the task in each of them; MemoryPPO steps all of them together."""
    agents: Names = IMPALA_AGENTS[:-1]
    """Agents to measure: impala_compressive, impala_lstm, ppo_compressive, ppo_lstm, and with --rllib rllib_lstm."""
    rllib: Annotated[Path | None, open_option("leave RLlib out", "PYTHON")] = None
    """The Python of an environment of its own, where RLlib is installed: pip install "ray[rllib]==2.60.0" torch."""
    seconds: float = 20.0
    """Timed seconds of a turn, after some that are not timed."""

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
