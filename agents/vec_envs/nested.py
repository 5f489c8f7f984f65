"""Observations in Tuples and nested Dicts, as flat Dicts: a part's key is the path to it, such as "0" or "pose/arm"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

SEPARATOR = "/"


def is_nested(space: gym.Space[Any]) -> bool:
    """Return True for a Tuple, and for a Dict that holds a Dict or a Tuple."""
    if isinstance(space, spaces.Dict):
        return any(isinstance(part, spaces.Dict | spaces.Tuple) for part in space.spaces.values())
    return isinstance(space, spaces.Tuple)


def flat_space(space: gym.Space[Any]) -> gym.Space[Any]:
    """Return a nested space as a flat Dict, any other one as it is.

    :raises ValueError: where two paths give the same key
    """
    if not is_nested(space):
        return space
    flat: dict[str, gym.Space[Any]] = {}
    for key, part in _paths(space):
        if key in flat:
            raise ValueError(f"observation_space has two parts with the path {key!r}, rename one; got {space}")
        flat[key] = part
    return spaces.Dict(flat)


def flat_observation(observation: Any) -> Any:
    """Return an observation, or a batch of them, of a nested space as a flat dict; any other one as it is."""
    if isinstance(observation, tuple | Mapping):
        return dict(_paths(observation))
    return observation


def checked_parts(observation: Any, space: spaces.Dict) -> dict[str, Any]:
    """Return an observation of a flat or nested Dict or a Tuple as a flat dict with the keys of `space`.

    :raises ValueError: where it has other keys
    """
    flat = flat_observation(observation)
    if not isinstance(flat, dict) or flat.keys() != space.spaces.keys():
        found = f"{list(flat)}" if isinstance(flat, dict) else f"{type(observation).__name__}"
        raise ValueError(f"observation must have the parts {list(space.spaces)}, got {found}")
    return flat


def _paths(nested: Any, path: str = "") -> Iterator[tuple[Any, Any]]:
    """Yield the parts of a space or an observation, with their paths."""
    inner = nested.spaces if isinstance(nested, spaces.Dict | spaces.Tuple) else nested
    pairs = inner.items() if isinstance(inner, Mapping) else enumerate(inner)
    for key, part in pairs:
        name = f"{path}{SEPARATOR}{key}" if path else key if isinstance(key, str) else str(key)
        if isinstance(part, spaces.Dict | spaces.Tuple | Mapping | tuple):
            yield from _paths(part, name)
        else:
            yield name, part


def flat_env(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Return an env with nested observations in a wrapper that makes them flat, any other one as it is."""
    return FlatEnv(env) if is_nested(env.observation_space) else env


class FlatEnv(gym.ObservationWrapper[Any, Any, Any]):
    """Env whose nested observations are flat dicts."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = flat_space(env.observation_space)

    def observation(self, observation: Any) -> Any:
        """Return an observation as a flat dict."""
        return flat_observation(observation)


class FlatVecEnv(VecEnvWrapper):
    """`VecEnv` whose nested observations are flat dicts."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv, observation_space=flat_space(venv.observation_space))

    def reset(self) -> VecEnvObs:
        """Reset all envs."""
        flat: VecEnvObs = flat_observation(self.venv.reset())
        return flat

    def step_wait(self) -> VecEnvStepReturn:
        """Return the envs' step, with flat terminal observations too."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = flat_observation(info["terminal_observation"])
        return flat_observation(observations), rewards, dones, infos
