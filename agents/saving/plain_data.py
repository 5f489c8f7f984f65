"""Nested data as JSON and arrays, and back: what a saved file can hold without pickles.

    arrays = {}
    data = encode({"step": 3, "memory": torch.zeros(2)}, arrays)  # JSON, with the arrays' names in place of arrays
    decode(data, arrays)

Numbers of arrays come back bit for bit. Numpy's generators are plain data too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ctrl.agents.saving.json_values import KIND, Decoder, Encoder

Arrays = dict[str, Any]
"""Arrays or tensors by name."""

GENERATORS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}
"""Kinds of numpy's bit generators, by name."""
WIDEST = 8
"""Bytes of a number in an array."""


class NotPlainError(TypeError):
    """A value that is no plain data, so that JSON and arrays can't hold it."""


def encode(value: Any, arrays: Arrays) -> Any:
    """Return plain data as JSON, and add copies of its arrays to `arrays`.

    :raises NotPlainError: where a part is neither a number, text, array, tensor, generator nor a container of such
    """
    encoder = _PlainEncoder()
    data = encoder.encode(value, "state")
    arrays.update(encoder.arrays)
    return data


def decode(data: Any, arrays: Mapping[str, Any]) -> Any:
    """Return the value that `encode` was given.

    :raises ValueError: where the data are not what `encode` makes
    """
    tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
    return _PlainDecoder(tensors, {}, 0).attribute("the state of training", data)


class _PlainEncoder(Encoder):
    """Encoder that pickles nothing."""

    def _parts(self, value: Any, path: str) -> Any:
        if isinstance(value, np.random.Generator) and type(value.bit_generator).__name__ in GENERATORS:
            return {KIND: "generator", "state": self.encode(dict(value.bit_generator.state), path)}
        if isinstance(value, dict):
            return super()._parts(dict(value), path)
        if isinstance(value, np.ndarray):
            return self._copied(value, path)
        return super()._parts(value, path)

    def _copied(self, array: np.ndarray, path: str) -> Any:
        """Return an array as a copy: the run goes on while a file is written."""
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > WIDEST:
            return None
        copy = np.array(array, dtype=array.dtype.newbyteorder("="), order="C")
        if array.dtype.kind == "u" and array.dtype.itemsize > 1:  # which torch hardly knows
            signed = super()._parts(copy.view(f"i{array.dtype.itemsize}"), path)
            return {KIND: "unsigned", "array": signed}
        return super()._parts(copy, path)

    def _pickled(self, value: Any, path: str) -> Any:
        raise NotPlainError(f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which is no plain data")


class _PlainDecoder(Decoder):
    def _of_kind(self, kind: Any, encoded: dict[str, Any]) -> Any:
        if kind == "generator":
            return _generator(self.decode(encoded["state"]))
        if kind == "unsigned":
            signed = self.decode(encoded["array"])
            return signed.view(f"u{signed.dtype.itemsize}")
        return super()._of_kind(kind, encoded)


def _generator(state: dict[str, Any]) -> np.random.Generator:
    bits = GENERATORS[state["bit_generator"]](0)
    bits.state = state
    return np.random.Generator(bits)
