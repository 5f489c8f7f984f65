"""One layer: attention over the memory, joined to the layer's input.

There are four ways to join the attention output to the input, from a plain sum to the gates of GTrXL. Each is a tuple
of weights with one method, `join`. Acting calls it thousands of times a second and keeps the weights at hand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrl.compressive.attention.block_mask import BlockMask
from ctrl.compressive.attention.memory_attention import Attended, Columns, MemoryAttention, NoNorm, SlotNorm
from ctrl.core import require_positive


class Gate(nn.GRUCell):
    """GRU-type gate in place of a residual sum (GTrXL, equations 5 to 7): the residual stream is the GRU's memory.

    Its bias favours keeping, so at first it lets the stream pass. As in torch's cell, the reset gate acts after the
    matrix product, and not before it as in GTrXL.
    """

    KEEP = 2.0

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def reset_parameters(self) -> None:
        """Set Xavier weights for each of the three maps, and zero biases except that of keeping."""
        with torch.no_grad():
            for weights in (self.weight_ih, self.weight_hh):
                for part in weights.chunk(3):
                    nn.init.xavier_uniform_(part)
            self.bias_ih.zero_()
            self.bias_hh.zero_()
            self.bias_ih.chunk(3)[1].fill_(self.KEEP)  # the three are: reset, keep, candidate

    def weights(self) -> GateWeights:
        """Return the weights in the order of `torch.gru_cell`."""
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


GateWeights = tuple[Tensor, Tensor, Tensor, Tensor]


class PlainJoin(NamedTuple):
    """The sum of input and attention output: no gate, no feed-forward part."""

    output: Tensor

    def join(self, inputs: Tensor, attended: Tensor) -> Tensor:
        """Return a layer's outputs [N, D] from its inputs [N, D] and its attention output `attended` [N, D]."""
        return torch.addmm(inputs, attended, self.output.t())


class PreNormJoin(NamedTuple):
    """Residual sums, and a feed-forward part with a layer norm before it."""

    output: Tensor
    norm: Tensor
    norm_bias: Tensor
    widen: Tensor
    widen_bias: Tensor
    narrow: Tensor
    narrow_bias: Tensor

    def join(self, inputs: Tensor, attended: Tensor) -> Tensor:
        """Return the outputs [N, D], see `PlainJoin.join`."""
        hidden = torch.addmm(inputs, attended, self.output.t())
        normed = torch.layer_norm(hidden, self.norm.shape, self.norm, self.norm_bias)
        wide = F.linear(normed, self.widen, self.widen_bias).relu_()
        return hidden + F.linear(wide, self.narrow, self.narrow_bias)


class GatedJoin(NamedTuple):
    """GTrXL's gates in place of the sums (Parisotto et al. 2020, arXiv 1910.06764)."""

    output: Tensor
    attention_gate: GateWeights
    norm: Tensor
    norm_bias: Tensor
    widen: Tensor
    widen_bias: Tensor
    narrow: Tensor
    narrow_bias: Tensor
    feedforward_gate: GateWeights

    def join(self, inputs: Tensor, attended: Tensor) -> Tensor:
        """Return the outputs [N, D], see `PlainJoin.join`."""
        update = F.linear(attended, self.output).relu_()
        hidden = torch.gru_cell(update, inputs, *self.attention_gate)
        normed = torch.layer_norm(hidden, self.norm.shape, self.norm, self.norm_bias)
        wide = F.linear(normed, self.widen, self.widen_bias).relu_()
        update = F.linear(wide, self.narrow, self.narrow_bias).relu_()
        return torch.gru_cell(update, hidden, *self.feedforward_gate)


class PostNormJoin(NamedTuple):
    """Residual sums, normed afterwards, as in Transformer-XL (Dai et al. 2019, section 3.3) and in the paper."""

    output: Tensor
    attention_norm: Tensor
    attention_norm_bias: Tensor
    widen: Tensor
    widen_bias: Tensor
    narrow: Tensor
    narrow_bias: Tensor
    feedforward_norm: Tensor
    feedforward_norm_bias: Tensor

    def join(self, inputs: Tensor, attended: Tensor) -> Tensor:
        """Return the outputs [N, D], see `PlainJoin.join`."""
        hidden = torch.addmm(inputs, attended, self.output.t())
        hidden = torch.layer_norm(hidden, self.attention_norm.shape, self.attention_norm, self.attention_norm_bias)
        wide = F.linear(hidden, self.widen, self.widen_bias).relu_()
        outputs = hidden + F.linear(wide, self.narrow, self.narrow_bias)
        norm = self.feedforward_norm
        return torch.layer_norm(outputs, norm.shape, norm, self.feedforward_norm_bias)


class MemoryLayer(nn.Module, ABC):
    """Attention over the memory, joined to the layer's input.

    :param attention: the layer's attention
    :param width: D
    :param feedforward: hidden units of the feed-forward part, in layers that have one
    """

    has_feedforward = True
    ends_normed = False
    """True if the layer's outputs are normed already."""

    def __init__(self, attention: MemoryAttention, width: int, feedforward: int) -> None:
        super().__init__()
        self.attention = attention
        if self.has_feedforward:
            self.widen = nn.Linear(width, feedforward)
            self.narrow = nn.Linear(feedforward, width)

    @staticmethod
    def slot_norm(width: int) -> SlotNorm | NoNorm:
        """Return the norm of slots before attention projects them."""
        return SlotNorm(width)

    def forward(self, inputs: Tensor, own: Tensor, columns: Columns, mask: BlockMask) -> tuple[Tensor, Attended]:
        """Return the layer's outputs [B, T, D] and the result of its attention.

        :param inputs: [B, T, D]
        :param own: the same, normed without weights; this and the other arguments as for `MemoryAttention.forward`
        """
        attended = self.attention(own, columns, mask)
        outputs = self.weights().join(inputs.flatten(0, 1), attended.outputs.flatten(0, 1))
        return outputs.view_as(inputs), attended

    @abstractmethod
    def weights(self) -> PlainJoin | PreNormJoin | GatedJoin | PostNormJoin:
        """Return the weights after attention, with their `join`."""

    def _feedforward(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.widen.weight, self.widen.bias, self.narrow.weight, self.narrow.bias


class PlainLayer(MemoryLayer):
    """Layer with a plain sum, see `PlainJoin`."""

    has_feedforward = False

    def weights(self) -> PlainJoin:
        """Return the weights after attention."""
        return PlainJoin(self.attention.output.weight)


class PreNormLayer(MemoryLayer):
    """Layer with a norm before each part, see `PreNormJoin`."""

    def __init__(self, attention: MemoryAttention, width: int, feedforward: int) -> None:
        super().__init__(attention, width, feedforward)
        self.norm = nn.LayerNorm(width)

    def weights(self) -> PreNormJoin:
        """Return the weights after attention."""
        return PreNormJoin(self.attention.output.weight, self.norm.weight, self.norm.bias, *self._feedforward())


class GatedLayer(MemoryLayer):
    """Layer with GTrXL's gates, see `GatedJoin`."""

    def __init__(self, attention: MemoryAttention, width: int, feedforward: int) -> None:
        super().__init__(attention, width, feedforward)
        self.attention_gate = Gate(width)
        self.norm = nn.LayerNorm(width)
        self.feedforward_gate = Gate(width)

    def weights(self) -> GatedJoin:
        """Return the weights after attention."""
        return GatedJoin(
            self.attention.output.weight,
            self.attention_gate.weights(),
            self.norm.weight,
            self.norm.bias,
            *self._feedforward(),
            self.feedforward_gate.weights(),
        )


class PostNormLayer(MemoryLayer):
    """Layer with a norm after each sum, see `PostNormJoin`; slots are projected without a norm."""

    ends_normed = True

    def __init__(self, attention: MemoryAttention, width: int, feedforward: int) -> None:
        super().__init__(attention, width, feedforward)
        self.attention_norm = nn.LayerNorm(width)
        self.feedforward_norm = nn.LayerNorm(width)

    @staticmethod
    def slot_norm(width: int) -> NoNorm:
        """Return the norm of slots before attention projects them: none."""
        return NoNorm()

    def weights(self) -> PostNormJoin:
        """Return the weights after attention."""
        first, second = self.attention_norm, self.feedforward_norm
        return PostNormJoin(
            self.attention.output.weight,
            first.weight,
            first.bias,
            *self._feedforward(),
            second.weight,
            second.bias,
        )


RESIDUALS: dict[str, type[MemoryLayer]] = {
    "plain": PlainLayer,
    "pre_norm": PreNormLayer,
    "gated": GatedLayer,
    "post_norm": PostNormLayer,
}
"""Layer classes by the name of their residual."""


def feedforward_size(residual: str, asked: int | None, width: int) -> int:
    """Return the hidden units of the feed-forward part; raise a ValueError where the layer has no such part."""
    if asked is not None and not RESIDUALS[residual].has_feedforward:
        others = [repr(name) for name, layer in RESIDUALS.items() if layer.has_feedforward]
        raise ValueError(
            f"residual={residual!r} has no feed-forward part, got feedforward = {asked}; use residual="
            f"{' or '.join(others)}, or leave feedforward at None"
        )
    require_positive(feedforward=2 * width if asked is None else asked)
    return 2 * width if asked is None else asked


def initialise(module: nn.Module) -> None:
    """Give every linear map Xavier weights and zero biases (torch's default shrinks deep residual-free paths)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
