"""Core without a memory: it shows how far an agent gets with the current observation alone."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ctrl.core import MemoryCore, Unrolled, require_positive


class FeedforwardState(NamedTuple):
    """State of `FeedforwardCore`: an empty leaf."""

    empty: Tensor
    """[B, 0] without numbers; its shape holds the batch size."""


torch.serialization.add_safe_globals([FeedforwardState])  # so that `torch.load` takes a saved state


class FeedforwardCore(MemoryCore[FeedforwardState]):
    """A multilayer perceptron with ReLU after each layer.

    :param input_size: I
    :param width: units per layer, and the output size
    :param layers: stacked layers
    :raises ValueError: where a size is not a positive whole number
    """

    def __init__(self, input_size: int, *, width: int = 128, layers: int = 1) -> None:
        require_positive(width=width, layers=layers)
        super().__init__(input_size, output_size=width)
        self.width = width
        self.layers = layers
        sizes = pairwise([input_size, *[width] * layers])
        self.mlp = nn.Sequential(*(module for fan in sizes for module in (nn.Linear(*fan), nn.ReLU())))

    def structure(self) -> tuple[()]:
        """Return nothing: the shapes of the weights tell all."""
        return ()

    def initial_state(self, batch_size: int) -> FeedforwardState:
        """Return the empty state."""
        return FeedforwardState(torch.zeros(batch_size, 0, device=self.device, dtype=self.dtype))

    def _step(self, inputs: Tensor, state: FeedforwardState) -> tuple[Tensor, FeedforwardState]:
        return self.mlp(inputs), self.initial_state(inputs.shape[0])

    def _unroll(self, inputs: Tensor, state: FeedforwardState, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
        return Unrolled(self.mlp(inputs), self.initial_state(inputs.shape[0]), inputs.new_zeros(()), {})
