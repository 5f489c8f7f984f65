"""Checks of observation and action spaces, and the encoding of actions as inputs of the next step."""

from __future__ import annotations

from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from ctrl.agents.vec_envs.nested import flat_space

FLAT_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_spaces(observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
    """Refuse spaces that the agents can't handle.

    :raises ValueError: naming the space and what is supported
    """
    flat = flat_space(observation_space)
    parts = flat.spaces if isinstance(flat, spaces.Dict) else {None: flat}
    if not parts:
        raise ValueError(f"observation_space must have entries, got {observation_space}")
    for key, part in parts.items():
        name = "observation_space" if key is None else f"observation_space[{key!r}]"
        if not isinstance(part, FLAT_SPACES):
            raise ValueError(f"{name} must be {_names()}, or a Dict or Tuple of these, got {part}")
        _check_shape(name, part)
    if not isinstance(action_space, FLAT_SPACES):
        raise ValueError(f"action_space must be {_names()}, got {action_space}")
    _check_shape("action_space", action_space)
    if isinstance(action_space, spaces.Box) and not action_space.is_bounded():
        raise ValueError(f"action_space must have finite bounds, got {action_space}")
    if isinstance(action_space, spaces.MultiBinary) and len(action_space.shape) != 1:
        raise ValueError(f"action_space must be one-dimensional, flatten it; got {action_space}")


def _check_shape(name: str, space: gym.Space[Any]) -> None:
    """Refuse spaces without any number, and MultiDiscrete of several axes, which stable-baselines3 indexes wrongly."""
    if 0 in (space.shape or ()) or getattr(space, "n", 1) == 0:
        raise ValueError(f"{name} must not be empty, got {space}")
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, flatten it; got {space}")


def stored_shape(space: gym.Space[Any]) -> tuple[int, ...]:
    """Return the shape in which a buffer keeps one observation."""
    return (1,) if isinstance(space, spaces.Discrete) else tuple(space.shape or ())


def first_values(space: gym.Space[Any]) -> Any:
    """Return the smallest values of a Discrete or MultiDiscrete space, from which choices are counted; else 0."""
    return space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else 0


def starts_of(observation_space: gym.Space[Any]) -> dict[str | None, Any]:
    """Return by key the first values that are not 0; the key is None where the space is no Dict."""
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {None: observation_space}
    return {key: first_values(part) for key, part in parts.items() if np.any(first_values(part))}


def from_zero(observations: Any, starts: dict[str | None, Any]) -> Any:
    """Return observations whose choices are counted from 0, as one-hot encoding needs them."""
    if isinstance(observations, dict):
        return {key: _counted(part, starts[key]) if key in starts else part for key, part in observations.items()}
    return _counted(observations, starts[None])


def _counted(part: Tensor, start: Any) -> Tensor:
    return part - torch.as_tensor(start, device=part.device)


def action_features(action_space: gym.Space[Any]) -> int:
    """Return A, the number of features that `encode_action` gives."""
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    if isinstance(action_space, spaces.MultiDiscrete):
        return int(action_space.nvec.sum())
    return int(np.prod(cast("tuple[int, ...]", action_space.shape)))


def encode_action(action_space: gym.Space[Any], action: Tensor) -> Tensor:
    """Turn actions into features in [-1, 1].

    Discrete and MultiDiscrete actions become one-hot, MultiBinary actions stay as they are, and Box actions are clipped
    to their bounds and rescaled.

    :param action: [N, ...] as the policy sampled it
    :return: [N, A] float32
    """
    if isinstance(action_space, spaces.Discrete):
        return F.one_hot(action.long().reshape(-1), int(action_space.n)).float()
    if isinstance(action_space, spaces.MultiDiscrete):
        columns = action.long().unbind(dim=1)
        return torch.cat([F.one_hot(c, int(n)) for c, n in zip(columns, action_space.nvec, strict=True)], dim=1).float()
    if isinstance(action_space, spaces.Box):
        low = torch.as_tensor(action_space.low, dtype=torch.float32, device=action.device)
        high = torch.as_tensor(action_space.high, dtype=torch.float32, device=action.device)
        action = action.float().reshape(-1, *low.shape)
        action = 2 * (action.clamp(low, high) - low) / (high - low).clamp_min(1e-8) - 1
    return action.float().flatten(start_dim=1)


def _names() -> str:
    return ", ".join(space.__name__ for space in FLAT_SPACES)
