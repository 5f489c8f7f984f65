"""An env as bytes, so that other processes can have copies of it."""

from __future__ import annotations

import inspect
import io
from typing import Any

import cloudpickle
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Wrappers of a `VecEnv` hold what their class has, which can't be pickled; `VecNormalize` leaves out its env."""

    def reducer_override(self, obj: Any) -> Any:
        """Say how an object is rebuilt; classes of the main script go by value, as cloudpickle does it."""
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
