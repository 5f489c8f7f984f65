"""State of vector envs in mid-episode, wrapper by wrapper, so that a saved run can be continued.

An env that has `get_state()` and `set_state(state)` gives and takes its state as plain data and arrays: numbers, text,
arrays, numpy generators, and lists, tuples and dicts of such. Any env or `VecEnv` may have these two methods; native
tasks have them. Wrappers of gymnasium and stable-baselines3 are known. All other envs are pickled, if they can be, and
their state is taken back only from files that the user trusts.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import EzPickle
from gymnasium.vector import SyncVectorEnv, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize

from ctrl.agents.saving.plain_data import NotPlainError, encode
from ctrl.agents.utils.normalisation import running_moments, set_running_moments

State = dict[str, Any]

KNOWN = ("gymnasium.", "stable_baselines3.")
"""Packages whose wrappers keep their state in attributes of plain data."""
NO_STATE = (
    *("env", "venv", "envs", "env_fns", "spec", "metadata", "class_attributes", "render_mode"),
    *("_saved_kwargs", "_cached_spec", "_metadata", "t_start", "start_time", "waiting"),
)
"""Attributes of these wrappers that are no state."""


class EnvStateError(ValueError):
    """An env that can't be put into a saved state; the message says why."""


def env_state(env: VecEnv) -> list[State]:
    """Return the state of a vector env: one entry for each wrapper, from the outermost to the env itself.

    An entry has `kind`, the class, and either `state`, plain data, or `pickle`, bytes, or `lost`, the
    reason why there is neither.
    """
    return [{"kind": _kind(layer), **_layer_state(layer)} for layer in layers_of(env)]


def set_env_state(env: VecEnv, states: list[State], *, trust: bool) -> None:
    """Put a vector env, built like the saved one, into a saved state.

    :param trust: whether pickles may be loaded, which can run any code
    :raises EnvStateError: where the state can't be taken back; the env must then begin new episodes
    """
    layers = layers_of(env)
    found, saved = [_kind(layer) for layer in layers], [state["kind"] for state in states]
    if found != saved:
        raise EnvStateError(f"it was saved with another env ({' of '.join(saved)}; now {' of '.join(found)})")
    for state in states:
        if "lost" in state:
            raise EnvStateError(state["lost"])
        if "pickle" in state and not trust:
            raise EnvStateError(f"the state of {state['kind']} is a pickle, which only load(..., trust=True) reads")
    for layer, state in zip(layers, states, strict=True):
        try:
            _set_layer_state(layer, state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise EnvStateError(f"the state of {state['kind']} does not fit: {error}") from error
    env.unwrapped._reset_seeds()  # loading a model seeds its env, for a reset that does not come
    env.unwrapped._reset_options()


def set_normalisation(env: VecEnv | None, states: list[State]) -> bool:
    """Give a `VecNormalize` the saved running statistics; return False where one was saved and `env` has none."""
    saved = [state["state"] for state in states if "moments" in (state.get("state") or {})]
    found = [] if env is None else [layer for layer in layers_of(env) if isinstance(layer, VecNormalize)]
    for layer, state in zip(found, saved, strict=False):
        _check_moments(layer, state["moments"])
        set_running_moments(layer, state["moments"])
    return len(found) >= len(saved)


def layers_of(env: VecEnv) -> list[VecEnv]:
    """Return a vector env's wrappers, the outermost first, and the env itself."""
    layers = [env]
    while isinstance(layers[-1], VecEnvWrapper):
        layers.append(layers[-1].venv)
    return layers


def _kind(env: Any) -> str:
    return f"{type(env).__module__}.{type(env).__qualname__}"


def _layer_state(layer: Any) -> State:
    try:
        state = _plain_state(layer)
        encode(state, {})  # raises where a part is no plain data
        return {"state": state}
    except (NotPlainError, AttributeError):
        return _pickled(layer)


def _plain_state(layer: Any) -> Any:
    if isinstance(layer, VecNormalize):
        kept = {"returns": layer.returns, "old_reward": layer.old_reward, "old_obs": getattr(layer, "old_obs", None)}
        return {"moments": running_moments(layer), **kept}
    if _has_protocol(layer):
        return layer.get_state()
    if isinstance(layer, DummyVecEnv):
        dummy = {"obs": dict(layer.buf_obs), "dones": layer.buf_dones, "rewards": layer.buf_rews}
        return {**dummy, "envs": [_chain_state(env) for env in layer.envs]}
    if isinstance(layer, VecEnvWrapper):
        return _known_attributes(layer)
    raise NotPlainError(f"{_kind(layer)} has no get_state()")


def _set_layer_state(layer: Any, entry: State) -> None:
    if "pickle" in entry:
        return _unpickle_into(layer, entry["pickle"])
    state = entry["state"]
    if isinstance(layer, VecNormalize):
        _check_moments(layer, state["moments"])
        set_running_moments(layer, state["moments"])
        layer.returns, layer.old_reward, layer.old_obs = state["returns"], state["old_reward"], state["old_obs"]
    elif _has_protocol(layer):
        layer.set_state(state)
    elif isinstance(layer, DummyVecEnv):
        for key, value in state["obs"].items():
            layer.buf_obs[key][...] = value
        layer.buf_dones[...], layer.buf_rews[...] = state["dones"], state["rewards"]
        for env, own in zip(layer.envs, state["envs"], strict=True):
            _set_chain_state(env, own)
    else:
        _set_attributes(layer, state)
    return None


def _has_protocol(env: Any) -> bool:
    """Return True if the class itself, and not what it wraps, has `get_state` and `set_state`."""
    return all(callable(getattr(type(env), name, None)) for name in ("get_state", "set_state"))


# Pickles


def _pickled(layer: Any) -> State:
    if any(isinstance(env, EzPickle) for env in _inner_envs(layer)):
        return {"lost": f"{_kind(layer)} holds an env that pickles its arguments and not its state"}
    kept = {name: value for name, value in vars(layer).items() if name not in ("venv", "env_fns", "class_attributes")}
    try:
        return {"pickle": cloudpickle.dumps(kept)}
    except Exception as error:  # pickling runs code of envs, which may raise anything
        return {"lost": f"{_kind(layer)} can't be pickled ({type(error).__name__})"}


def _unpickle_into(layer: Any, pickled: bytes) -> None:
    try:
        vars(layer).update(cloudpickle.loads(pickled))
    except Exception as error:
        raise EnvStateError(f"the pickle of {_kind(layer)} can't be loaded: {error}") from error


def _inner_envs(layer: Any) -> list[Any]:
    """Return the single envs and their wrappers inside a vector env of this process."""
    inner = getattr(layer, "env", layer)
    envs = getattr(getattr(inner, "unwrapped", inner), "envs", [])
    return [wrapper for env in envs for wrapper in chain_of(env)]


# Single envs, and gymnasium's vector envs


def chain_of(env: Any) -> list[Any]:
    """Return a gymnasium env's wrappers, the outermost first, and the env itself."""
    chain = [env]
    while chain[-1] is not chain[-1].unwrapped:
        chain.append(chain[-1].env)
    return chain


def gymnasium_state(env: gym.Env[Any, Any] | VectorEnv[Any, Any, Any]) -> list[State]:
    """Return the plain state of a gymnasium env or vector env, wrapper by wrapper.

    :raises NotPlainError: where a wrapper or the env has none
    """
    return _chain_state(env)


def set_gymnasium_state(env: Any, states: list[State]) -> None:
    """Put a gymnasium env or vector env, built like the saved one, into a state of `gymnasium_state`."""
    _set_chain_state(env, states)


def _chain_state(env: Any) -> list[State]:
    return [
        {"kind": _kind(each), "spaces": _space_generators(each), "state": _single_state(each)} for each in chain_of(env)
    ]


def _set_chain_state(env: Any, states: list[State]) -> None:
    chain = chain_of(env)
    found, saved = [_kind(each) for each in chain], [state["kind"] for state in states]
    if found != saved:
        raise EnvStateError(f"it was saved with another env ({' of '.join(saved)}; now {' of '.join(found)})")
    for each, state in zip(chain, states, strict=True):
        if _has_protocol(each):
            each.set_state(state["state"])
        elif isinstance(each, SyncVectorEnv):
            _set_attributes(each, state["state"]["own"])
            for inner, own in zip(each.envs, state["state"]["envs"], strict=True):
                _set_chain_state(inner, own)
        else:
            _set_attributes(each, state["state"])
        for space, generator in zip(_spaces_of(each), state["spaces"], strict=True):
            space._np_random = generator


def _single_state(env: Any) -> Any:
    if _has_protocol(env):
        return env.get_state()
    if isinstance(env, SyncVectorEnv):
        return {"own": _known_attributes(env), "envs": [_chain_state(inner) for inner in env.envs]}
    if env is env.unwrapped:
        raise NotPlainError(f"{_kind(env)} has no get_state()")
    return _known_attributes(env)


def _spaces_of(env: Any) -> list[spaces.Space[Any]]:
    """Return the env's own spaces, parts of composite ones included."""
    own = [space for space in vars(env).values() if isinstance(space, spaces.Space)]
    parts = [list(space.spaces.values()) for space in own if isinstance(space, spaces.Dict)]
    return [*own, *(part for inner in parts for part in inner)]


def _space_generators(env: Any) -> list[np.random.Generator | None]:
    return [space._np_random for space in _spaces_of(env)]


# Attributes of known wrappers


def _known_attributes(owner: Any) -> State:
    """Return the attributes of a known wrapper that may change from step to step.

    :raises NotPlainError: where the class is not known
    """
    if not type(owner).__module__.startswith(KNOWN):
        raise NotPlainError(f"{_kind(owner)} has no get_state()")
    return {name: _value(value) for name, value in vars(owner).items() if _is_state(name, value)}


def _is_state(name: str, value: Any) -> bool:
    return name not in NO_STATE and not isinstance(value, spaces.Space | Enum | type) and not callable(value)


def _value(value: Any) -> Any:
    if type(value).__module__.startswith(KNOWN):
        return {"attributes": _known_attributes(value)}
    return {key: _value(part) for key, part in value.items()} if isinstance(value, dict) else value


def _set_attributes(owner: Any, state: State) -> None:
    for name, value in state.items():
        if not hasattr(owner, name) or not _is_state(name, getattr(owner, name)):
            raise ValueError(f"{_kind(owner)} keeps no {name!r}")
        setattr(owner, name, _with_values(getattr(owner, name), value))


def _with_values(present: Any, value: Any) -> Any:
    """Return the saved value of an attribute; an object of a known package stays, with its saved attributes."""
    if isinstance(value, dict) and set(value) == {"attributes"}:
        _set_attributes(present, value["attributes"])
        return present
    if isinstance(present, dict) and isinstance(value, dict):
        return {key: _with_values(present.get(key), part) for key, part in value.items()}
    return value


def _check_moments(normalize: VecNormalize, moments: Any) -> None:
    present = running_moments(normalize)
    if not isinstance(moments, dict) or set(moments) != set(present):
        raise EnvStateError("the normalisation of observations has other parts")
    for name, value in moments.items():
        array = np.asarray(value)
        if (
            array.shape != present[name].shape
            or not np.isfinite(array).all()
            or ((array < 0).any() and "mean" not in name)
        ):
            raise EnvStateError(f"the normalisation's {name} is no statistic of shape {present[name].shape}")
