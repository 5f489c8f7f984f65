"""Files of named tensors in safetensors' format, whose headers are checked before any tensor is read.

A file also holds a JSON object and a checksum over that and all tensors. safetensors has none, so a flipped bit in a
weight would go unnoticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

SHOWN = 4
"""Most names of tensors that an error lists."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""Dtypes by their names in a header."""
_CHECKSUM = "sha256"


class Layout(NamedTuple):
    """Shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> Layout:
        """Return the layout of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    def __str__(self) -> str:
        return f"{self.dtype} of {self.shape}"


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], data: dict[str, Any], key: str) -> None:
    """Write tensors and a JSON object to a file, at once: a file of that name is replaced only by a whole one.

    :param key: the name of the JSON object in the file's metadata
    :raises ValueError: where a tensor holds numbers that are not finite
    """
    path = Path(path)
    own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    check_finite(own)
    text = json.dumps(data, allow_nan=False)
    content = safetensors.torch.save(own, {key: text, _CHECKSUM: _checksum(text, own)})
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:80]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(partial, 0o666 & ~_umask())  # as any new file; a temporary one is private
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


class TensorFile:
    """An open file of tensors: its header is read and checked, its tensors are not yet read."""

    def __init__(self, file: Any, key: str) -> None:
        self._file = file
        metadata = file.metadata() or {}
        if key not in metadata or _CHECKSUM not in metadata:
            raise ValueError(f"it is no file of this kind, its metadata lacks {key!r} or {_CHECKSUM!r}")
        self._text, self._sum = metadata[key], metadata[_CHECKSUM]
        self.data = _parse(self._text)
        """The JSON object."""
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        if unknown := {part.get_dtype() for part in slices.values()} - _DTYPES.keys():
            raise ValueError(f"it has tensors of the unknown dtype {_listed(unknown)}")
        self.layout = {
            name: Layout(tuple(part.get_shape()), _DTYPES[part.get_dtype()]) for name, part in slices.items()
        }
        """Shape and dtype of each tensor. safetensors has made sure that they fit the file's size."""

    def check_layout(self, expected: Mapping[str, Layout]) -> None:
        """Raise a ValueError unless the file has exactly the expected tensors, with these shapes and dtypes."""
        if missing := expected.keys() - self.layout.keys():
            raise ValueError(f"it lacks the tensors {_listed(missing)}")
        if extra := self.layout.keys() - expected.keys():
            raise ValueError(f"it has the tensors {_listed(extra)}, which nothing here uses")
        for name, layout in expected.items():
            if self.layout[name] != layout:
                raise ValueError(f"tensor {name} must be {layout}, got {self.layout[name]}")

    def read(self) -> dict[str, Tensor]:
        """Read all tensors.

        :raises ValueError: where they don't fit the checksum, or hold numbers that are not finite
        """
        tensors = {name: self._file.get_tensor(name) for name in self.layout}
        if _checksum(self._text, tensors) != self._sum:
            raise ValueError("it is damaged, its content does not fit its checksum")
        check_finite(tensors)
        return tensors


@contextmanager
def open_tensors(path: str | os.PathLike[str], key: str) -> Iterator[TensorFile]:
    """Open a file that `write_tensors` wrote, and read its header.

    A ValueError inside the `with` block gets the file's name.

    :param key: the name of the JSON object in the file's metadata
    :raises FileNotFoundError: where there is no such file
    :raises ValueError: where it is damaged, or not a file of this kind
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise ValueError("it is no file")
        with safetensors.safe_open(path, framework="pt") as file:
            yield TensorFile(file, key)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} cannot be loaded: it is damaged or no safetensors file ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError that names the first tensor with numbers that are not finite."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name} must be finite, but holds NaN or infinity")


def _parse(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its JSON is damaged ({str(error)[:120]})") from error
    if not isinstance(data, dict):
        raise ValueError(f"its JSON must be an object, got {str(data)[:80]}")
    return data


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a text and of all tensors with their names, shapes and dtypes."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\n{name} {Layout.of(tensor)}\n".encode())
        total.update(memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))  # type: ignore[arg-type]
    return total.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _listed(names: set[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name[:80] for name in sorted(names)[:SHOWN]) + more
