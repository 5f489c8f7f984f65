"""`ctrl demo`: the comparison that shows the point. All its numbers are here."""

from __future__ import annotations

from rich.console import Console

from ctrl.experiments import compare
from ctrl.experiments.config import CompareConfig, DemoConfig, MemoryOptions, PPOOptions, RunOptions, TaskOptions

CORES = ("compressive", "lstm")
SEEDS = 3
STEPS = 300_000
LENGTH = 48
"""Steps from cue to query: more than the raw memory holds, so the answer must come through compressed slots."""
NUM_CUES = 4
NUM_ENVS = 16
MEMORY = "16,16x4"
"""16 raw steps and 16 slots of 4 steps: 80 steps of reach in each layer."""
LAYERS = 1
LEARNING_RATES = {"compressive": 1e-3, "lstm": 3e-3}
"""Each core's best of those that were tried."""
EVAL_EPISODES = 200


def demo_config(options: DemoConfig) -> CompareConfig:
    """Return the comparison that the demo is."""
    return CompareConfig(
        cores=CORES,
        seeds=SEEDS,
        jobs=options.jobs,
        learning_rates=tuple(f"{core}={rate}" for core, rate in LEARNING_RATES.items()),
        match_parameters=True,
        out=options.out,
        overwrite=True,
        task=TaskOptions(env_kwargs=(f"length={LENGTH}", f"num_cues={NUM_CUES}"), num_envs=NUM_ENVS),
        run=RunOptions(steps=STEPS, eval_episodes=EVAL_EPISODES),
        memory=MemoryOptions(memory=MEMORY, layers=LAYERS, chrono_horizon=2 * LENGTH),
        ppo=PPOOptions(),
    )


def run_command(options: DemoConfig, console: Console) -> int:
    """Carry out `ctrl demo`."""
    console.print(
        f"A cue is shown once and asked for {LENGTH} steps later. The compressive agent keeps "
        f"{MEMORY.split(',')[0]} steps as they are and older ones compressed; the LSTM has as many parameters.",
        soft_wrap=True,
    )
    return compare.run_command(demo_config(options), console)
