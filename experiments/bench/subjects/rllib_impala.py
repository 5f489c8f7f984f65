"""RLlib's IMPALA with its LSTM on CartPole without velocities, as a script for `ctrl bench impala --rllib PYTHON`.

    python -m venv rllib && rllib/bin/pip install "ray[rllib]==2.60.0" torch==2.13.0
    ctrl bench impala --rllib rllib/bin/python --agents impala_lstm rllib_lstm

The script runs in that environment and imports nothing of `ctrl`. The last line that it prints is JSON with the results
and the version of ray.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from typing import Any

import gymnasium as gym
import numpy as np

INSTALL = 'pip install "ray[rllib]==2.60.0" torch'
ENCODER = [64]
"""Hidden units of the encoder before the LSTM, as in `ctrl`'s policies."""


class PositionsOnly(gym.ObservationWrapper[Any, Any, Any]):
    """CartPole that shows the cart's position and the pole's angle, but not their velocities."""

    KEPT = (0, 2)

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        full: Any = env.observation_space
        kept = list(self.KEPT)
        self.observation_space = gym.spaces.Box(full.low[kept], full.high[kept], dtype=np.float32)

    def observation(self, observation: Any) -> Any:
        """Leave the velocities out."""
        return observation[list(self.KEPT)]


def make_env(_: Any) -> PositionsOnly:
    """Build one env."""
    return PositionsOnly(gym.make("CartPole-v1"))


def config_of(options: argparse.Namespace, cell: int) -> Any:
    """Return RLlib's config with an LSTM of `cell` units."""
    from ray.rllib.algorithms.impala import IMPALAConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

    model = DefaultModelConfig(
        fcnet_hiddens=ENCODER, head_fcnet_hiddens=[64], use_lstm=True, lstm_cell_size=cell, max_seq_len=options.window
    )
    return (
        IMPALAConfig()
        .environment("positions-only")
        .env_runners(
            num_env_runners=options.actors,
            num_envs_per_env_runner=options.envs,
            rollout_fragment_length=options.window,
            num_cpus_per_env_runner=0.5,
        )
        .learners(num_learners=0)
        .training(train_batch_size_per_learner=options.window * options.envs)
        .rl_module(model_config=model)
        .reporting(min_time_s_per_iteration=1, min_sample_timesteps_per_iteration=0)
        .debugging(seed=0, log_level="ERROR")
    )


def parameters(options: argparse.Namespace, cell: int) -> int:
    """Return the number of parameters of the agent with an LSTM of `cell` units."""
    env = make_env(None)
    module = config_of(options, cell).get_rl_module_spec(env=env, inference_only=False).build()
    return sum(parameter.numel() for parameter in module.parameters())


def closest_cell(options: argparse.Namespace) -> int:
    """Return the LSTM units that bring the agent closest to the requested number of parameters."""
    low, high = 1, 1024
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if parameters(options, middle) <= options.parameters else (low, middle)
    return min((low, high), key=lambda cell: abs(parameters(options, cell) - options.parameters))


def env_steps(result: dict[str, Any]) -> int:
    """Return the env steps that reached the learner so far; RLlib's count of trained steps also includes padding."""
    return int(result["num_env_steps_sampled_lifetime"])


def warm_up(algorithm: Any, seconds: float) -> int:
    """Train until the first env steps come, and for `seconds` after that; return the env steps so far."""
    result, begin = algorithm.train(), time.perf_counter()
    while not env_steps(result):
        result, begin = algorithm.train(), time.perf_counter()
    while time.perf_counter() < begin + seconds:
        result = algorithm.train()
    return env_steps(result)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train, and return the speed after the warm-up with the sizes and the version of ray."""
    try:
        import ray
    except ImportError:
        raise SystemExit(f"RLlib is missing: {INSTALL}") from None
    from ray.tune.registry import register_env

    # These are promises, not processors: with the real number, RLlib's own actors would wait for ever.
    ray.init(num_cpus=8, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    register_env("positions-only", make_env)
    cell = closest_cell(options)
    algorithm = config_of(options, cell).build_algo()
    try:
        before, begin = warm_up(algorithm, options.warm_up), time.perf_counter()
        after = before
        while time.perf_counter() < begin + options.seconds:
            after = env_steps(algorithm.train())
        taken = time.perf_counter() - begin
        return {
            "steps_per_second": (after - before) / taken,
            "parameters": parameters(options, cell),
            "lstm_cell_size": cell,
            "ray": ray.__version__,
        }
    finally:
        algorithm.stop()
        ray.shutdown()


def main() -> None:
    """Read the options, measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=212_000)
    parser.add_argument("--actors", type=int, default=2, help="env runners")
    parser.add_argument("--envs", type=int, default=8, help="envs of each")
    parser.add_argument("--window", type=int, default=64, help="steps of a fragment and of a training sequence")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=5.0, help="seconds that are not timed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(json.dumps(measure(options)))


if __name__ == "__main__":
    main()
