"""Agents built from options or loaded from files, and cores matched in size."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from ctrl import Tier
from ctrl.agents import MemoryImpala, MemoryPPO
from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.agents.saving.model_file import algorithm_of
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.options import COMPRESSIVE_CORES, PPO_ALONE, RAW_CORES, MemoryOptions
from ctrl.experiments.runs.core_options import of_core
from ctrl.experiments.runs.tasks import policy_name

TOLERANCE = 0.1
"""Largest difference between matched parameter counts, as a share of the target."""
WIDEST = 4096
OF_TIERS = ("memory", "compressor")
"""Options that together define the tiers; the other options go to the core unchanged."""


def core_kwargs(core: str, memory: MemoryOptions) -> dict[str, Any]:
    """Return the keyword arguments of `core` for the options in `memory`, without those that were left open."""
    asked = asdict(of_core(memory, core))
    options = {name: value for name, value in asked.items() if value is not None and name not in OF_TIERS}
    if core in COMPRESSIVE_CORES and any(asked[name] is not None for name in OF_TIERS):
        compressor = memory.compressor or Tier.compressor
        options["memory"] = [Tier(slots, rate, compressor) for slots, rate in memory.tiers]
    if core in RAW_CORES:
        options["slots"] = sum(slots for slots, _ in memory.tiers)
    return options


CLASSES: dict[str, type[MemoryAlgorithm]] = {"ppo": MemoryPPO, "impala": MemoryImpala}
"""Classes of the agents, by the algorithm's name on the command line."""


def arguments(config: TrainConfig) -> dict[str, Any]:
    """Return the keyword arguments of the algorithm; the learning rate is a schedule if it anneals."""
    options = config.ppo.arguments()
    if config.ppo.anneal:
        options["learning_rate"] = LinearSchedule(config.ppo.learning_rate, 0.0, 1.0)
    if config.algorithm == "ppo":
        return options
    shared = {name: value for name, value in options.items() if name not in PPO_ALONE}
    return {**shared, **config.impala.given}


def build_model(config: TrainConfig, env: VecEnv) -> MemoryAlgorithm:
    """Build the agent of a config.

    :raises UserError: if the options do not fit each other or the env
    """
    build: Any = CLASSES[config.algorithm]
    try:
        model: MemoryAlgorithm = build(
            policy_name(env.observation_space),
            env,
            policy_kwargs={"core": config.core, "core_kwargs": core_kwargs(config.core, config.memory)},
            seed=config.seed,
            device=config.run.device,
            **arguments(config),
        )
    except (ValueError, TypeError, NotImplementedError, AssertionError, RuntimeError) as error:
        raise UserError(f"the agent cannot be built: {error}") from error
    return model


def load_model(path: Path, env: VecEnv | None, device: str, *, trust: bool = False) -> MemoryAlgorithm:
    """Load a saved agent of either algorithm, for playing and not for learning.

    :param env: to play in; None for an agent that only its caller steps
    :param trust: whether code from the file may run; see `MemoryPPO.load`
    :raises UserError: if the file holds no agent, needs trust, or its spaces differ from those of the env
    """
    classes = {algorithm.__name__: algorithm for algorithm in CLASSES.values()}
    try:
        name = algorithm_of(path)
        if name not in classes:
            raise ValueError(f"it holds a {name[:50]!r}, which this version does not know")
        alone = {"num_actors": 0} if classes[name] is MemoryImpala else {}
        return classes[name].load(path, env=env, device=device, custom_objects=alone, trust=trust)
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, AssertionError, AttributeError) as error:
        raise UserError(f"{path} cannot be loaded for this task: {error}") from error


def load_to_go_on(path: Path, config: TrainConfig, env: VecEnv) -> MemoryAlgorithm:
    """Load the agent of a run to train on; `learn(reset_num_timesteps=False)` then goes on as if never stopped.

    :raises UserError: if the file holds no agent of the run
    """
    try:
        return CLASSES[config.algorithm].load(path, env=env, device=config.run.device, trust=config.trust)
    except (ValueError, KeyError, TypeError, OSError, RuntimeError, AssertionError, AttributeError) as error:
        raise UserError(f"{path} cannot be loaded to go on: {error}") from error


def parameter_count(model: Any) -> int:
    """Return the number of parameters of the agent, all its networks together."""
    return sum(parameter.numel() for parameter in model.policy.parameters())


@dataclass(frozen=True)
class Match:
    """Width that brings the agent of a core close to a target number of parameters."""

    width: int
    parameters: int
    target: int

    @property
    def difference(self) -> float:
        """Signed difference from the target, as a share of it."""
        return self.parameters / self.target - 1


def match_width(config: TrainConfig, env: VecEnv, target: int) -> Match:
    """Find the width with which the agent of `config` has closest to `target` parameters.

    :raises UserError: if no width comes within 10 %
    """
    unit = config.heads

    def count(units: int) -> int:
        memory = replace(config.memory, width=units * unit)
        return parameter_count(build_model(replace(config, memory=memory), env))

    units, parameters = closest(count, target, highest=WIDEST // unit)
    match = Match(units * unit, parameters, target)
    if abs(match.difference) > TOLERANCE:
        raise UserError(
            f"no width of {config.core} comes within {TOLERANCE:.0%} of {target:,} parameters; "
            f"the closest is {match.width} with {parameters:,}"
        )
    return match


def closest(count: Any, target: int, *, highest: int) -> tuple[int, int]:
    """Find the size from 1 to `highest` whose `count(size)` is closest to `target`; the count must grow with the size.

    :return: the size and its count
    """
    low, high = 1, highest
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= target else (low, middle)
    return min(((size, count(size)) for size in (low, high)), key=lambda pair: abs(pair[1] - target))
