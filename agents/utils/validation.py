"""Checks of an algorithm's arguments, so that a mistake is reported before anything is built."""

from __future__ import annotations

import importlib
import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env.patch_gym import _patch_env


def batch_windows(n_steps: int, window: int, n_envs: int, batch_size: int | None) -> int:
    """Return the number of windows in a minibatch of `batch_size` steps.

    None stands for a quarter of the rollout's windows, rounded down, at least one.

    :raises ValueError: where `window` does not divide `n_steps` or `batch_size`
    """
    if n_steps < 1 or window < 1 or n_steps % window:
        raise ValueError(f"window must divide n_steps, got window = {window} and n_steps = {n_steps}")
    if batch_size is None:
        return max(1, n_steps // window * n_envs // 4)
    if batch_size < 1 or batch_size % window:
        raise ValueError(
            f"batch_size counts steps of whole windows, so it must be a multiple of window = {window}, "
            f"got batch_size = {batch_size}"
        )
    return batch_size // window


def burn_in_steps(refresh: str | int, n_steps: int) -> int:
    """Return the burn-in: the number of steps before a window over which its state is recomputed; 0 for "none".

    :raises ValueError: where `refresh` is neither "none" nor "recompute" nor a number from 1 to `n_steps`
    """
    named = {"none": 0, "recompute": n_steps}
    if isinstance(refresh, str) and refresh in named:
        return named[refresh]
    refresh = plain(refresh)
    if isinstance(refresh, bool) or not isinstance(refresh, int) or refresh < 1:
        raise ValueError(f"refresh must be 'none', 'recompute' or a whole number of at least 1, got {refresh!r}")
    if refresh > n_steps:
        raise ValueError(
            f"refresh must be at most n_steps, as no more is kept, got refresh = {refresh} and n_steps = {n_steps}"
        )
    return refresh


def plain(value: Any) -> Any:
    """Return a number of numpy or torch, also in an array without axes, as Python's; anything else as it is."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 0):
        return value.item()
    return value


def check_numbers(
    *,
    at_least_1: dict[str, Any],
    positive: dict[str, Any],
    not_negative: dict[str, Any],
    at_most_1: dict[str, Any],
    at_least_0: dict[str, Any] | None = None,
    optional: tuple[str, ...] = (),
    constant: tuple[str, ...] = (),
) -> None:
    """Raise a ValueError that names the first number out of range.

    Numbers named in `optional` may be None. A schedule, a function of the progress, is accepted unchecked, unless the
    number is named in `constant`.
    """
    for least, whole in ((1, at_least_1), (0, at_least_0 or {})):
        for name, given in whole.items():
            value = plain(given)
            if value is None and name in optional:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    for name, given in {**positive, **not_negative}.items():
        value = plain(given)
        if (value is None and name in optional) or (callable(value) and name not in constant):
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
        if value < 0 or (value == 0 and name in positive):
            raise ValueError(f"{name} must be {'above' if name in positive else 'at least'} 0, got {value}")
    for name, value in at_most_1.items():
        if not callable(value) and value > 1:
            raise ValueError(f"{name} must be at most 1, got {value}")


def check_device(device: torch.device | str) -> None:
    """Refuse a device that is not available; stable-baselines3 would silently use the CPU."""
    try:
        kind = "auto" if device == "auto" else torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"device must be 'auto' or a torch device, got {device!r}: {error}") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(device)!r}, but torch sees no CUDA device; use 'auto' or 'cpu'")


def check_env(env: Any) -> None:
    """Refuse an object that is no env, since it lacks an observation space or an action space."""
    if not (hasattr(env, "observation_space") and hasattr(env, "action_space")):
        raise ValueError(f"env must be a gymnasium env, a VecEnv or a gymnasium VectorEnv, got {env!r}")


def gymnasium_env(env: Any) -> gym.Env[Any, Any]:
    """Return a gymnasium env as it is, and one of the old gym through shimmy.

    :raises ValueError: where `env` is another object, or shimmy is missing; the message has the command to install it
    """
    try:
        return _patch_env(env)
    except ImportError as error:
        raise ValueError(
            f"env is of the old gym ({type(env).__name__}), which trains through shimmy: pip install 'shimmy>=2.0'"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"env must be a gymnasium env, a VecEnv or a gymnasium VectorEnv, got {type(env).__name__}, which inherits "
            "from none of them; an env of the old gym trains through shimmy: pip install gym 'shimmy>=2.0'"
        ) from error


def check_env_id(env_id: str) -> None:
    """Import the module of an id `module:id`; raise a ValueError with all registered ids if the id is unknown."""
    try:
        module, _, name = env_id.rpartition(":")
        if module:
            importlib.import_module(module)
        gym.spec(name)
    except (gym.error.Error, ImportError) as error:
        known = ", ".join(sorted(gym.registry))
        raise ValueError(f"unknown env id {env_id!r} ({error}); registered are {known}") from error
