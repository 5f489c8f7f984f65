"""`ctrl demo`: a short comparison of compressive memory with an LSTM. All its settings are here."""

from __future__ import annotations

from rich.console import Console

from ctrl.experiments.compare import compare
from ctrl.experiments.config import CompareConfig, DemoConfig
from ctrl.experiments.options import MemoryOptions, RunOptions, TaskOptions

CORES = ("compressive", "lstm")
SEEDS = 3
STEPS = 350_000
"""Env steps of each run."""
LENGTH = 250
"""Steps from cue to query: far more than the raw memory holds, so the answer must come from compressed slots."""
NUM_CUES = 4
LEARNING_RATES = {"lstm": 1e-2}
"""Learning rates that differ from the default. An LSTM learns the shortest recall task of `ctrl suite` best with this
one, see docs/suite.md."""
EVAL_EPISODES = 200


def demo_config(options: DemoConfig) -> CompareConfig:
    """Return the config of the comparison."""
    return CompareConfig(
        cores=CORES,
        seeds=SEEDS,
        jobs=options.jobs,
        learning_rates=tuple(f"{core}={rate}" for core, rate in LEARNING_RATES.items()),
        out=options.out,
        overwrite=True,
        task=TaskOptions(env_kwargs=(f"length={LENGTH}", f"num_cues={NUM_CUES}")),
        run=RunOptions(steps=STEPS, eval_episodes=EVAL_EPISODES),
        memory=MemoryOptions(chrono_horizon=LENGTH),
    )


def run_command(options: DemoConfig, console: Console) -> int:
    """Run `ctrl demo` and return its exit code."""
    console.print(
        f"One of {NUM_CUES} cues is shown once and asked for {LENGTH} steps later. Compressive memory as it is by "
        "default against an LSTM with more parameters, as many steps and a learning rate of its own.",
        soft_wrap=True,
    )
    return compare.run_command(demo_config(options), console)
