"""Access to attributes and methods of single envs inside a gymnasium vector env, sub-envs, workers or native."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from stable_baselines3.common.env_util import is_wrapped


class _Access(ABC):
    """Access to attributes and methods of single envs."""

    def has(self, name: str) -> bool:
        """Return True if every env has the attribute."""
        try:
            self.get(name, [0])
        except AttributeError:
            return False
        return True

    @abstractmethod
    def get(self, name: str, indices: list[int]) -> list[Any]: ...

    @abstractmethod
    def set(self, name: str, value: Any, indices: list[int]) -> None: ...

    @abstractmethod
    def call(self, name: str, indices: list[int], /, *args: Any, **kwargs: Any) -> list[Any]: ...

    def is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], index: int) -> bool:
        return False


class _SubEnvAccess(_Access):
    """Access for `SyncVectorEnv`, which holds the envs in this process."""

    def __init__(self, envs: Sequence[gym.Env[Any, Any]]) -> None:
        self._envs = envs

    def has(self, name: str) -> bool:
        return all(env.has_wrapper_attr(name) for env in self._envs)

    def get(self, name: str, indices: list[int]) -> list[Any]:
        return [self._envs[i].get_wrapper_attr(name) for i in indices]

    def set(self, name: str, value: Any, indices: list[int]) -> None:
        for i in indices:
            self._envs[i].set_wrapper_attr(name, value)

    def call(self, name: str, indices: list[int], /, *args: Any, **kwargs: Any) -> list[Any]:
        return [method(*args, **kwargs) for method in self.get(name, indices)]

    def is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], index: int) -> bool:
        return is_wrapped(self._envs[index], wrapper_class)


class _WorkerAccess(_Access):
    """Access for `AsyncVectorEnv`, which asks all workers at once.

    An error would end a worker, so the existence of an attribute is checked first.
    """

    def __init__(self, env: AsyncVectorEnv[Any, Any]) -> None:
        self._env = env

    def has(self, name: str) -> bool:
        return all(self._env.call("has_wrapper_attr", name))

    def get(self, name: str, indices: list[int]) -> list[Any]:
        self._require(name)
        values = self._env.call("get_wrapper_attr", name)  # unlike `get_attr`, does not call methods
        return [values[i] for i in indices]

    def set(self, name: str, value: Any, indices: list[int]) -> None:
        _require_all("set_attr", name, indices, self._env)
        self._env.set_attr(name, [value] * self._env.num_envs)

    def call(self, name: str, indices: list[int], /, *args: Any, **kwargs: Any) -> list[Any]:
        _require_all("env_method", name, indices, self._env)
        self._require(name)
        answers = self._env.call(name, *args, **kwargs)
        return [answers[i] for i in indices]

    def _require(self, name: str) -> None:
        if not self.has(name):
            raise AttributeError(f"the envs of {self._env} have no attribute {name!r}.")


class _NativeAccess(_Access):
    """Access for native vector envs without single envs: their attributes, or their wrappers', stand for all envs."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self._env = env

    def get(self, name: str, indices: list[int]) -> list[Any]:
        return [getattr(self._owner(name), name)] * len(indices)

    def set(self, name: str, value: Any, indices: list[int]) -> None:
        _require_all("set_attr", name, indices, self._env)
        setattr(self._owner(name), name, value)

    def call(self, name: str, indices: list[int], /, *args: Any, **kwargs: Any) -> list[Any]:
        answers = getattr(self._owner(name), name)(*args, **kwargs)
        if answers is None:
            return [None] * len(indices)
        if not isinstance(answers, Sequence | np.ndarray) or len(answers) != self._env.num_envs:
            raise ValueError(f"{name} of {self._env} must return an entry for each env, got {answers!r}.")
        return [answers[i] for i in indices]

    def _owner(self, name: str) -> VectorEnv[Any, Any, Any]:
        """Return the outermost wrapper, or the env, that has the attribute."""
        env = self._env
        while not hasattr(env, name):
            if env is env.unwrapped:
                raise AttributeError(f"the vector env {self._env} has no attribute {name!r}, and no single envs.")
            env = cast(Any, env).env
        return env


def _access(env: VectorEnv[Any, Any, Any]) -> _Access:
    inner = env.unwrapped
    if isinstance(inner, SyncVectorEnv):
        return _SubEnvAccess(inner.envs)
    if isinstance(inner, AsyncVectorEnv):
        return _WorkerAccess(inner)
    return _NativeAccess(env)


def _require_all(what: str, name: str, indices: Iterable[int], env: VectorEnv[Any, Any, Any]) -> None:
    if sorted(indices) != list(range(env.num_envs)):
        raise NotImplementedError(
            f"{what}({name!r}) for envs {list(indices)}: {env} can only do it for all of its envs."
        )
