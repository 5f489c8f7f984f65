"""Attributes of a model as JSON: plain values, tiers, schedules, spaces, and classes of torch by an allow-list.

What is no plain JSON becomes a table with its kind under "#". Arrays are stored beside, as safetensors. What remains,
such as a lambda or a user's class, is pickled beside, and only read from files that the user trusts.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch.nn.modules import activation

from ctrl import Tier
from ctrl.agents.policy.extractors import DictExtractor, FlatExtractor
from ctrl.agents.policy.policies import CnnMemoryPolicy, MlpMemoryPolicy, MultiInputMemoryPolicy
from ctrl.agents.saving.spaces import SPACES, space_from_parts, space_parts

KIND = "#"
LARGEST_SLOTS = 2**31
_ARRAY_KINDS = "biuf"


def _classes() -> dict[str, type]:
    """Return the classes that a file may name."""
    optimizers = [value for value in vars(torch.optim).values() if _is_optimizer(value)]
    activations = [vars(activation)[name] for name in activation.__all__]
    extractors = [CombinedExtractor, FlattenExtractor, NatureCNN, DictExtractor, FlatExtractor]
    others = [torch.nn.Identity, RMSpropTFLike, *extractors, MlpMemoryPolicy, CnnMemoryPolicy, MultiInputMemoryPolicy]
    return {_name(known): known for known in (*optimizers, *activations, *others)}


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, torch.optim.Optimizer)


def _name(known: type) -> str:
    package = known.__module__.partition(".")[0]
    return f"{package}.{known.__qualname__}"


CLASSES = _classes()
"""Classes that a file may name, by their package and name."""


class Encoder:
    """Turns values into JSON, and collects beside it what JSON can't hold."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray | torch.Tensor] = {}
        """Arrays and tensors by name."""
        self.pickled: dict[str, Any] = {}
        """Everything else, by the path of the value, such as `policy_kwargs.features_extractor_class`."""

    def encode(self, value: Any, path: str) -> Any:
        """Return a value as JSON.

        :param value: anything
        :param path: of the value, its attribute's name first
        """
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, np.generic):
            return self.encode(value.item(), path)
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {KIND: "float", "value": str(float(value))}
        parts = self._parts(value, path)
        return parts if parts is not None else self._pickled(value, path)

    def _parts(self, value: Any, path: str) -> Any:
        """Return what is made of parts; None for kinds that JSON can't hold."""
        kind = type(value)
        if kind is list:
            return self._items(value, path)
        if kind is dict:
            return self._table(value, path)
        if kind is tuple:
            return {KIND: "tuple", "items": self._items(value, path)}
        if kind is deque:
            return {KIND: "deque", "items": self._items(value, path), "maxlen": value.maxlen}
        if isinstance(value, PurePath):
            return str(value)
        if isinstance(value, np.ndarray | torch.Tensor):
            return self._array(value, path)
        if isinstance(value, type):
            return {KIND: "class", "name": _name(value)} if CLASSES.get(_name(value)) is value else None
        if kind in (Tier, ConstantSchedule, LinearSchedule, FloatSchedule, *SPACES):
            parts = space_parts(value) if kind in SPACES else vars(value)
            return {KIND: kind.__name__, **{name: self.encode(part, f"{path}.{name}") for name, part in parts.items()}}
        return None

    def _items(self, values: Any, path: str) -> list[Any]:
        return [self.encode(value, f"{path}.{index}") for index, value in enumerate(values)]

    def _table(self, table: dict[Any, Any], path: str) -> dict[str, Any]:
        if all(type(key) is str for key in table) and KIND not in table:
            return {key: self.encode(value, f"{path}.{key}") for key, value in table.items()}
        return {KIND: "dict", "items": self._items([list(pair) for pair in table.items()], path)}

    def _array(self, value: np.ndarray | torch.Tensor, path: str) -> Any:
        if isinstance(value, np.ndarray) and (type(value) is not np.ndarray or value.dtype.kind not in _ARRAY_KINDS):
            return None
        name = _unused(path, self.arrays)
        self.arrays[name] = value
        return {KIND: "array" if isinstance(value, np.ndarray) else "tensor", "name": name}

    def _pickled(self, value: Any, path: str) -> Any:
        name = _unused(path, self.pickled)
        self.pickled[name] = value
        return {KIND: "pickled", "name": name}


def _unused(name: str, taken: dict[str, Any]) -> str:
    return name if name not in taken else _unused(f"{name}'", taken)


class Decoder:
    """Turns the JSON of an `Encoder` back into values.

    :param arrays: tensors by name
    :param pickled: unpickled values by name; empty for a file that is not trusted
    :param most_elements: largest number of elements of a space
    """

    def __init__(self, arrays: dict[str, torch.Tensor], pickled: dict[str, Any], most_elements: int) -> None:
        self.arrays, self.pickled, self.most_elements = arrays, pickled, most_elements

    def attribute(self, name: str, encoded: Any) -> Any:
        """Return the value of an attribute.

        :raises ValueError: where the JSON is not what an `Encoder` writes; the message names the attribute
        """
        try:
            return self.decode(encoded)
        except Exception as error:  # whatever a wrong type brings about
            raise ValueError(f"{name} is not sound: {type(error).__name__}: {error}") from error

    def decode(self, encoded: Any) -> Any:
        """Return the value of a piece of JSON."""
        if isinstance(encoded, list):
            return [self.decode(item) for item in encoded]
        if not isinstance(encoded, dict):
            return encoded
        if KIND not in encoded:
            return {key: self.decode(value) for key, value in encoded.items()}
        return self._of_kind(encoded[KIND], {name: value for name, value in encoded.items() if name != KIND})

    def _of_kind(self, kind: Any, encoded: dict[str, Any]) -> Any:
        if kind in ("array", "tensor"):
            tensor = self.arrays[encoded["name"]]
            return tensor.clone() if kind == "tensor" else tensor.numpy().copy()
        if kind == "pickled":
            return self.pickled[encoded["name"]]
        parts = {name: self.decode(value) for name, value in encoded.items()}
        if kind in SPACE_NAMES:
            return space_from_parts(SPACE_NAMES[kind], parts, self.most_elements)
        if kind not in _MAKERS:
            raise ValueError(f"there is no kind {kind!r} of value")
        return _MAKERS[kind](**parts)


def pickled_names(encoded: Any) -> list[str]:
    """Return the names of the pickled values that a piece of JSON refers to."""
    if isinstance(encoded, dict) and encoded.get(KIND) == "pickled":
        return [str(encoded.get("name"))]
    parts = encoded.values() if isinstance(encoded, dict) else encoded if isinstance(encoded, list) else ()
    return [name for part in parts for name in pickled_names(part)]


SPACE_NAMES = {space.__name__: space for space in SPACES}


def _known_class(name: str) -> type:
    if name not in CLASSES:
        raise ValueError(f"class {name!r} is none of those that a file may name")
    return CLASSES[name]


def _float(value: str) -> float:
    if value not in ("nan", "inf", "-inf"):
        raise ValueError(f"{value!r} is no float")
    return float(value)


def _tier(slots: int, rate: int, compressor: str) -> Tier:
    if max(slots, rate) > LARGEST_SLOTS:
        raise ValueError(f"a Tier has at most {LARGEST_SLOTS:,} slots, got {slots} at rate {rate}")
    return Tier(slots, rate, compressor)


def _constant(val: float) -> ConstantSchedule:
    return ConstantSchedule(_number(val))


def _linear(start: float, end: float, end_fraction: float) -> LinearSchedule:
    if not 0 < _number(end_fraction) <= 1:
        raise ValueError(f"end_fraction must be above 0 and at most 1, got {end_fraction}")
    return LinearSchedule(_number(start), _number(end), end_fraction)


def _float_schedule(value_schedule: Any) -> FloatSchedule:
    if not isinstance(value_schedule, ConstantSchedule | LinearSchedule) and not callable(value_schedule):
        raise ValueError(f"{value_schedule!r} is no schedule")
    return FloatSchedule(value_schedule)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"a schedule needs finite numbers of at least 0, got {value!r}")
    return value


_MAKERS: dict[str, Any] = {
    "float": _float,
    "tuple": lambda items: tuple(items),
    "deque": lambda items, maxlen: deque(items, maxlen),
    "dict": lambda items: dict(items),
    "class": _known_class,
    "Tier": _tier,
    "ConstantSchedule": _constant,
    "LinearSchedule": _linear,
    "FloatSchedule": _float_schedule,
}
"""Functions that rebuild a value from its parts, by kind."""
