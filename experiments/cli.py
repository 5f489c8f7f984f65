"""Command line of `ctrl`: parse the arguments into a config and run the module of that subcommand."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Union

import tyro
from rich.console import Console

from ctrl.experiments.bench import options as bench
from ctrl.experiments.bench.options import BenchConfig
from ctrl.experiments.compare.ablation_config import AblateConfig
from ctrl.experiments.config import (
    CompareConfig,
    DemoConfig,
    EnvsConfig,
    EvaluateConfig,
    ExplainConfig,
    ExportConfig,
    TrainConfig,
)
from ctrl.experiments.errors import UserError, require
from ctrl.experiments.suite.config import SuiteConfig

# Modules are imported only when used: `ctrl --help` needs no gymnasium, no SB3 and no matplotlib.
COMMANDS: dict[str, tuple[type, str]] = {
    "train": (TrainConfig, "runs.training"),
    "compare": (CompareConfig, "compare.compare"),
    "ablate": (AblateConfig, "compare.ablation"),
    "suite": (SuiteConfig, "suite.suite"),
    "evaluate": (EvaluateConfig, "trained.evaluate"),
    "explain": (ExplainConfig, "trained.explain"),
    "export": (ExportConfig, "trained.export"),
    "envs": (EnvsConfig, "tasks.listing"),
    "demo": (DemoConfig, "compare.demo"),
    "bench": (BenchConfig, "bench.bench"),
}
"""Subcommands by name: the options of each, and the module that runs it."""

DESCRIPTION = "Compressive memory for reinforcement learning: train, compare and evaluate agents with memory."

EXAMPLES = {
    None: ["ctrl demo", "ctrl train --help"],
    "train": [
        "ctrl train --env ctrl/Recall-v0 --env-kwargs length=48 --core compressive --memory 16,16x4 --steps 300000",
        "ctrl train --env CartPole-v1 --core lstm --width 64 --out runs/cartpole",
        "ctrl train --resume runs/recall-v0-compressive-1",
    ],
    "compare": [
        "ctrl compare --env ctrl/Recall-v0 --env-kwargs length=48 --cores compressive lstm --seeds 3 \\",
        "    --steps 300000 --jobs 2 --match-parameters --learning-rates compressive=1e-3 lstm=3e-3",
        "ctrl compare --resume runs/recall-v0-compare-1",
        "ctrl compare --table runs/recall-v0-compare-1",
    ],
    "ablate": [
        "ctrl ablate --jobs 2 --out results/ablation",
        "ctrl ablate --jobs 2 --out results/ablation --resume",
        "ctrl ablate --variants conv+attention_reconstruction mean+none --seeds 1 --out results/two",
        "ctrl ablate --table results/ablation/summary.json",
    ],
    "suite": [
        "ctrl suite --out results/suite",
        "ctrl suite --out results/suite --tasks recall-250 copy-4-8 --seeds 5",
        "ctrl suite --out results/raw --cores compressive --memory 64,8x8",
        "ctrl suite --table results/suite",
    ],
    "evaluate": [
        "ctrl evaluate runs/recall-v0-compressive-1",
        "ctrl evaluate runs/recall-v0-compressive-1 --episodes 1000 --seed 1",
        "ctrl evaluate model.zip --env ctrl/Recall-v0 --env-kwargs length=96 --json",
    ],
    "explain": [
        "ctrl explain runs/recall-v0-compressive-1",
        "ctrl explain runs/recall-v0-compressive-1 --seed 3 --out results/attention.png",
        "ctrl explain model.zip --env ctrl/Recall-v0 --env-kwargs length=96",
    ],
    "export": [
        "ctrl export runs/recall-v0-compressive-1",
        "ctrl export model.zip --format torch --out agent.pt2",
    ],
    "envs": [
        "ctrl envs --family minigrid",
        "ctrl envs --check CartPole-v1",
        "ctrl envs --check my_package:My-v0 --env-kwargs length=64 --steps 20000",
        "ctrl envs --sheet results/tasks.png",
    ],
    "demo": ["ctrl demo --out results/demo"],
    "bench": [
        "ctrl bench train --num-envs 8 16 64 --repeats 3 --threads 1 --out results/bench_train.json",
        "ctrl bench act --batch-sizes 1 16 --threads 1",
        "ctrl bench export --batch-sizes 1 16 --threads 1",
        "ctrl bench unroll --lengths 32 128 --widths 64 --threads 1",
        "ctrl bench scale --episode-steps 100000 --threads 1",
        "ctrl bench profile --cores compressive lstm --threads 1",
        "ctrl bench envs --num-envs 256 --tasks ctrl/Recall-v0 ctrl/TMaze-v0 --out results/bench_envs.json",
    ],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `ctrl` and return its exit code: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C.

    If nobody reads stdout any more, as in `ctrl envs | head -1`, it silently returns 1, like rich's console.
    """
    try:
        try:
            return run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _give_up_unread_stdout():
            raise
        return 1


def _give_up_unread_stdout() -> bool:
    """Return True if stdout is a pipe that nobody reads, and redirect it to the null device.

    Otherwise the interpreter would try to flush it again at exit.
    """
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def run(arguments: Sequence[str] | None) -> int:
    """Parse the command line, run its subcommand and return the exit code; print a user's mistake in one line."""
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        config = _resumed(parse(given), given)
        name = next(module for options, module in COMMANDS.values() if type(config) is options)
        return int(importlib.import_module(f"ctrl.experiments.{name}").run_command(config, console))
    except UserError as error:
        errors.print(f"error: {error}", style="bold red", soft_wrap=True, markup=False)
        return 2
    except OSError as error:  # the disk, or a path that no system takes
        if error.strerror is None or isinstance(error, BrokenPipeError):
            raise
        where = f": {error.filename}" if error.filename else ""
        errors.print(f"error: {error.strerror}{where}", style="bold red", soft_wrap=True, markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print("stopped before there was anything to save, or after all of it was saved")
        return 130


def parse(arguments: Sequence[str]) -> object:
    """Parse the command line into a config; `--help` prints the examples below the options and exits."""
    commands: Any = Union[tuple(Annotated[one, tyro.conf.subcommand(name)] for name, (one, _) in COMMANDS.items())]  # noqa: UP007
    try:
        if list(arguments[:1]) == ["bench"]:
            return bench.parse(arguments[1:])
        config: object = tyro.cli(
            commands,
            prog="ctrl",
            description=DESCRIPTION,
            args=list(arguments) or ["--help"],
            config=(tyro.conf.OmitArgPrefixes,),
        )
        return config
    except SystemExit as stop:
        if stop.code == 0:
            print_examples(arguments)
        raise


RESUMED_WITH = {"train": ("--resume", "--steps", "--trust"), "compare": ("--resume", "--steps", "--jobs", "--trust")}
"""Options that go with --resume; all others are the run's own."""


def _resumed(config: Any, arguments: Sequence[str]) -> Any:
    """Return the options of the run or comparison that `--resume` names, with those given here; else `config`."""
    command = arguments[0] if arguments else ""
    folder = config.resume if command in RESUMED_WITH else None
    if folder is None:
        return config
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments if argument.startswith("--")}
    others = sorted(given - set(RESUMED_WITH[command]))
    require(not others, f"--resume takes all options from {folder}; it does not go with {', '.join(others)}")
    steps = config.run.steps if "--steps" in given else None
    from ctrl.experiments.runs import resume

    if command == "train":
        return resume.resumed_config(folder, steps, trust=config.trust)
    return resume.resumed_comparison(folder, steps, jobs=config.jobs, trust=config.trust)


def print_examples(arguments: Sequence[str]) -> None:
    """Print the examples of the subcommand that `arguments` names."""
    name = next((argument for argument in arguments if argument in EXAMPLES), None)
    lines = EXAMPLES[name]
    print("examples:" if len(lines) > 1 and not lines[0].endswith("\\") else "example:")
    for line in lines:
        print(f"  {line}")
