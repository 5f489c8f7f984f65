"""Options that all benchmarks share, and the command line of `ctrl bench`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from ctrl.experiments.errors import flag, require, require_at_least, require_distinct, unknown
from ctrl.experiments.options import Switch, open_option

BENCHMARKS = ("train", "solve", "envs", "act", "export", "unroll", "scale", "profile", "impala")
"""Names of the benchmarks: modules of this folder, with the parts that `ctrl.experiments.bench.harness` lists."""

Integers = Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT [INT ...]")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")]


def require_some(options: object, name: str) -> None:
    """Raise a `UserError` if the named option, a sequence, is empty or has a value twice."""
    require(bool(getattr(options, name)), f"{flag(name)} must name at least one")
    require_distinct(options, name)


def require_numbers(options: object, name: str, *, least: int = 1, of: int = 1) -> None:
    """Raise a `UserError` unless the named option has distinct multiples of `of`, each at least `least`."""
    require_some(options, name)
    for value in getattr(options, name):
        require(value >= least, f"{flag(name)} must be at least {least}, got {value}")
        require(value % of == 0, f"{flag(name)} must be multiples of {of}, got {value}")


def require_names(kind: str, options: object, known: Sequence[str]) -> None:
    """Raise a `UserError` unless the option such as `agents`, for the kind "agent", has distinct known names."""
    require_some(options, f"{kind}s")
    for value in getattr(options, f"{kind}s"):
        if value not in known:
            raise unknown(kind, value, known)


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
        require_at_least(1, self, "repeats")


@dataclass(frozen=True)
class TorchOptions(BenchOptions):
    """Options of benchmarks that use torch."""

    threads: Annotated[int | None, open_option("torch's own")] = None
    """Number of CPU threads that torch may use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "threads")


@dataclass(frozen=True)
class BenchConfig:
    """Measure training, time until solved, envs, acting, exports, unrolling, scaling, update phases, or IMPALA."""

    what: BenchOptions
    """Options of the benchmark to run."""


def parse(arguments: Sequence[str]) -> BenchConfig:
    """Parse the command line after `ctrl bench`; the benchmarks are imported only here, since they need SB3."""
    modules = {name: importlib.import_module(f"ctrl.experiments.bench.{name}") for name in BENCHMARKS}
    kinds = tuple(Annotated[module.Options, tyro.conf.subcommand(name)] for name, module in modules.items())
    union: Any = Union[kinds]  # noqa: UP007
    options: Any = tyro.cli(
        union,
        prog="ctrl bench",
        description=BenchConfig.__doc__,
        args=list(arguments),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return BenchConfig(options)
