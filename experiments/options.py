"""Groups of command line options that several commands share, with their checks."""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from ctrl.experiments.errors import UserError, flag, require, require_at_least, unknown
from ctrl.experiments.plain_data import build, shown

RAW_CORES = ("transformer_xl", "gtrxl")
"""Cores with attention but without compression."""
COMPRESSIVE_CORES = ("compressive",)
ATTENTION_CORES = (*COMPRESSIVE_CORES, *RAW_CORES)
RECURRENT_CORES = ("lstm", "gru", "mingru")

SEEDS_PER_RUN = 10_000
"""Number of task seeds reserved for a run, one for each copy of the task."""

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""Option that is off unless its flag is given; a plain `bool` has a second flag to switch it off."""
KeyValues = Annotated[tuple[str, ...], tyro.conf.arg(metavar="[KEY=VALUE ...]", help_behavior_hint="(default: none)")]


def open_option(default: str, metavar: str | None = "INT", text: str | None = None) -> object:
    """Return the annotation of an option that may be left open; `--help` then shows `default` instead of `None`.

    :param default: the default, in words
    :param metavar: placeholder for the option's value; None for a flag
    :param text: help text, if it is too long for one line below the field: tyro keeps the line breaks of a docstring
    """
    return tyro.conf.arg(metavar=metavar, help=text, help_behavior_hint=f"(default: {default})")


Out = Annotated[Path | None, open_option("a new numbered folder in runs/", "DIR")]


def parse_pairs(pairs: tuple[str, ...], argument: str) -> dict[str, Any]:
    """Parse `("length=64", "name=abc")` into `{"length": 64, "name": "abc"}`; values are Python literals or text."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        require(bool(separator) and key.isidentifier(), f"{argument} takes key=value pairs, got {pair!r}")
        require(key not in parsed, f"{argument} names {key!r} twice")
        try:
            parsed[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: nested too deeply
            parsed[key] = text
    return parsed


def merge_pairs(pairs: tuple[str, ...], changes: tuple[str, ...]) -> tuple[str, ...]:
    """Return `pairs` with the values of `changes`; keys that only `changes` has come last."""
    by_key = {pair.partition("=")[0]: pair for pair in (*pairs, *changes)}
    return tuple(by_key.values())


def parse_memory(text: str) -> list[tuple[int, int]]:
    """Parse `"32,32x4"` into `[(32, 1), (32, 4)]`: slots and rate of each tier, the raw memory first."""
    tiers = []
    for position, part in enumerate(text.split(",")):
        match = re.fullmatch(r"\s*(\d+)\s*(?:x\s*(\d+)\s*)?", part)
        if match is None:
            raise UserError(f"--memory is SLOTS[,SLOTSxRATE ...] such as 32,32x4, got {text!r} (at {part!r})")
        slots, rate = int(match[1]), int(match[2] or 1)
        require(slots >= 1 and rate >= 1, f"--memory: slots and rates must be at least 1, got {part.strip()!r}")
        require(position > 0 or rate == 1, f"--memory: the first tier is raw, it takes no rate, got {part.strip()!r}")
        tiers.append((slots, rate))
    for (slots, _), (_, rate) in itertools.pairwise(tiers):
        require(slots >= rate, f"--memory: a tier of {slots} slots is too small to be merged {rate} at a time")
    return tiers


@dataclass(frozen=True)
class TaskOptions:
    """Task, its arguments and the number of its copies."""

    env: Annotated[str, tyro.conf.arg(metavar="ID")] = "ctrl/Recall-v0"
    """Gymnasium id of the task; `ctrl envs` lists memory tasks. `my_package:My-v0` imports my_package first."""
    env_kwargs: KeyValues = ()
    """Arguments of the task, such as `length=64 num_cues=4`."""
    num_envs: int = 64
    """Number of copies of the task that are stepped together."""

    def __post_init__(self) -> None:
        require(bool(self.env), "--env must not be empty")
        require_at_least(1, self, "num_envs")
        require(
            self.num_envs <= SEEDS_PER_RUN,
            f"--num-envs must be at most {SEEDS_PER_RUN:,}, got {self.num_envs:,}: with more copies, runs "
            "with different --seed would share task seeds",
        )
        _ = self.env_arguments

    @property
    def env_arguments(self) -> dict[str, Any]:
        """Keyword arguments of the task."""
        return parse_pairs(self.env_kwargs, "--env-kwargs")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TaskOptions:
        """Rebuild the options from plain data.

        :raises UserError: if it is something else
        """
        return build(cls, data, "task")

    @property
    def title(self) -> str:
        """Id of the task, with its arguments."""
        return f"{self.env} ({', '.join(self.env_kwargs)})" if self.env_kwargs else self.env


DEFAULT_TIERS = "64,8x8,8x8,8x8"


_MEMORY_HELP = (
    "Memory of each attention layer. 32,32x4 is 32 slots of one step each, then 32 slots that hold 4 merged ones each: "
    "32 + 32·4 = 160 steps of reach. More tiers may follow: the default reaches 64 + 8·8 + 8·64 + 8·512 = 4,736 steps. "
    "A core without compression (transformer_xl, gtrxl) gets the same number of slots, all raw."
)
_COMPRESSOR_HELP = (
    "Compressor: it turns the slots of a block into one. surprise is their mean, weighted by how unusual they are; "
    "most_missed, most_used and select keep one of them; conv, dilated_conv, gru and attention are learned; mean, max."
)


@dataclass(frozen=True)
class MemoryOptions:
    """Size and structure of the memory. An option that the core does not have is refused.

    With several cores, an option applies to those that have it, and is refused if none has it.
    """

    width: Annotated[int | None, open_option("64 with attention, 128 otherwise")] = None
    """Number of features of a layer."""
    layers: Annotated[int | None, open_option("1")] = None
    """Number of layers of the core."""
    heads: Annotated[int | None, open_option("4")] = None
    """Number of attention heads of a layer; must divide the width."""
    memory: Annotated[
        str | None, tyro.conf.arg(metavar="TIERS", help=_MEMORY_HELP, help_behavior_hint=f"(default: {DEFAULT_TIERS})")
    ] = None
    compressor: Annotated[str | None, open_option("surprise", "NAME", _COMPRESSOR_HELP)] = None
    reconstruction: Annotated[str | None, open_option("attention_reconstruction, where it trains", "LOSS")] = None
    """Loss that trains the compressors: attention_reconstruction, auto_encoding or none."""
    compression_gradient: Annotated[str | None, open_option("reconstruction", "reconstruction|task")] = None
    """Gradient that trains the compressors: of the reconstruction loss, or of the task loss instead."""
    residual: Annotated[str | None, open_option("plain", "plain|pre_norm|gated|post_norm")] = None
    """Way to join a layer's attention output to its input; plain is a sum, without a feed-forward part."""
    forgetting: Annotated[bool | None, tyro.conf.DisallowNone, open_option("--forgetting", None)] = None
    """Let a quarter of the heads have a forget gate, which learns when to shut out all older steps."""
    clock: Annotated[bool | None, tyro.conf.DisallowNone, open_option("--clock", None)] = None
    """Let a quarter of the heads, and the output, know the number of the step in its episode."""
    novelty_gain: Annotated[float | None, open_option("4.0 with surprise and most_missed", "FLOAT")] = None
    """Gain g of novel slots: keys and values of a slot of novelty n are multiplied by 1 + g n. Unless 0, a
    quarter of the heads begins with novel slots."""
    chrono_horizon: Annotated[int | None, open_option("128")] = None
    """Steps that an LSTM, GRU or minGRU is initialised to remember."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "width", "layers", "heads")
        require_at_least(2, self, "chrono_horizon")
        gain = self.novelty_gain
        require(gain is None or 0 <= gain < math.inf, f"--novelty-gain must be a number, at least 0, got {gain}")
        _ = self.tiers

    @property
    def of_some_cores(self) -> list[str]:
        """Names of the options that are given."""
        return [name for name, value in asdict(self).items() if value is not None]

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MemoryOptions:
        """Rebuild the options from plain data.

        :raises UserError: if an option is given that no longer exists, or a value is of another kind
        """
        require(isinstance(data, dict), f"memory must be a table, got {shown(data)}")
        names = {field.name for field in fields(cls)}
        gone = [name for name, value in data.items() if name not in names and value is not None]
        require(not gone, f"the run was made with {_flags(gone)}, which this version does not have")
        return build(cls, {name: value for name, value in data.items() if name in names}, "memory")

    @property
    def tiers(self) -> list[tuple[int, int]]:
        """Slots and rate of each tier, the raw memory first."""
        return parse_memory(self.memory or DEFAULT_TIERS)


_REFRESH_HELP = (
    "Steps before a window over which its first state is computed anew with the weights that learn; recompute stands "
    "for as many as --n-steps."
)


@dataclass(frozen=True)
class PPOOptions:
    """Options of PPO, with the names and meanings of stable-baselines3; IMPALA shares some of them."""

    learning_rate: float = 1e-3
    """Learning rate of Adam for all parameters but the compressors'."""
    anneal: Annotated[bool, tyro.conf.arg(help_behavior_hint="(default: --anneal)")] = True
    """Let the learning rate fall linearly to 0 over the run, or keep it as it is."""
    memory_learning_rate: Annotated[float | None, open_option("0.005", "FLOAT")] = None
    """Learning rate of Adam for the compressors."""
    n_steps: int = 64
    """Steps of each env between two updates."""
    window: Annotated[int | None, open_option("all of --n-steps")] = None
    """Steps of a window, which gradients flow through; must divide --n-steps."""
    refresh: Annotated[str | None, open_option("none", "none|recompute|STEPS", _REFRESH_HELP)] = None
    batch_size: Annotated[int | None, open_option("ppo a quarter of the update's steps, impala all of them")] = None
    """Steps of a minibatch, with IMPALA of one backward pass; a multiple of the window."""
    n_epochs: Annotated[int | None, open_option("4")] = None
    """Number of passes over the data of each update."""
    gamma: float = 0.99
    """Discount factor of a reward, for each step that it comes later."""
    gae_lambda: Annotated[float | None, open_option("0.9", "FLOAT")] = None
    """Lambda of the advantage estimate (GAE), from 0 (trust the values) to 1 (use whole returns)."""
    clip_range: Annotated[float | None, open_option("0.2", "FLOAT")] = None
    """Limit on the change of an action's probability in one update, as a fraction."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus."""
    vf_coef: Annotated[float | None, open_option("ppo 0.1, impala 0.5", "FLOAT")] = None
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Clip of the gradient norm of all parameters but the compressors'."""
    memory_max_grad_norm: Annotated[float | None, open_option("0.1", "FLOAT")] = None
    """Clip of the gradient norm of the compressors."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            finite = value is None or isinstance(value, str) or math.isfinite(value)
            require(finite, f"{flag(name)} must be finite, got {value}")
        require_at_least(0, self, "ent_coef", "vf_coef")
        positive = ("learning_rate", "memory_learning_rate", "n_steps", "n_epochs", "clip_range", "batch_size")
        for name in (*positive, "max_grad_norm", "memory_max_grad_norm"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{flag(name)} must be above 0, got {value}")
        for name in ("gamma", "gae_lambda"):
            value = getattr(self, name)
            require(value is None or 0 <= value <= 1, f"{flag(name)} must be between 0 and 1, got {value}")
        window, n_steps = self.window, self.n_steps
        fits = window is None or (window >= 1 and n_steps % window == 0)
        require(fits, f"--window must divide --n-steps, got {window} and {n_steps}")
        if self.refresh not in (None, "none", "recompute"):
            fits = self.refresh.isdecimal() and 1 <= int(self.refresh) <= n_steps
            require(fits, f"--refresh is none, recompute or from 1 step to --n-steps = {n_steps}, got {self.refresh!r}")

    @property
    def of_ppo_alone(self) -> list[str]:
        """Names of the given options that only PPO has."""
        return [name for name in PPO_ALONE if getattr(self, name) is not None]

    @property
    def of_some_cores(self) -> list[str]:
        """Names of the given options that only some cores have."""
        return [name for name in ("memory_learning_rate", "memory_max_grad_norm") if getattr(self, name) is not None]

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of `MemoryPPO`, without the options that were left open."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        del given["anneal"]  # `ctrl.experiments.runs.build.arguments` makes a schedule of it
        if self.refresh is not None and self.refresh.isdecimal():
            given["refresh"] = int(self.refresh)
        return given


PPO_ALONE = ("window", "refresh", "n_epochs", "gae_lambda", "clip_range")


ALGORITHMS = ("ppo", "impala")


@dataclass(frozen=True)
class ImpalaOptions:
    """Options of `--algorithm impala`, beside those that it shares with PPO; --n-steps is the length of a window."""

    num_actors: Annotated[int | None, open_option("2")] = None
    """Number of actor processes, each with --num-envs copies of the task; with 0, the learner acts itself."""
    windows_per_update: Annotated[int | None, open_option("1")] = None
    """Number of windows that an update learns from, each of all copies of one actor."""
    vtrace_lambda: Annotated[float | None, open_option("1.0", "FLOAT")] = None
    """Lambda of V-trace, from 0 (trust the values) to 1 (use whole returns)."""
    rho_bar: Annotated[float | None, open_option("1.0", "FLOAT")] = None
    """Clip of the importance weights of temporal differences and of the policy gradient."""
    c_bar: Annotated[float | None, open_option("1.0", "FLOAT")] = None
    """Clip of the importance weights that carry later temporal differences back to earlier steps."""
    reward_clipping: Annotated[str | None, open_option("none", "abs_one|soft_asymmetric")] = None
    """Clipping of the rewards before learning."""
    use_rms_prop: Switch = False
    """Use RMSProp instead of Adam, for all parameters but the compressors'."""
    actor_timeout: Annotated[float | None, open_option("60", "SECONDS")] = None
    """Seconds that a step of an actor's copies may take before the actor counts as hung."""
    max_restarts: Annotated[int | None, open_option("5")] = None
    """Number of restarts of actors that died, hung or raised an error, all actors together."""

    @property
    def given(self) -> dict[str, Any]:
        """Keyword arguments of `MemoryImpala`, without the options that were left open."""
        return {name: value for name, value in asdict(self).items() if value is not None and value is not False}

    def processes(self, algorithm: str) -> int:
        """Return the number of processes that a run keeps busy: the learner and its actors."""
        if algorithm == "ppo":
            return 1
        return 1 + (2 if self.num_actors is None else self.num_actors)

    def check(self, algorithm: str, ppo: PPOOptions) -> None:
        """Raise a `UserError` for options that the algorithm does not have."""
        require(algorithm in ALGORITHMS, f"--algorithm is one of {', '.join(ALGORITHMS)}, got {algorithm!r}")
        alien = list(self.given) if algorithm == "ppo" else ppo.of_ppo_alone
        other = "impala" if algorithm == "ppo" else "ppo"
        require(not alien, f"--algorithm {algorithm} has no {_flags(alien)}; --algorithm {other} does")


def _flags(names: list[str]) -> str:
    return ", ".join(map(flag, names))


_EVAL_HELP = (
    "Env steps between two evaluations during training. Each plays 32 episodes, or fewer where they are long, with the "
    "likeliest actions, and changes nothing in training. 0: evaluate after training alone."
)


MOST_THREADS = 1024


@dataclass(frozen=True)
class RunOptions:
    """Length of training, evaluations and checkpoints, and the device."""

    steps: int = 300_000
    """Env steps to train for, all copies together; rounded up to whole updates."""
    eval_episodes: int = 100
    """Held-out episodes (seeds that training never uses) of the evaluation after training; 0 skips all evaluations."""
    eval_every: Annotated[int | None, open_option("a tenth of --steps", text=_EVAL_HELP)] = None
    checkpoint_every: Annotated[int | None, open_option("a tenth of --steps")] = None
    """Env steps between two checkpoints."""
    keep_checkpoints: int = 5
    """Number of the newest checkpoints that are kept, beside the best one."""
    device: str = "auto"
    """Device of the agent: cpu, cuda or auto."""
    threads: Annotated[int | None, open_option("train: torch's own, else 1 a process")] = None
    """Number of CPU threads that torch may use."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "steps", "checkpoint_every", "keep_checkpoints", "threads")
        require((self.threads or 1) <= MOST_THREADS, f"--threads must be at most {MOST_THREADS}, got {self.threads}")
        require_at_least(0, self, "eval_episodes", "eval_every")

    @property
    def checkpoint_interval(self) -> int:
        """Env steps between two checkpoints."""
        return self.checkpoint_every or self._tenth

    @property
    def evaluation_interval(self) -> int | None:
        """Env steps between two evaluations during training; None if there are none."""
        if self.eval_episodes == 0 or self.eval_every == 0:
            return None
        return self.eval_every or self._tenth

    @property
    def _tenth(self) -> int:
        return max(1, self.steps // 10)


def require_cores(names: Sequence[str], memory: MemoryOptions, ppo: PPOOptions) -> None:
    """Raise a `UserError` unless `names` are cores and at least one of them has each option that is given."""
    from ctrl.experiments.runs.core_options import check_options

    for name in names:
        require_core(name)
    check_options(names, memory, ppo)


def require_core(name: str) -> None:
    """Raise a `UserError` that lists the cores unless `name` is one of them."""
    import ctrl

    if name not in ctrl.core_names():
        raise unknown("core", name, ctrl.core_names())
