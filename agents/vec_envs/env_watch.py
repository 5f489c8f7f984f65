"""Checks of what single envs return inside a vectorised env, while that is stepped or reset.

A vectorised env puts results into arrays, which hides much: `terminated="False"` becomes True there, and a number fills
a whole row. So for the time of a call each env, or the pipe from its process, is replaced by a stand-in that checks
what passes. In between the vectorised env is as its owner made it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common import monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper

from ctrl.agents.utils.nan_checks import NonFiniteError
from ctrl.agents.vec_envs.env_contract import (
    THIS_STEP,
    EnvContractError,
    any_value_fits,
    check_reset,
    check_result,
    is_usual,
)
from ctrl.agents.vec_envs.infos import episode_of

POLL_SECONDS = 1.0
"""Interval in seconds at which a waiting learner looks whether an env's process still runs."""
OF_VECTOR_ENV = ("final_obs", "final_info", "_final_obs", "_final_info")
"""Keys by which a gymnasium vector env hands over ends of episodes. What an env puts there for itself is left out."""

_JOINED = (*OF_VECTOR_ENV, "episode")


class EnvWatch:
    """Watch over the single envs of a vectorised env.

        watch = EnvWatch(vec_env)
        with watch.watching():
            vec_env.step(actions)

    It knows the envs of `DummyVecEnv`, `SubprocVecEnv`, `SyncVectorEnv` and `AsyncVectorEnv`. Others have none.

    :param env: the vectorised env, of stable-baselines3 or gymnasium; wrappers are looked through
    :param finite: whether numbers must be finite
    """

    def __init__(self, env: Any, *, finite: bool = False) -> None:
        self._base = unwrapped(env)
        self._name, kind = next((kind for of, kind in _KINDS.items() if isinstance(self._base, of)), ("", _EnvStandIn))
        single = getattr(self._base, "single_observation_space", None)
        space = self._base.observation_space if single is None else single
        parts: Any = getattr(self._base, self._name) if self._name else ()
        self._stand_ins = type(parts)(kind(part, index, space, finite, self) for index, part in enumerate(parts))
        self._faults: list[Exception] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let the stand-ins take their places for a call."""
        if not self._name:
            yield
            return
        own = getattr(self._base, self._name)
        setattr(self._base, self._name, self._stand_ins)
        try:
            yield
        except Exception:
            self._raise_first()
            raise
        finally:
            setattr(self._base, self._name, own)
        self._raise_first()

    def add(self, fault: Exception) -> None:
        """Note a fault, which is raised once all pipes have been read: an answer left there would pass for another."""
        self._faults.append(fault)

    def _raise_first(self) -> None:
        if self._faults:
            fault = self._faults[0]
            self._faults.clear()
            raise fault

    def is_alive(self, index: int) -> bool:
        """Return True if the process of an env still runs."""
        return bool(self._base.processes[index].is_alive())

    def forget_answers(self) -> None:
        """Let a `SubprocVecEnv` be closed although a process has ended: it must not wait for that one's answer."""
        if isinstance(self._base, SubprocVecEnv):
            self._base.waiting = False


def unwrapped(env: Any) -> Any:
    """Return the vectorised env inside all wrappers of stable-baselines3 or gymnasium."""
    if isinstance(env, VecEnv):
        while isinstance(env, VecEnvWrapper):
            env = env.venv
        return env
    return env.unwrapped


class _StandIn:
    """Stand-in for an env, or for the pipe from its process, that passes on everything else."""

    def __init__(self, inner: Any, index: int, space: spaces.Space[Any], finite: bool, watch: EnvWatch) -> None:
        self.__dict__.update(_inner=inner, _index=index, _space=space, _finite=finite, _watch=watch)
        self.__dict__.update(_record=None, _asked=None, _dtype=space.dtype)
        self.__dict__["_shape"] = space.shape if any_value_fits(space) else None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and pickling look for these before there is an inner object
            raise AttributeError(name)
        return getattr(self._inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._inner, name, value)

    def _checked_step(self, result: Any) -> tuple[Any, Any, bool, bool, dict[Any, Any]]:
        if not is_usual(result, self._shape, self._dtype):
            result = check_result(result, self._space, self._index)
        observation, reward, terminated, truncated, info = result
        if self._finite:
            self._check_finite(observation, "observation")
            self._check_finite(reward, "reward")
        return observation, reward, terminated, truncated, self._own_info(info)

    def _check_finite(self, value: Any, name: str) -> None:
        for key, part in value.items() if isinstance(value, dict) else (("", value),):
            found = np.asarray(part)
            if found.dtype.kind == "f" and not np.isfinite(found).all():
                part_name = f"{name}[{key!r}]" if key else name
                index = np.argwhere(~np.isfinite(found))[0].tolist()
                raise NonFiniteError(f"{part_name} is not finite {THIS_STEP}: env {self._index}, index {index}")

    def _own_info(self, info: dict[Any, Any]) -> dict[Any, Any]:
        """Return a copy of an info, since envs may return the same dict again, without the record of an older episode.

        `Monitor` writes its record into the env's dict, where it stays if the env does not make another.
        """
        info = dict(info)
        if "episode" in info and (record := episode_of(info)) is not None:
            if record == self._record:
                del info["episode"]
            self.__dict__["_record"] = dict(record)
        return info


class _EnvStandIn(_StandIn):
    """Stand-in for an env in this process."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[Any, Any]]:
        try:
            result = self._inner.step(action)
        except Exception as error:
            raise self._explained(error)  # noqa: B904 - mostly the error itself
        observation, reward, terminated, truncated, info = self._checked_step(result)
        if terminated or truncated:  # an env that fills one array again and again would overwrite it in its reset
            observation = copy.deepcopy(observation)
        return observation, reward, terminated, truncated, info

    def reset(self, **options: Any) -> tuple[Any, dict[Any, Any]]:
        try:
            result = self._inner.reset(**options)
        except Exception as error:
            raise self._explained(error)  # noqa: B904 - mostly the error itself
        observation, info = check_reset(result, self._space, self._index)
        return observation, dict(info)

    def _explained(self, error: Exception) -> Exception:
        """Return an error of the env as it is, with a note of the env's index."""
        if _comes_from_monitor(error):  # it reads rewards and infos before anything here can
            fault = EnvContractError(f"what env {self._index} returned cannot be read {THIS_STEP}: {error}")
            fault.__cause__ = error
            return fault
        note(error, f"raised by env {self._index}")
        return error


class _GymnasiumStandIn(_EnvStandIn):
    """Stand-in for an env of a `SyncVectorEnv`."""

    def _own_info(self, info: dict[Any, Any]) -> dict[Any, Any]:
        return _for_vector_env(super()._own_info(info))

    def reset(self, **options: Any) -> tuple[Any, dict[Any, Any]]:
        observation, info = super().reset(**options)
        return observation, _for_vector_env(info)


def _for_vector_env(info: dict[Any, Any]) -> dict[Any, Any]:
    """Leave out what a gymnasium vector env would take for its own, or cannot join to `Monitor`'s records."""
    if info.keys().isdisjoint(_JOINED):
        return info
    left_out = OF_VECTOR_ENV if episode_of(info) is not None else _JOINED
    return {key: value for key, value in info.items() if key not in left_out}


class _PipeStandIn(_StandIn):
    """Stand-in for the pipe from an env's process. A process that has ended is noticed, whoever holds its pipe open."""

    def send(self, message: Any) -> None:
        self.__dict__["_asked"] = message[0]
        try:
            self._inner.send(message)
        except OSError as error:
            raise self._ended() from error

    def recv(self) -> Any:
        try:
            while not self._inner.poll(POLL_SECONDS):
                if not self._watch.is_alive(self._index) and not self._inner.poll():
                    raise EOFError
            answer = self._inner.recv()
        except (EOFError, ConnectionError) as error:
            raise self._ended() from error
        try:
            return self._received(answer)
        except ValueError as fault:
            self._watch.add(fault)
            return self._in_place_of(answer)

    def _in_place_of(self, answer: Any) -> Any:
        """Return something that can be gone on with until the fault in the answer is raised."""
        return answer

    def _received(self, result: Any) -> Any:
        """Check an answer of `SubprocVecEnv`'s process, to a step (observation, reward, done, info, reset info)."""
        if self._asked == "reset":
            return check_reset(result, self._space, self._index)
        if self._asked != "step":
            return result
        observation, reward, done, info, reset_info = result
        observation, reward, done, _, info = self._checked_step((observation, reward, done, False, info))
        if done and _shared(info.get("terminal_observation"), observation):
            raise EnvContractError(
                f"env {self._index} fills one array with all observations, so its reset has overwritten the episode's "
                f"last one {THIS_STEP}; return a copy"
            )
        return observation, reward, done, info, reset_info

    def _ended(self) -> EOFError:
        self._watch.forget_answers()
        return EOFError(f"the process of env {self._index} has ended; its own error is in the output above")


class _AsyncPipeStandIn(_PipeStandIn):
    """Stand-in for the pipe from a process of `AsyncVectorEnv`, which answers with (result, success)."""

    def _received(self, result: Any) -> Any:
        answer, success = result
        if not success or self._asked != "step":
            return result
        observation, *rest = answer
        shown = self._any_observation() if observation is None else observation  # None: it lies in shared memory
        _, reward, terminated, truncated, info = self._checked_step((shown, *rest))
        return (observation, reward, terminated, truncated, info), success

    def _in_place_of(self, answer: Any) -> Any:
        return (answer[0][0], 0.0, False, False, {}), True

    def _any_observation(self) -> Any:
        if "_sample" not in self.__dict__:
            self.__dict__["_sample"] = copy.deepcopy(self._space).sample()
        return self._sample


_KINDS: dict[type, tuple[str, type[_StandIn]]] = {
    DummyVecEnv: ("envs", _EnvStandIn),
    SubprocVecEnv: ("remotes", _PipeStandIn),
    SyncVectorEnv: ("envs", _GymnasiumStandIn),
    AsyncVectorEnv: ("parent_pipes", _AsyncPipeStandIn),
}
"""By kind of vectorised env, the attribute that holds its envs or pipes, and their stand-ins."""


def _shared(one: Any, other: Any) -> bool:
    """Return True if two observations are one array, or dicts that have one in common."""
    if isinstance(one, dict) and isinstance(other, dict):
        return any(_shared(part, other.get(key)) for key, part in one.items())
    return one is other and isinstance(one, np.ndarray | list)


def _comes_from_monitor(error: BaseException) -> bool:
    """Return True if an error was raised in stable-baselines3's `Monitor` itself, and not in the env below it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename == monitor.__file__


def note(error: BaseException, text: str) -> None:
    """Add a note to an error, which its traceback shows from Python 3.11 on."""
    if hasattr(error, "add_note"):
        error.add_note(text)
