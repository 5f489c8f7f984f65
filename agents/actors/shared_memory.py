"""Numpy arrays in shared memory. The memory has no name, so nothing is left behind however the processes end."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Mapping

import numpy as np

Layout = dict[str, tuple[tuple[int, ...], str]]
"""Shape and dtype of each array, by name."""

ALIGNMENT = 64
"""Alignment of arrays in bytes: a processor's cache line."""


def layout_of(arrays: Mapping[str, np.ndarray]) -> Layout:
    """Return the layout of arrays like these."""
    return {name: (array.shape, array.dtype.str) for name, array in arrays.items()}


def anonymous_file(content: bytes = b"") -> int:
    """Return the descriptor of a file without a name, which disappears as soon as no process has it open."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("ctrl")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    with open(fd, "wb", closefd=False) as whole:
        whole.write(content)
    return fd


class SharedArrays:
    """Arrays by name, in one piece of memory. Another process maps it by the descriptor `fd` and the same layout.

    :param layout: shapes and dtypes, the same in all processes
    :param fd: descriptor of the memory that another process made; None to make it, filled with zeros
    """

    def __init__(self, layout: Layout, fd: int | None = None) -> None:
        sizes = {name: math.prod(shape) * np.dtype(kind).itemsize for name, (shape, kind) in layout.items()}
        total = sum(_aligned(size) for size in sizes.values()) or ALIGNMENT
        if fd is None:
            fd = anonymous_file()
            os.ftruncate(fd, total)
        self.fd = fd
        memory = mmap.mmap(fd, total)
        self.arrays: dict[str, np.ndarray] = {}
        offset = 0
        for name, (shape, kind) in layout.items():
            count = math.prod(shape)
            self.arrays[name] = np.frombuffer(memory, dtype=kind, count=count, offset=offset).reshape(shape)
            offset += _aligned(sizes[name])

    def close(self) -> None:
        """Close the descriptor; the memory lasts as long as somebody uses an array."""
        os.close(self.fd)

    def forget(self) -> None:
        """Drop the arrays, so that a stored traceback that holds this object does not keep the memory."""
        self.arrays.clear()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
