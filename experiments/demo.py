"""`ctrl demo`: the comparison that shows the point. All its numbers are here."""

from __future__ import annotations

from rich.console import Console

from ctrl.experiments import compare
from ctrl.experiments.config import CompareConfig, DemoConfig, MemoryOptions, PPOOptions, RunOptions, TaskOptions

CORES = ("compressive", "lstm")
SEEDS = 3
STEPS = 180_000
LENGTH = 24
"""Steps from cue to query: more than the raw memory holds, so the answer must come through compressed slots."""
NUM_CUES = 4
NUM_ENVS = 32
MEMORY = "8,8x4"
"""8 raw steps and 8 slots of 4 steps: 40 steps of reach."""
LAYERS = 1
LEARNING_RATES = {"compressive": 1e-3, "lstm": 3e-3}
"""Each core's best of a few; docs/benchmarks.md says which and how they were judged."""
PPO = PPOOptions(n_steps=64, gamma=0.9)
"""Only the last action counts, so a short horizon keeps the noise of the others out of its credit."""
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
        ppo=PPO,
    )


def run_command(options: DemoConfig, console: Console) -> int:
    """Carry out `ctrl demo`."""
    console.print(
        f"A cue is shown once and asked for {LENGTH} steps later. The compressive agent keeps "
        f"{MEMORY.split(',')[0]} steps as they are and older ones compressed; the LSTM has as many parameters.",
        soft_wrap=True,
    )
    return compare.run_command(demo_config(options), console)
