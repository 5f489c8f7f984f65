"""Records of the values that envs return, call by call, and the comparison of two records."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import iterate


class Event(NamedTuple):
    """Values returned by one call of `reset` or `step`, of a single env or a vector env."""

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: dict[str, Any]
    final: Any = None
    """Last observation of an episode that ended, if `observation` is already the first one of the next episode."""

    @property
    def ended(self) -> Any:
        """True if an episode ended with this step; [B] for a vector env."""
        return np.logical_or(self.terminated, self.truncated)


class Restarting:
    """Single env that restarts by itself, as a copy in gymnasium's vector envs does.

    :param mode: `NEXT_STEP` resets in the step after an episode's last step, `SAME_STEP` in the last step itself.
    """

    def __init__(self, env: gym.Env[Any, Any], mode: AutoresetMode = AutoresetMode.NEXT_STEP) -> None:
        self.env = env
        self.action_space = env.action_space
        self.observation_space = env.observation_space
        self._mode = mode
        self._waiting = False

    def reset(self, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        self._waiting = False
        return self.env.reset(seed=seed)

    def step(self, action: Any) -> Event:
        """Take one step, or restart if the episode has ended."""
        if self._waiting:
            observation, info = self.reset()
            return Event(observation, 0.0, False, False, info)
        observation, reward, terminated, truncated, info = self.env.step(action)
        event = Event(observation, reward, terminated, truncated, info)
        if not event.ended:
            return event
        if self._mode is AutoresetMode.NEXT_STEP:
            self._waiting = True
            return event
        observation, info = self.reset()
        return event._replace(observation=observation, info=info, final=event.observation)


_BY_IDENTITY: Any = object.__eq__

Playable = Restarting | VectorEnv[Any, Any, Any]


def begin(envs: Playable, seed: int) -> Event:
    """Reset with a seed, and return the event; its reward is 0 and its flags are False."""
    observation, info = envs.reset(seed=seed)
    count = envs.num_envs if isinstance(envs, VectorEnv) else None
    never = False if count is None else np.zeros(count, dtype=np.bool_)
    return Event(observation, 0.0 if count is None else np.zeros(count), never, never, info)


def actions(envs: Playable, seed: int) -> Iterator[Any]:
    """Yield random actions without end, the same for the same seed. The env's own action space is not changed."""
    space = copy.deepcopy(envs.action_space)
    space.seed(seed)
    while True:
        yield space.sample()


def play(
    envs: Playable,
    *,
    seed: int,
    calls: int,
    episodes: int | None = None,
    action_seed: int = 0,
    tick: Callable[[], None] | None = None,
) -> Iterator[Event]:
    """Yield the events of random play: the reset and all steps.

    :param seed: seed of the env
    :param calls: largest number of steps
    :param episodes: stop one step after each copy has ended so many episodes, so that play stops within an episode
    :param action_seed: seed of the random actions
    :param tick: function called after each step
    """
    event = begin(envs, seed)
    yield event
    ended = np.zeros_like(np.atleast_1d(event.ended), dtype=np.int64)
    for action, _ in zip(actions(envs, action_seed), range(calls), strict=False):
        event = Event(*envs.step(action))
        yield event
        if tick is not None:
            tick()
        if episodes is not None and ended.min() >= episodes:
            return
        ended += np.atleast_1d(event.ended)


def copy_of(event: Event, envs: VectorEnv[Any, Any, Any], index: int) -> Event:
    """Return one copy's part of a vector env's event, without infos."""
    observation = list(iterate(envs.observation_space, event.observation))[index]
    final = event.info["final_obs"][index] if "final_obs" in event.info else None
    return Event(observation, event.reward[index], event.terminated[index], event.truncated[index], {}, final)


def keep(event: Event) -> Event:
    """Return a copy that later steps cannot change."""
    return copy.deepcopy(event)


def difference(one: Any, other: Any, name: str = "") -> str | None:
    """Return a text that says where two values first differ, None if they are equal.

    NaN equals NaN, and a number equals a numpy scalar of the same value.

    :param name: name of the value in the text
    """
    if isinstance(one, dict) and isinstance(other, dict):
        return _of_dicts(one, other, name)
    if isinstance(one, Event) and isinstance(other, Event):
        return _of_items(Event._fields, one, other, name)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return f"{name} has {len(one)} items and {len(other)}"
        return _of_items([f"[{index}]" for index in range(len(one))], one, other, name)
    if _is_array(one) and _is_array(other):
        return _of_arrays(np.asarray(one), np.asarray(other), name)
    return None if _equal(one, other) else f"{name} is {_short(one)} and {_short(other)}"


def _of_dicts(one: dict[Any, Any], other: dict[Any, Any], name: str) -> str | None:
    if one.keys() != other.keys():
        return f"{name} has the keys {sorted(map(str, one))} and {sorted(map(str, other))}"
    return _of_items([f"[{key!r}]" for key in one], list(one.values()), [other[key] for key in one], name)


def _of_items(labels: Any, one: Any, other: Any, name: str) -> str | None:
    found = (difference(a, b, f"{name}{label}") for label, a, b in zip(labels, one, other, strict=True))
    return next((text for text in found if text is not None), None)


def _of_arrays(one: npt.NDArray[Any], other: npt.NDArray[Any], name: str) -> str | None:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return f"{name} is {one.dtype} of shape {one.shape} and {other.dtype} of shape {other.shape}"
    if one.dtype == object:
        return _of_items([f"[{index}]" for index in range(one.size)], one.ravel(), other.ravel(), name)
    unequal = one != other
    if one.dtype.kind in "fc":
        unequal &= ~(np.isnan(one) & np.isnan(other))
    if not unequal.any():
        return None
    where = tuple(int(i) for i in np.argwhere(unequal)[0])
    return f"{name}{list(where) if where else ''} is {one[where]} and {other[where]}"


def _is_array(value: Any) -> bool:
    """Return True for arrays of numpy and of other packages, such as a tensor. Numpy scalars count as numbers."""
    return hasattr(value, "__array__") and not isinstance(value, np.generic | type)


def _has_items(value: Any) -> bool:
    return isinstance(value, list | tuple) or np.ndim(value) > 0


def _equal(one: Any, other: Any) -> bool:
    if type(one) is type(other) and type(one).__eq__ is _BY_IDENTITY:
        return True  # a comparison by identity says nothing about values
    if type(one) is not type(other) and (_has_items(one) or _has_items(other)):
        return False
    return bool(one == other) or bool(one != one and other != other)


def _short(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= 60 else text[:57] + "…"
