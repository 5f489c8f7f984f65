"""Observation and action spaces as plain parts, and back."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
from gymnasium import Space, spaces

SPACES: tuple[type, ...] = (
    *(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
    *(spaces.Dict, spaces.Tuple),
)
"""Spaces that a file holds without a pickle; classes derived from them are not among them."""


def space_parts(space: Any) -> dict[str, Any]:
    """Return the parts that a space is rebuilt from, numbers and arrays."""
    if isinstance(space, spaces.Box):
        low, high = _short(space.low), _short(space.high)
        return {"shape": list(space.shape), "dtype": space.dtype.name, "low": low, "high": high}
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n), "start": int(space.start), "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.MultiDiscrete):
        return {"nvec": space.nvec, "start": space.start, "dtype": np.dtype(space.dtype).name}
    if isinstance(space, spaces.MultiBinary):
        return {"n": space.n if isinstance(space.n, int) else [int(size) for size in space.n]}
    if isinstance(space, spaces.Tuple):
        return {"items": list(space.spaces)}
    return {"items": [list(pair) for pair in space.spaces.items()]}


def _short(bound: np.ndarray) -> Any:
    """Return one number for a bound that is the same everywhere."""
    return bound.flat[0].item() if bound.size and bool((bound == bound.flat[0]).all()) else bound


def space_from_parts(kind: type, parts: dict[str, Any], most_elements: int) -> Space[Any]:
    """Rebuild a space.

    :param kind: one of `SPACES`
    :param parts: as `space_parts` gives them
    :param most_elements: largest number of elements
    :raises ValueError: where it would have more, or the parts do not fit
    """
    shape = parts.get("n", ()) if kind is spaces.MultiBinary else parts.get("shape", ())
    if math.prod(_sizes([shape] if isinstance(shape, int) else shape)) > most_elements:
        raise ValueError(f"{kind.__name__} of shape {shape} is too large for the model")
    space: Space[Any] = _BUILDERS[kind](**parts)
    if isinstance(space, spaces.Box) and (np.isnan(space.low).any() or np.isnan(space.high).any()):
        raise ValueError("a bound is NaN")
    return space


def _sizes(shape: Any) -> list[int]:
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in shape):
        raise ValueError(f"{shape!r} is no shape")
    return list(shape)


def _box(shape: list[int], dtype: str, low: Any, high: Any) -> Space[Any]:
    of_type = np.dtype(dtype)
    if of_type.kind not in "biuf":
        raise ValueError(f"{dtype!r} is no type of numbers")
    bounds = [bound if isinstance(bound, np.ndarray) else np.full(shape, bound, dtype) for bound in (low, high)]
    if any(bound.dtype != of_type or bound.shape != tuple(shape) for bound in bounds):
        raise ValueError(f"the bounds of a Box of shape {shape} and type {dtype} are of another shape or type")
    return spaces.Box(bounds[0], bounds[1], tuple(shape), dtype=of_type.type)


def _discrete(n: int, start: int, dtype: str) -> Space[Any]:
    given: Any = {} if dtype == "int64" else {"dtype": np.dtype(dtype).type}  # older gymnasium knows int64 alone
    space: Space[Any] = spaces.Discrete(n, start=start, **given)
    return space


def _multi_discrete(nvec: np.ndarray, start: np.ndarray, dtype: str) -> Space[Any]:
    if not isinstance(nvec, np.ndarray) or nvec.dtype.kind not in "iu":
        raise ValueError(f"nvec must be whole numbers, got {nvec!r}")
    return spaces.MultiDiscrete(nvec, dtype=np.dtype(dtype).type, start=start)


_BUILDERS: dict[type, Any] = {
    spaces.Box: _box,
    spaces.Discrete: _discrete,
    spaces.MultiDiscrete: _multi_discrete,
    spaces.MultiBinary: lambda n: spaces.MultiBinary(n),
    spaces.Dict: lambda items: spaces.Dict(OrderedDict(items)),
    spaces.Tuple: lambda items: spaces.Tuple(items),
}
