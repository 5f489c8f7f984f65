"""`ctrl bench`: measure something, show it, and keep the numbers with what they depend on."""

from __future__ import annotations

from rich.console import Console

from ctrl.experiments import provenance
from ctrl.experiments.config import BenchConfig
from ctrl.experiments.errors import require
from ctrl.experiments.folders import write_json


def run_command(config: BenchConfig, console: Console) -> int:
    """Carry out `ctrl bench`."""
    if config.out is not None:
        require(
            config.overwrite or not config.out.exists(), f"--out {config.out} exists; name another, or add --overwrite"
        )
    machine = provenance.machine()
    console.print(f"{machine['cpu']}, {machine['cores']} cores", soft_wrap=True)
    if config.what == "envs":
        from ctrl.experiments.bench_envs import run
    else:
        from ctrl.experiments.bench_train import run
    measured = run(config, console)
    if config.out is not None:
        about = {"command": provenance.command(), "machine": machine, "versions": provenance.versions()}
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(config.out, about | measured)
        console.print(f"numbers: {config.out}", soft_wrap=True)
    return 0
