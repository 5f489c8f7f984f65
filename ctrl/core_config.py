"""Name, input size and options that a core was built from, as plain data."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import wraps
from typing import Any, NamedTuple

import numpy as np


class Arguments(NamedTuple):
    """Arguments of a call, copied so that later changes of a list don't reach them."""

    positional: tuple[Any, ...]
    named: dict[str, Any]

    def bind(self, factory: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
        """Return the first argument, and the others by name with the factory's defaults.

        :raises ValueError: where the factory takes any number of arguments, so that they have no names
        """
        signature = inspect.signature(factory)
        bound = signature.bind(*self.positional, **self.named)
        bound.apply_defaults()
        (_, first), *others = bound.arguments.items()
        options: dict[str, Any] = {}
        for name, value in others:
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                raise ValueError(f"{factory!r} takes *{name}, but options must have names")
            options |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        return first, options


class NotPlain(NamedTuple):
    """Stands for an argument that is not plain data. Keeping the argument itself might keep the core from pickling."""

    text: str


@dataclass(frozen=True)
class CoreConfig:
    """Arguments of `make_core` that build a core again."""

    name: str
    """The core's name in `make_core`."""
    input_size: int
    """I, the size of an observation embedding."""
    options: dict[str, Any]
    """All options, those left open with their defaults."""


def keep(positional: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
    """Copy the arguments of a call."""
    return Arguments(_copied(positional), _copied(named))


def _copied(value: Any) -> Any:
    """Copy lists, tuples and dicts. Plain values and frozen dataclasses stay; others only leave a text."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {key: _copied(part) for key, part in value.items()}
    is_frozen = is_dataclass(value) and not isinstance(value, type) and type(value).__hash__ is not None
    if value is None or isinstance(value, bool | int | float | str) or is_frozen:
        return value
    return NotPlain(repr(value))


def encode(value: Any, name: str, kinds: dict[str, type]) -> Any:
    """Return an option as JSON data. Dicts, tuples and dataclasses become dicts with one key that names their kind.

    :param name: the option's, for the error
    :param kinds: dataclasses that may occur, by name
    :raises ValueError: where the option is not plain
    """
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return value
    if type(value) is list:
        return [encode(part, name, kinds) for part in value]
    if type(value) is tuple:
        return {"tuple": [encode(part, name, kinds) for part in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: encode(part, name, kinds) for key, part in value.items()}}
    if kinds.get(type(value).__name__) is type(value):
        return {type(value).__name__: {key: encode(part, name, kinds) for key, part in vars(value).items()}}
    shown = value.text if isinstance(value, NotPlain) else repr(value)
    allowed = ", ".join(kinds)
    raise ValueError(f"option {name} must be of numbers, texts, lists, dicts and {allowed} to be saved, got {shown}")


def decode(data: Any, kinds: dict[str, type]) -> Any:
    """Return the option that `encode` wrote.

    :raises ValueError: where the data is not of `encode`
    """
    if data is None or isinstance(data, bool | int | float | str):
        return data
    if isinstance(data, list):
        return [decode(part, kinds) for part in data]
    ((kind, content),) = data.items() if isinstance(data, dict) and len(data) == 1 else [(None, data)]
    if kind == "tuple" and isinstance(content, list):
        return tuple(decode(part, kinds) for part in content)
    if kind == "dict" and isinstance(content, dict):
        return {key: decode(part, kinds) for key, part in content.items()}
    if kind in kinds and isinstance(content, dict):
        try:
            return kinds[kind](**{key: decode(part, kinds) for key, part in content.items()})
        except TypeError as error:
            raise ValueError(f"{kind} does not fit: {error}") from error
    raise ValueError(f"an option must be plain data, got {str(data)[:80]}")


def remembering(constructor: Callable[..., None]) -> Callable[..., None]:
    """Wrap a constructor so that the core keeps the arguments of the outermost one, that of its own class."""

    @wraps(constructor)
    def construct(self: Any, *args: Any, **options: Any) -> None:
        if "constructed" not in vars(self):  # torch's own __setattr__ works only after nn.Module.__init__
            vars(self)["constructed"] = keep(args, options)
        constructor(self, *args, **options)

    return construct
