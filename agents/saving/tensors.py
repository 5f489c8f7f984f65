"""Tensors as safetensors: the header is checked before any data is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ctrl.agents.saving.archive import parse_json

Tensors = dict[str, Tensor]


def to_bytes(tensors: Mapping[str, Tensor | np.ndarray]) -> bytes:
    """Return tensors by name as safetensors."""
    return save({name: _detached(tensor) for name, tensor in tensors.items()})


def _detached(tensor: Tensor | np.ndarray) -> Tensor:
    """Return a copy on the CPU that shares no memory: safetensors refuses tensors that do."""
    return torch.as_tensor(tensor).detach().cpu().clone(memory_format=torch.contiguous_format)


def from_bytes(content: bytes, name: str) -> Tensors:
    """Return the tensors of safetensors.

    :param content: the bytes
    :param name: of the entry, for messages
    :raises ValueError: where the bytes are something else, or declare more than they hold
    """
    try:
        _check_sizes(content)
        return load(content)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"entry {name!r} is not sound safetensors: {error}") from None


def _check_sizes(content: bytes) -> None:
    """Refuse a header that declares other sizes than there are bytes."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError(f"its header has {length:,} bytes, the entry {len(content):,}")
    header: Any = parse_json(content[8 : 8 + length].decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    declared = sum(math.prod(map(int, told["shape"])) for tensor, told in header.items() if tensor != "__metadata__")
    if declared > 2 * len(content):  # the smallest numbers take half a byte
        raise ValueError(f"it declares {declared:,} numbers in {len(content):,} bytes")
