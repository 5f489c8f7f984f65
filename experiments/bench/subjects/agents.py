"""Agents that the benchmarks train on CartPole without its velocities, with matched numbers of parameters.

All make the same use of their data: 128 steps of each env between two updates, 4 epochs × 4 minibatches at every number
of envs, Adam, one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from ctrl.experiments.bench.harness import SEED
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.options import ATTENTION_CORES, MemoryOptions
from ctrl.experiments.runs.build import TOLERANCE, build_model, closest, match_width, parameter_count
from ctrl.experiments.runs.core_options import of_core

N_STEPS, N_EPOCHS, MINIBATCHES = 128, 4, 4
LAYERS, MEMORY = 2, "32,32x4"
"""Layers and tiers of attention cores: 32 raw slots and 32 slots of 4 steps, with the paper's compressor and loss."""
PAPER, DEFAULT = "compressive", "default_memory"
"""`MemoryPPO` with the paper's kind of memory, and with the default core as it comes."""
MATCHED = ("recurrent_ppo", "matched_ppo")
"""PPO of other packages, with a size that brings it to the target."""
DEFAULTS = (DEFAULT, "default_recurrent_ppo", "default_ppo")
"""Agents with the networks that their package builds if nothing is asked for."""

Builder = Callable[[VecEnv], Any]


class PositionsOnly(gym.ObservationWrapper[NDArray[np.float32], int, NDArray[np.float32]]):
    """CartPole that shows the cart's position and the pole's angle, but not their velocities."""

    KEPT = (0, 2)

    def __init__(self, env: gym.Env[NDArray[np.float32], int]) -> None:
        super().__init__(env)
        full = env.observation_space
        assert isinstance(full, spaces.Box)
        kept = list(self.KEPT)
        self.observation_space = spaces.Box(full.low[kept], full.high[kept], dtype=np.float32)

    def observation(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """Leave the velocities out."""
        return observation[list(self.KEPT)]


def make_cartpole(num_envs: int) -> VecEnv:
    """Build CartPole without velocities."""
    return make_vec_env("CartPole-v1", n_envs=num_envs, wrapper_class=PositionsOnly, seed=SEED)


@contextmanager
def fresh_agent(build: Builder, num_envs: int) -> Iterator[Any]:
    """Build an agent that logs nothing, on envs that are closed at the end."""
    with closing(make_cartpole(num_envs)) as env:
        model = build(env)
        model.set_logger(Logger(folder=None, output_formats=[]))
        yield model


def agents(names: Sequence[str], match: str = PAPER) -> tuple[dict[str, Builder], dict[str, int]]:
    """Return the builders of the agents and their numbers of parameters, both by name.

    :param names: names of cores of `MemoryPPO`, and some of `MATCHED` and `DEFAULTS`
    :param match: agent of `MemoryPPO` whose number of parameters all have but those in `DEFAULTS`
    :raises UserError: if sb3-contrib is needed and missing, or no size comes close to the target
    """
    with closing(make_cartpole(MINIBATCHES)) as env:
        target = target_of(match, env)
        builders = {name: _builder(name, env, target) for name in names}
        return builders, {name: parameter_count(build(env)) for name, build in builders.items()}


def target_of(name: str, env: VecEnv) -> int:
    """Return the number of parameters of an agent of `MemoryPPO` before any match."""
    return parameter_count(build_model(memory_config(name), env))


def _builder(name: str, env: VecEnv, target: int) -> Builder:
    if name in (*MATCHED, *DEFAULTS) and name != DEFAULT:
        build = _recurrent_ppo if "recurrent" in name else _plain_ppo
        if name in DEFAULTS:
            return partial(build, None)
        return partial(build, closest_size(lambda size: parameter_count(build(size, env)), target))
    config = memory_config(name)
    return partial(_memory_ppo, config if name == DEFAULT else matched_config(config, env, target))


def memory_config(name: str) -> TrainConfig:
    """Return the config of `MemoryPPO`: with its default core for `DEFAULT`, else with a core of the paper's memory."""
    core, memory = "compressive", MemoryOptions()
    if name != DEFAULT:
        layers = LAYERS if name in ATTENTION_CORES else None
        core, memory = name, of_core(MemoryOptions(memory=MEMORY, compressor="conv", layers=layers), name)
    config = TrainConfig(core=core, seed=SEED, memory=memory)
    ppo = replace(config.ppo, n_steps=N_STEPS, n_epochs=N_EPOCHS)
    return replace(config, ppo=ppo, run=replace(config.run, device="cpu"))


def matched_config(config: TrainConfig, env: VecEnv, target: int) -> TrainConfig:
    """Return the config with a width that brings its agent to about `target` parameters."""
    if parameter_count(build_model(config, env)) == target:
        return config
    return replace(config, memory=replace(config.memory, width=match_width(config, env, target).width))


def closest_size(count: Callable[[int], int], target: int) -> int:
    """Return the size whose `count(size)` is closest to `target`.

    :raises UserError: if it is not within 10 %
    """
    size, parameters = closest(count, target, highest=1024)
    if abs(parameters / target - 1) > TOLERANCE:
        raise UserError(
            f"no size comes within {TOLERANCE:.0%} of {target:,} parameters; the closest has {parameters:,}"
        )
    return size


def _memory_ppo(config: TrainConfig, env: VecEnv) -> Any:
    return build_model(replace(config, ppo=replace(config.ppo, batch_size=_batch_size(env))), env)


def _plain_ppo(hidden: int | None, env: VecEnv) -> Any:
    # Two hidden layers for each of actor and critic, as by default, where they have 64 units.
    kwargs = None if hidden is None else {"net_arch": {"pi": [hidden, hidden], "vf": [hidden, hidden]}}
    return PPO("MlpPolicy", env, policy_kwargs=kwargs, **_sb3_arguments(env))


def recurrent_ppo_class() -> Any:
    """Return sb3-contrib's `RecurrentPPO`.

    :raises UserError: if sb3-contrib is missing
    """
    try:
        from sb3_contrib import RecurrentPPO
    except ImportError:
        raise UserError('the benchmark needs sb3-contrib: pip install "ctrl-memory[bench]"') from None
    return RecurrentPPO


def _recurrent_ppo(hidden: int | None, env: VecEnv) -> Any:
    # One LSTM for actor and critic, as one core serves both in MemoryPPO.
    shared = {"lstm_hidden_size": hidden, "shared_lstm": True, "enable_critic_lstm": False}
    kwargs = None if hidden is None else shared
    return recurrent_ppo_class()("MlpLstmPolicy", env, policy_kwargs=kwargs, **_sb3_arguments(env))


def _sb3_arguments(env: VecEnv) -> dict[str, Any]:
    return {"n_steps": N_STEPS, "n_epochs": N_EPOCHS, "batch_size": _batch_size(env), "seed": SEED, "device": "cpu"}


def _batch_size(env: VecEnv) -> int:
    return env.num_envs * N_STEPS // MINIBATCHES
