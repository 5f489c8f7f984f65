"""`ctrl bench`: run a benchmark, show its table, and keep its numbers together with machine and versions."""

from __future__ import annotations

import importlib
from typing import Any, Protocol, cast

from rich.console import Console

from ctrl.experiments.bench.config import (
    AnyBench,
    BenchAct,
    BenchConfig,
    BenchEnvs,
    BenchImpala,
    BenchProfile,
    BenchScale,
    BenchTrain,
    BenchUnroll,
)
from ctrl.experiments.errors import require
from ctrl.experiments.report import provenance
from ctrl.experiments.runs.run_folder import write_json

# Imported only when used: the benchmark of the envs needs no SB3.
MODULES: dict[type, str] = {
    BenchTrain: "train",
    BenchEnvs: "envs",
    BenchAct: "act",
    BenchUnroll: "unroll",
    BenchScale: "scale",
    BenchProfile: "profile",
    BenchImpala: "impala",
}

WIDTH = 100
"""Largest width of a table, in characters."""


class BenchModule(Protocol):
    """Interface of the module of a benchmark."""

    def run(self, config: AnyBench, console: Console) -> dict[str, Any]:
        """Run the benchmark, print its table and return its part of the report."""


def run_command(config: BenchConfig, console: Console) -> int:
    """Run `ctrl bench` and return its exit code."""
    asked = config.what
    if asked.out is not None:
        require(
            asked.overwrite or not asked.out.exists(), f"--out {asked.out} exists; name another, or add --overwrite"
        )
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)  # a file or a pipe has room for a whole table
    module = importlib.import_module(f"ctrl.experiments.bench.{MODULES[type(asked)]}")
    measured = cast(BenchModule, module).run(asked, console)
    if asked.out is not None:
        versions = provenance.versions((*provenance.PACKAGES, "compressive-transformer-pytorch"))
        about = {"command": provenance.command(), "machine": provenance.machine(), "versions": versions}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(asked.out, about | measured)
        console.print(f"numbers: {asked.out}", soft_wrap=True)
    return 0
