"""An env as bytes, so that other processes can have copies of it."""

from __future__ import annotations

import io
from typing import Any

import cloudpickle
from stable_baselines3.common.vec_env import VecEnv, VecNormalize


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """`VecNormalize` leaves out what it wraps; here it comes along."""

    def reducer_override(self, obj: Any) -> Any:
        """Say how an object is rebuilt; classes of the main script go by value, as cloudpickle does it."""
        if isinstance(obj, VecNormalize):
            return _rebuild_normalize, (type(obj), obj.__getstate__(), obj.venv)
        return super().reducer_override(obj)


def _rebuild_normalize(kind: type[VecNormalize], state: dict[str, Any], venv: VecEnv) -> VecNormalize:
    normalize: VecNormalize = kind.__new__(kind)
    normalize.__setstate__(state)
    normalize.set_venv(venv)
    return normalize


def packed(what: Any) -> bytes:
    """Return `what`, which may hold envs, as bytes for `cloudpickle.loads`."""
    file = io.BytesIO()
    _Pickler(file).dump(what)
    return file.getvalue()
