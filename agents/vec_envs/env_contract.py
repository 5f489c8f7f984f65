"""Checks of what envs return, against the spaces that they declare. A good step costs a few comparisons.

`check_batch` is for the observations of all envs at once, `check_result` for what a single env returned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

THIS_STEP = "at this step"
"""Words in an error's message that `at_step` replaces, since an env does not know the number of the training step."""
NUMBERS = frozenset({float, int, np.float32, np.float64, np.int32, np.int64})
BOOLS = frozenset({bool, np.bool_})
NUMERIC = "fiub"
"""Kinds of numpy dtypes that hold real numbers."""


class EnvContractError(ValueError):
    """Error for an env that returned what no env may return. The message names the env, the step and the value."""


def at_step(error: Exception, step: int) -> None:
    """Put the number of the training step into the message of an error raised by a check."""
    error.args = tuple(
        part.replace(THIS_STEP, f"at step {step}") if isinstance(part, str) else part for part in error.args
    )


def check_batch(observations: Any, space: spaces.Space[Any], num_envs: int, name: str = "observation") -> Any:
    """Return the observations [B, ...] of all envs in the dtype of their space, as they are if they have it already.

    :param space: space of one env's observation; a Dict is checked key by key
    :raises EnvContractError: where keys, shape or kind are not those of the space, or the dtype cannot hold a value
    """
    if isinstance(space, spaces.Dict):
        _check_keys(observations, space, name)
        parts = space.spaces.items()
        return {key: check_batch(observations[key], part, num_envs, f"{name}[{key!r}]") for key, part in parts}
    if space.shape is None:
        return observations
    expected = (num_envs, *space.shape)
    array = observations if isinstance(observations, np.ndarray) else _as_array(observations, name)
    if array.shape != expected:
        raise EnvContractError(f"{name} must be of shape {expected} {THIS_STEP}, got {array.shape}")
    if array.dtype != space.dtype:
        array = _cast(array, space, lambda row: f"{name} of env {row}", name)
    _check_range(array, space, lambda row: f"{name} of env {row}")
    return array


def check_observation(observation: Any, space: spaces.Space[Any], name: str) -> None:
    """Check the observation of one env, as `check_batch` does.

    :param name: name for messages, such as "observation of env 2"
    """
    if isinstance(space, spaces.Dict):
        _check_keys(observation, space, name)
        for key, part in space.spaces.items():
            check_observation(observation[key], part, f"{name}[{key!r}]")
        return
    if space.shape is None:
        return
    is_array = isinstance(observation, np.ndarray)
    if is_array and observation.dtype == space.dtype and observation.shape == space.shape and any_value_fits(space):
        return
    array = observation if is_array else _as_array(observation, name)
    if array.shape != space.shape:
        raise EnvContractError(f"{name} must be of shape {space.shape} {THIS_STEP}, got {array.shape}")
    _check_range(_cast(array, space, lambda _: name, name)[None], space, lambda _: name)


def check_result(result: Any, space: spaces.Space[Any], env: int) -> tuple[Any, Any, bool, bool, dict[Any, Any]]:
    """Return the observation, reward, terminated, truncated and info of one env's step.

    :raises EnvContractError: where one of them is missing or of the wrong kind
    """
    if not isinstance(result, tuple) or len(result) != 5:
        raise EnvContractError(
            f"step of env {env} must return (observation, reward, terminated, truncated, info) {THIS_STEP}, "
            f"got {_told(result)}"
        )
    observation, reward, terminated, truncated, info = result
    check_observation(observation, space, f"observation of env {env}")
    if type(reward) not in NUMBERS:
        _check_number(reward, f"reward of env {env}")
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if type(flag) not in BOOLS:
            _check_bool(flag, f"{name} of env {env}")
    check_info(info, f"info of env {env}")
    return observation, reward, bool(terminated), bool(truncated), info


def is_usual(result: Any, shape: Any, dtype: Any) -> bool:
    """Return True for a step's result of just the right types and an array in just the right form: the usual, quickly.

    :param shape: of the observation; None where observations are no arrays, or their values have to be checked
    """
    if type(result) is not tuple or len(result) != 5 or shape is None:
        return False
    observation, reward, terminated, truncated, info = result
    return (
        type(observation) is np.ndarray
        and observation.shape == shape
        and observation.dtype == dtype
        and type(reward) in NUMBERS
        and type(terminated) in BOOLS
        and type(truncated) in BOOLS
        and type(info) is dict
    )


def check_reset(result: Any, space: spaces.Space[Any], env: int) -> tuple[Any, dict[Any, Any]]:
    """Return the observation and the info of one env's reset.

    :raises EnvContractError: where one of them is missing or of the wrong kind
    """
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise EnvContractError(f"reset of env {env} must return (observation, info), a dict last, got {_told(result)}")
    check_observation(result[0], space, f"observation of env {env}, from its reset,")
    return result[0], result[1]


def check_info(info: Any, name: str) -> None:
    """Refuse an info that is no dict."""
    if not isinstance(info, dict):
        raise EnvContractError(f"{name} must be a dict {THIS_STEP}, got {_told(info)}")


def check_rewards(rewards: Any, num_envs: int) -> np.ndarray:
    """Return the rewards [B] of all envs as an array, in the dtype that they have.

    :raises EnvContractError: where they are of another shape, or no numbers
    """
    array = rewards if isinstance(rewards, np.ndarray) else _as_array(rewards, "rewards")
    _check_flat(array, num_envs, "rewards")
    if array.dtype.kind not in NUMERIC:
        raise EnvContractError(f"rewards must be numbers {THIS_STEP}, got {array.dtype} {array.tolist()}")
    return array


def check_flags(flags: Any, num_envs: int, name: str) -> np.ndarray:
    """Return a copy [B] bool of all envs' flags, such as dones; numbers may only be 0 and 1.

    :raises EnvContractError: where they are of another shape or kind
    """
    array = flags if isinstance(flags, np.ndarray) else _as_array(flags, name)
    _check_flat(array, num_envs, name)
    if array.dtype.kind != "b" and not (array.dtype.kind in NUMERIC and bool(np.isin(array, (0, 1)).all())):
        raise EnvContractError(f"{name} must be True or False {THIS_STEP}, got {array.dtype} {array.tolist()}")
    return np.array(array, dtype=bool)


def check_infos(infos: Any, num_envs: int) -> None:
    """Refuse infos that are not one dict for each env."""
    if not isinstance(infos, list | tuple) or len(infos) != num_envs:
        raise EnvContractError(f"infos must be {num_envs} dicts, one for each env, {THIS_STEP}, got {_told(infos)}")
    if set(map(type, infos)) != {dict}:
        for env, info in enumerate(infos):
            check_info(info, f"info of env {env}")


def _check_flat(array: np.ndarray, num_envs: int, name: str) -> None:
    if array.shape != (num_envs,):
        raise EnvContractError(f"{name} must be of shape {(num_envs,)} {THIS_STEP}, got {array.shape}")


def _check_number(value: Any, name: str) -> None:
    array = _as_array(value, name)
    if array.shape or array.dtype.kind not in NUMERIC:
        raise EnvContractError(f"{name} must be a number {THIS_STEP}, got {_told(value)}")


def _check_bool(value: Any, name: str) -> None:
    array = _as_array(value, name)
    if array.shape or array.dtype.kind not in NUMERIC or array.item() not in (0, 1):
        raise EnvContractError(f"{name} must be True or False {THIS_STEP}, got {_told(value)}")


def _check_keys(observation: Any, space: spaces.Dict, name: str) -> None:
    if not isinstance(observation, Mapping):
        raise EnvContractError(f"{name} must be a dict of {list(space.spaces)} {THIS_STEP}, got {_told(observation)}")
    if observation.keys() != space.spaces.keys():
        missing = [key for key in space.spaces if key not in observation]
        extra = [key for key in observation if key not in space.spaces]
        raise EnvContractError(
            f"{name} must have the keys of its space {THIS_STEP}; missing are {missing}, not declared are {extra}"
        )


def _as_array(value: Any, name: str) -> np.ndarray:
    """Return numbers of any kind as an array; what is no array of numbers becomes one of objects or text."""
    try:
        return np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise EnvContractError(f"{name} must be an array {THIS_STEP}, got {_told(value)}: {error}") from error


def _cast(array: np.ndarray, space: spaces.Space[Any], row_name: Callable[[int], str], name: str) -> np.ndarray:
    """Return an array in the dtype of a space; integers and bools must keep their values."""
    dtype = np.dtype(space.dtype or array.dtype)
    if array.dtype.kind not in NUMERIC:
        raise EnvContractError(f"{name} must be numbers of {dtype} {THIS_STEP}, got {array.dtype}: {_told(array)}")
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind != "f" and not np.array_equal(cast, array):
        row, *_ = np.argwhere(np.atleast_1d(cast != array))[0].tolist()
        value = np.atleast_1d(array[cast != array])[0]
        raise EnvContractError(
            f"{row_name(row)} must be of {dtype} {THIS_STEP}, which cannot hold {value} ({array.dtype})"
        )
    return cast


def any_value_fits(space: spaces.Space[Any]) -> bool:
    """Return True for a space whose bounds need no check: beyond those of a Box an agent merely sees odd values."""
    return isinstance(space, spaces.Box)


def _check_range(array: np.ndarray, space: spaces.Space[Any], name: Callable[[int], str]) -> None:
    """Refuse indices [B, ...] beyond a space's number of choices: one-hot encodings have no place for them."""
    if any_value_fits(space):
        return
    if isinstance(space, spaces.Discrete):
        low, high = int(space.start), int(space.start + space.n)
        bad = (array < low) | (array >= high)
    elif isinstance(space, spaces.MultiDiscrete):
        bad = (array < space.start) | (array >= space.start + space.nvec)
    else:
        bad = (array != 0) & (array != 1)
    if bad.any():
        place = tuple(np.argwhere(bad)[0].tolist())
        raise EnvContractError(f"{name(place[0])} must lie in {space} {THIS_STEP}, got {array[place]}")


def _told(value: Any) -> str:
    """Describe a value in a few words."""
    text = repr(value)
    size = f" of {len(value)}" if isinstance(value, tuple | list | dict) else ""
    return f"{type(value).__name__}{size} {text if len(text) <= 80 else text[:77] + '...'}"
