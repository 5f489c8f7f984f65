"""Pickling of envs, so that other processes can have copies."""

from __future__ import annotations

import inspect
import io
from typing import Any

import cloudpickle
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickler that also takes wrappers of a `VecEnv`.

    These hold the attributes of their class, which can't be pickled, and `VecNormalize` leaves out its env.
    """

    def reducer_override(self, obj: Any) -> Any:
        """Return the way to rebuild an object; classes of the main script are pickled by value, as by cloudpickle."""
        if isinstance(obj, VecEnvWrapper):
            state = getattr(type(obj), "__getstate__", vars)(obj)
            kept = {name: value for name, value in state.items() if name not in ("venv", "class_attributes")}
            return _rebuild, (type(obj), kept, obj.venv)
        return super().reducer_override(obj)


def _rebuild(kind: type[VecEnvWrapper], state: dict[str, Any], venv: VecEnv) -> VecEnvWrapper:
    wrapper: VecEnvWrapper = kind.__new__(kind)
    if isinstance(wrapper, VecNormalize):
        wrapper.__setstate__(state)
        wrapper.set_venv(venv)
    else:
        vars(wrapper).update(state, venv=venv, class_attributes=dict(inspect.getmembers(kind)))
    return wrapper


def packed(what: Any) -> bytes:
    """Return `what`, which may hold envs, as bytes for `cloudpickle.loads`."""
    file = io.BytesIO()
    _Pickler(file).dump(what)
    return file.getvalue()
