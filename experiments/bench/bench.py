"""`ctrl bench`: run a benchmark, show its tables, and keep its numbers together with machine and versions."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from rich.console import Console

from ctrl.experiments.bench.harness import Row, Table
from ctrl.experiments.bench.options import BenchConfig, TorchOptions
from ctrl.experiments.errors import require
from ctrl.experiments.report import provenance
from ctrl.experiments.runs.run_folder import write_json

WIDTH = 100
"""Largest width of a table, in characters."""


class Benchmark(Protocol):
    """Interface of the module of a benchmark, which also has its `Options`."""

    def run(self, options: Any, console: Console) -> Row:
        """Run the benchmark and return its part of the report."""

    def tables(self, report: Row) -> Sequence[Table]:
        """List the tables of a report."""


def run_command(config: BenchConfig, console: Console) -> int:
    """Run `ctrl bench` and return its exit code."""
    out, overwrite = config.what.out, config.what.overwrite
    if out is not None:
        require(overwrite or not out.exists(), f"--out {out} exists; name another, or add --overwrite")
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)  # a file or a pipe has room for a whole table
    benchmark = cast(Benchmark, importlib.import_module(type(config.what).__module__))
    report = conditions(config) | benchmark.run(config.what, console)
    for table in benchmark.tables(report):
        console.print(table.render(report))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, report)
        console.print(f"numbers: {out}", soft_wrap=True)
    return 0


def conditions(config: BenchConfig) -> Row:
    """Return what the numbers depend on; torch gets its number of threads, if one is asked for."""
    versions = provenance.versions((*provenance.PACKAGES, "compressive-transformer-pytorch"))
    about = {"command": provenance.command(), "machine": provenance.machine(), "versions": versions}
    if not isinstance(config.what, TorchOptions):
        return about
    if config.what.threads is not None:
        torch.set_num_threads(config.what.threads)
    return {**about, "torch_threads": torch.get_num_threads()}
