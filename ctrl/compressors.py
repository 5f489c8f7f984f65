"""Compressors: how consecutive slots become one (Rae et al. 2020, arXiv 1911.05507, section 3.1).

A compressor is a module that maps blocks [N, m, D] to slots [N, D]. Register your own under a name with
`register_compressor`, and use the name in a `Tier`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ctrl.core import choose


class MeanCompressor(nn.Module):
    """The mean over the block; the paper's `mean pooling`."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()

    def forward(self, blocks: Tensor) -> Tensor:
        """[N, m, D] -> [N, D]."""
        return blocks.mean(dim=1)


class MaxCompressor(nn.Module):
    """The maximum over the block, feature by feature; the paper's `max pooling`."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()

    def forward(self, blocks: Tensor) -> Tensor:
        """[N, m, D] -> [N, D]."""
        return blocks.amax(dim=1)


class ConvCompressor(nn.Module):
    """A 1D convolution whose kernel and stride are the rate, without bias; it starts as the mean."""

    def __init__(self, width: int, rate: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width).repeat(rate, 1) / rate)  # [m * D, D]

    def forward(self, blocks: Tensor) -> Tensor:
        """[N, m, D] -> [N, D]."""
        return blocks.flatten(start_dim=1) @ self.weight


_COMPRESSORS: dict[str, Callable[[int, int], nn.Module]] = {
    "mean": MeanCompressor,
    "max": MaxCompressor,
    "conv": ConvCompressor,
}


def compressor_names() -> list[str]:
    """Return the names that a `Tier` can use as its compressor."""
    return sorted(_COMPRESSORS)


def register_compressor(name: str, factory: Callable[[int, int], nn.Module]) -> None:
    """Make a compressor usable by name.

    :param name: a new name
    :param factory: called with (width, rate); returns a module that maps blocks [N, m, D] to slots [N, D]
    :raises ValueError: if the name is taken
    """
    if name in _COMPRESSORS:
        raise ValueError(f"compressor {name!r} is already registered")
    _COMPRESSORS[name] = factory


def make_compressor(name: str, width: int, rate: int) -> nn.Module:
    """Build the compressor `name` for slots of `width` features, `rate` of them a block."""
    module: nn.Module = choose("compressor", name, _COMPRESSORS)(width, rate)
    return module
