"""Keys that the agents read from an env's `info`, by stable-baselines3's conventions; all else is the env's own.

An env may use the same keys for things of its own. What does not have the convention's form is left alone.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from ctrl.agents.vec_envs.env_contract import EnvContractError


def episode_of(info: Mapping[Any, Any]) -> dict[str, Any] | None:
    """Return the record of an ended episode, as `Monitor` writes it: a dict with its return "r" and length "l"."""
    record = info.get("episode")
    if isinstance(record, dict) and _is_number(record.get("r")) and _is_number(record.get("l")):
        return record
    return None


def note_episodes(
    infos: Sequence[Mapping[Any, Any]], dones: np.ndarray | None, records: deque[Any], successes: deque[Any]
) -> None:
    """Add the records and successes of ended episodes, as stable-baselines3 does, but only what has their form.

    :param infos: of B envs
    :param dones: [B] true where an episode ended; None for nowhere
    """
    for env, info in enumerate(infos):
        if "episode" in info and (record := episode_of(info)) is not None:
            records.append(record)
        if dones is not None and dones[env] and (success := success_of(info)) is not None:
            successes.append(success)


def success_of(info: Mapping[Any, Any]) -> float | None:
    """Return `is_success` of an ended episode as a number; None where it is missing or none."""
    success: Any = info.get("is_success")
    return float(success) if _is_number(success) else None


def group_of(info: Mapping[Any, Any]) -> int | None:
    """Return the number of the `group` that an ended episode belongs to; None where it is missing or none."""
    group = info.get("group")
    return int(group) if isinstance(group, int | np.integer) and not isinstance(group, bool) else None


def was_truncated(info: Mapping[Any, Any], env: int, step: int) -> bool:
    """Return True if a time limit cut the episode that an info ends; False where `TimeLimit.truncated` is missing.

    :raises EnvContractError: where it is neither True nor False
    """
    cut = info.get("TimeLimit.truncated", False)
    if isinstance(cut, bool | np.bool_):
        return bool(cut)
    raise EnvContractError(f"TimeLimit.truncated of env {env} must be True or False at step {step}, got {cut!r}")


def _is_number(value: Any) -> bool:
    """Return True for one real number or truth value, also a numpy one."""
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value.item()
    return isinstance(value, Real | np.bool_) and math.isfinite(value)
