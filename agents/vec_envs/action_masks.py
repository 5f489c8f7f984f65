"""Action masks as in sb3-contrib: the env's method `action_masks()` says which actions may be taken in the next step.

A mask [M] has one entry for each choice, true where it may be taken. Discrete(n) has n choices, MultiDiscrete those of
all its parts one after another, and MultiBinary(n) two for each of its n entries: 0, then 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

METHOD = "action_masks"
Bools = npt.NDArray[np.bool_]


def choices(action_space: gym.Space[Any]) -> list[int]:
    """Return the number of choices of each part of an action; M is their sum. Empty for spaces without masks."""
    if isinstance(action_space, spaces.Discrete):
        return [int(action_space.n)]
    if isinstance(action_space, spaces.MultiDiscrete):
        return [int(n) for n in action_space.nvec]
    if isinstance(action_space, spaces.MultiBinary):
        return [2] * int(np.prod(action_space.shape))
    return []


def offers_masks(env: VecEnv) -> bool:
    """Return True if every env has a method `action_masks`."""
    try:
        if not env.has_attr(METHOD):
            return False
        if type(env.unwrapped).has_attr is not VecEnv.has_attr:
            return True  # it has looked; the default trusts a `get_attr` that may have been left unwritten
        found = env.get_attr(METHOD)
    except NotImplementedError:
        return False
    return isinstance(found, Sequence) and len(found) > 0 and all(map(callable, found))


def mask_size(env: VecEnv | None, action_space: gym.Space[Any], use_masking: bool | None) -> int:
    """Return M, the number of entries of a mask; 0 where masks are not used.

    :param env: None where a model has none
    :param use_masking: None to use masks where the env offers them
    :raises ValueError: where `use_masking` is True, but the env has no masks or the action space none to apply
    """
    if use_masking not in (None, True, False):
        raise ValueError(f"use_masking must be True, False or None, got {use_masking!r}")
    size = sum(choices(action_space))
    if env is None or use_masking is False:
        return 0
    if use_masking and not size:
        raise ValueError(f"use_masking=True needs Discrete, MultiDiscrete or MultiBinary actions, got {action_space}")
    offered = offers_masks(env)
    if use_masking and not offered:
        raise ValueError(
            f"use_masking=True needs an env with a method {METHOD}(), got {env}; "
            "sb3-contrib's ActionMasker adds one to an env"
        )
    return size if offered else 0


def read_masks(env: VecEnv, action_space: gym.Space[Any], step: int) -> Bools:
    """Return the envs' masks [B, M] for the next step.

    :param step: number of the training step, for error messages
    :raises ValueError: naming env and step, where a mask has another size or allows nothing
    """
    return checked_masks(env.env_method(METHOD), action_space, env.num_envs, f" at step {step}")


def checked_masks(masks: Any, action_space: gym.Space[Any], n_envs: int, where: str = "") -> Bools:
    """Return masks of B envs as a bool array [B, M].

    :param masks: [B, ...] with M truth values for each env, or without the leading axis for a single env
    :param where: end of the sentence that names the env, for error messages
    :raises ValueError: where a mask has another size, is neither 0 nor 1, or allows nothing
    """
    sizes = choices(action_space)
    if not sizes:
        raise ValueError(f"action_masks need Discrete, MultiDiscrete or MultiBinary actions, got {action_space}")
    try:
        array = np.asarray(masks)
    except ValueError:  # masks of different sizes
        array = np.empty(0)
    if array.size != n_envs * sum(sizes) or (n_envs > 1 and len(array) != n_envs):
        raise ValueError(_of_wrong_size(masks, action_space, n_envs, where))
    if array.dtype != np.bool_ and (array.dtype.kind not in "iuf" or not np.isin(array, (0, 1)).all()):
        raise ValueError(f"action_masks{where} must be True or False, 1 or 0, got {masks}")
    joined = array.reshape(n_envs, -1).astype(bool)
    _check_allowed(joined, sizes, where)
    return joined


def _of_wrong_size(masks: Any, action_space: gym.Space[Any], n_envs: int, where: str) -> str:
    size = sum(choices(action_space))
    for env, mask in enumerate(masks if n_envs > 1 and np.ndim(masks[0]) else [masks]):
        if np.size(mask) != size:
            return f"action_masks of env {env}{where} must have {size} entries for {action_space}, got {np.size(mask)}"
    return f"action_masks{where} must have {size} entries for each of {n_envs} envs, got {len(masks)} masks"


def _check_allowed(masks: Bools, sizes: list[int], where: str) -> None:
    starts = np.cumsum([0, *sizes[:-1]])
    allowed = np.logical_or.reduceat(masks, starts, axis=1)
    if not allowed.all():
        env, part = np.argwhere(~allowed)[0].tolist()
        of_part = f" for part {part} of the action" if len(sizes) > 1 else ""
        raise ValueError(f"action_masks of env {env}{where} must allow an action{of_part}, got all False")
