"""Plain data from files, checked against the annotations of dataclasses before anything is built from it.

Run folders may come from anywhere, so whatever their files hold ends in one line and never in a traceback.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from ctrl.experiments.errors import UserError

T = TypeVar("T")
LARGEST = 2**63
"""Limit of whole numbers: no count or seed reaches it, and arrays could not hold it."""


@contextmanager
def reading(path: Path | str, what: str) -> Iterator[None]:
    """Turn any error in the `with` block, which handles what a file holds, into a `UserError` that names the file.

    :param path: the file, or the name of a part of it
    :param what: description of what the file should hold, such as "no results of a suite"
    """
    try:
        yield
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path} holds {what}: {error}") from error
    except Exception as error:  # a wrong kind of value raises TypeError, KeyError, ZeroDivisionError, MemoryError …
        raise UserError(f"{path} holds {what}: {shown(error)}") from error


def shown(value: object) -> str:
    """Return a value, or an error, as a short text in one line."""
    text = f"{type(value).__name__}: {value}" if isinstance(value, Exception) else repr(value)
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:200]} …"


def build(kind: type[T], data: Any, where: str) -> T:
    """Build a dataclass from plain data, after all of its fields were checked.

    :param kind: frozen dataclass; its fields may be dataclasses, and lists or tables of them
    :param data: plain data, as `dataclasses.asdict` gives it
    :param where: name of the data, for messages
    :raises UserError: where a field is missing, unknown or of another kind, or the dataclass refuses a value
    """
    if not isinstance(data, dict):
        raise UserError(f"{where} must be a table, got {shown(data)}")
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(cast(Any, kind))}
    unknown = [name for name in data if name not in known]
    missing = [name for name, field in known.items() if name not in data and _is_required(field)]
    if unknown or missing:
        told = f"it has no {', '.join(missing)}" if missing else f"unknown are {shown(unknown[:3])}"
        raise UserError(f"{where} is not sound: {told}")
    values = {name: convert(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    with reading(where, "no sound values"):
        return kind(**values)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def convert(kind: Any, value: Any, where: str) -> Any:
    """Return a value as an annotation wants it.

    :param kind: annotation: a plain type, a dataclass, or a union, list, tuple or table of these
    :raises UserError: where the value is of another kind
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return convert(arguments[0], value, where)
    if origin in (Union, types.UnionType):
        return _any_of(arguments, value, where)
    if origin is Literal:
        return _require(value in arguments and isinstance(value, str), value, value, f"one of {arguments}", where)
    if origin in (list, tuple, Sequence):
        _require(isinstance(value, list | tuple), None, value, "a list", where)
        items = [convert(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin in (dict, Mapping):
        _require(isinstance(value, dict), None, value, "a table", where)
        return {str(key): convert(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    return _plain(kind, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if is_dataclass(kind):
        if isinstance(value, cast(type, kind)):
            return value
        return build(cast(Any, kind), value, where)
    if kind is Path:
        _require(isinstance(value, str) and "\0" not in value, None, value, "a path", where)
        return Path(value)
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
    fits = {
        bool: isinstance(value, bool),
        int: whole,
        float: whole or isinstance(value, float),
        str: isinstance(value, str),
    }
    return _require(fits.get(kind, False), value, value, f"a {getattr(kind, '__name__', kind)}", where)


def _any_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """Return a value as the first of several kinds that fits."""
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    for kind in others[:-1]:
        try:
            return convert(kind, value, where)
        except UserError:
            continue
    return convert(others[-1], value, where)


def _require(fits: bool, result: Any, value: Any, wanted: str, where: str) -> Any:
    if not fits:
        raise UserError(f"{where} must be {wanted}, got {shown(value)}")
    return result
