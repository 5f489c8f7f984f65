"""Export of a trained agent as a graph for other hosts, with a check of the graph against the agent."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ctrl.agents.export.checking import Agreement, check_graph, open_graph
from ctrl.agents.export.writing import SUFFIXES, export_policy, require
from ctrl.experiments.config import ExportConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.errors import require as require_user
from ctrl.experiments.report.summary import titled
from ctrl.experiments.runs.build import load_model
from ctrl.experiments.trained.evaluate import find_model

TOLERANCE = 1e-3
"""Largest difference, relative to 1 or the number's size, between the graph and the agent. Rounding makes some 1e-6."""


def export_saved(config: ExportConfig) -> tuple[Path, Agreement]:
    """Export the agent of a run, and compare the graph with it.

    :return: the graph's file, and how far the two are apart
    :raises UserError: if there is no such model, a package is missing, a file is there already, or the policy's step is
        no fixed graph
    """
    model_path = find_model(config.path)
    path = config.out or model_path.with_suffix(SUFFIXES[config.format])
    for file in (path, path.with_suffix(".json")):
        free = config.overwrite or not file.exists()
        require_user(free, f"{file} exists already; add --overwrite, or name another --out")
    require_user(path.parent.is_dir(), f"--out {path}: there is no folder {path.parent}")
    try:
        if config.format == "onnx":
            require("onnx", "onnxscript", "onnxruntime")
        policy = load_model(model_path, None, "cpu", trust=config.trust).policy
        export_policy(policy, path, kind=config.format)
    except (ValueError, ModuleNotFoundError, OSError) as error:
        raise UserError(f"{model_path} cannot be exported: {error}") from error
    return path, check_graph(policy, open_graph(path, config.format), steps=config.steps)


def agreement_table(path: Path, agreement: Agreement) -> Table:
    """Build the table that `ctrl export` prints."""
    table = Table(show_header=False)
    table.add_column("what", style="bold")
    table.add_column("value", justify="right")
    table.add_row("description", str(path.with_suffix(".json")))
    table.add_row("size", f"{path.stat().st_size:,} bytes")
    table.add_row("checked", f"{agreement.steps:,} steps in {agreement.envs} copies, {agreement.resets} resets")
    table.add_row("largest difference", f"{agreement.worst:.1e}")
    table.add_row("actions that differ", f"{agreement.other_actions} of {agreement.steps * agreement.envs:,}")
    return table


def run_command(config: ExportConfig, console: Console) -> int:
    """Run `ctrl export` and return its exit code."""
    path, agreement = export_saved(config)
    console.print(titled(str(path), agreement_table(path, agreement)))
    if agreement.worst > TOLERANCE:
        console.print(f"the graph is not the agent: they differ by up to {agreement.worst:.1e}; do not use it")
        return 1
    return 0
