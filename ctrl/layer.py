"""One layer: attention over the memory and a feed-forward part, each behind a gate (Parisotto et al. 2020, GTrXL).

Read from top to bottom, in the order in which data meets it. What a step passes through after attention is a function
of weights, `finish`, since acting calls it thousands of times a second and keeps them at hand. Last comes the layer of
the first transformers, `PostNormLayer`, which has no gates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrl.band import Band, youngest_age
from ctrl.banded import HIDDEN, banded_attention
from ctrl.novelty import Novelty

BOUND = 1e12
"""What an unnormed slot holds beyond this, or that is not a number, is taken as 0. Products of two such numbers stay
far below the size of `HIDDEN`, so a slot that is not visible has no weight, whatever it holds."""


class Attended(NamedTuple):
    """What `MemoryAttention` returns."""

    read: Tensor
    """[B, T, D] what the heads read, side by side."""
    queries: Tensor
    """[B, T, D]"""
    keys_values: Tensor
    """[B, C, 2 D] of all columns."""
    weights: Tensor
    """[H, B, N, Q, W]"""


class SlotNorm(nn.LayerNorm):
    """Norms slots [.., D] before their projection."""

    def forward(self, slots: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        return normalise(slots, self.weight, self.bias)

    def fixed(self, slots: Tensor) -> Tensor:
        """Do the same with the weights held fixed."""
        return normalise(slots, self.weight.detach(), self.bias.detach())


class NoNorm(nn.Module):
    """Takes slots [.., D] as they are, within `BOUND`."""

    def forward(self, slots: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        return torch.where(slots.abs() < BOUND, slots, 0)  # false for NaN

    fixed = forward


class MemoryAttention(nn.Module, ABC):
    """Multi-head attention of the window's steps to all slots of a layer; keys, values and output without bias.

    Subclasses say how a slot's position counts.

    :param width: D
    :param heads: H
    :param norm: what slots go through before they are projected
    :param query_bias: whether queries have one
    """

    def __init__(self, width: int, heads: int, norm: SlotNorm | NoNorm, query_bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm
        self.query = nn.Linear(width, width, bias=query_bias)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.novelty: Novelty | None = None
        """What measures how unusual slots are, where a compressor asks for it; the core sets it."""

    def forward(self, columns: Tensor, own: slice, band: Band) -> Attended:
        """Attend.

        :param columns: [B, C, D] all columns, as layer inputs
        :param own: which of them are the window's steps themselves
        :param band: which step sees which of them, and at what age
        """
        normed = self.norm(columns)
        queries, keys_values = self.query(normed[:, own]), self.key_value(self.emphasised(normed, columns))
        read, weights = self._read(queries, keys_values, band)
        return Attended(read, queries, keys_values, weights)

    @abstractmethod
    def _read(self, queries: Tensor, keys_values: Tensor, band: Band) -> tuple[Tensor, Tensor]:
        """Return what the heads read, [B, T, D], and the weights [H, B, N, Q, W] without a graph."""

    def emphasised(self, normed: Tensor, slots: Tensor) -> Tensor:
        """Return normed slots [.., D] as they become keys and values: the larger, the more unusual the slots are."""
        return normed if self.novelty is None else self.novelty.emphasise(normed, slots)

    def content_attention(self, queries: Tensor, keys_values: Tensor, visible: Tensor) -> Tensor:
        """Attend by content alone, without age and output projection.

        :param queries: [B, Q, D]
        :param keys_values: [B, W, 2 D]
        :param visible: [B, Q, W] bool; a row without any gives a meaningless, finite result
        :return: [B, Q, D]
        """
        query = _split_heads(queries, self.heads)
        key, value = (_split_heads(part, self.heads) for part in keys_values.chunk(2, dim=-1))
        mask = queries.new_zeros(visible.shape).masked_fill_(~visible, HIDDEN)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
        return read.transpose(1, 2).flatten(start_dim=2)

    def fixed_keys_values(self, slots: Tensor) -> Tensor:
        """[.., D] -> [.., 2 D] with this layer's weights held fixed, so that a gradient reaches `slots` only.

        Fixed by functional use of detached weights: the parameters themselves stay as they are.
        """
        return F.linear(self.emphasised(self.norm.fixed(slots), slots), self.key_value.weight.detach())


class AgeAttention(MemoryAttention):
    """A learned bias per head on a slot's age has the role that relative positions have in Transformer-XL.

    The bias of the queries is Transformer-XL's u: what a slot is worth whatever is asked. A query that finds out which
    slots matter so teaches all others, also those by whose attention `most_used` chooses what to keep.

    Age, not distance in slots, lets raw and compressed slots share one scale; `ctrl.band.age_row` says which ages share
    a bias.

    :param rows: how many biases
    """

    def __init__(self, width: int, heads: int, norm: SlotNorm | NoNorm, rows: int) -> None:
        super().__init__(width, heads, norm, query_bias=True)
        nn.init.zeros_(self.query.bias)
        self.age_bias = nn.Parameter(torch.zeros(heads, rows))

    @torch.no_grad()
    def prefer_recent(self, steepest: float) -> None:
        """Let the weights of half of the heads, rounded down, fall with age as (1 + age)^-s, s up to `steepest`.

        The logarithmic kernel of KERPLE (Chi et al. 2022, arXiv 2205.09921) with a fixed first slope for each head, as
        in ALiBi (Press et al. 2022, arXiv 2108.12409), but evenly spaced. Where what is new makes what is old invalid,
        an optimizer's steps are too small and too few to make a bias for each age in time.
        """
        heads, rows = self.age_bias.shape
        level = -(-heads // 2)
        slopes = steepest * torch.arange(1 - level, heads - level + 1).clamp_min(0) / max(heads - level, 1)
        self.age_bias.copy_(-slopes[:, None] * youngest_age(rows).log1p())

    def _read(self, queries: Tensor, keys_values: Tensor, band: Band) -> tuple[Tensor, Tensor]:
        return banded_attention(queries, keys_values, self.age_bias, band)


def normalise(slots: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Norm slots [.., D] for their projection."""
    normed = torch.layer_norm(slots, weight.shape, weight, bias)
    # What another episode left in the window may overflow here. It gets no weight, but 0 * NaN is NaN.
    normed.detach().nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return normed


class Gate(nn.GRUCell):
    """GRU-type gate in place of a residual sum (GTrXL, equations 5 to 7): the stream is what a GRU cell remembers.

    It starts with a bias to keep, so that at first it lets its input pass. As in torch's cell, the reset gate acts
    after the matrix product, and not before it as in GTrXL.
    """

    KEEP = 2.0

    def __init__(self, width: int) -> None:
        super().__init__(width, width)

    def reset_parameters(self) -> None:
        """Xavier weights for each of the three maps, zero biases but for that of keeping."""
        with torch.no_grad():
            for weights in (self.weight_ih, self.weight_hh):
                for part in weights.chunk(3):
                    nn.init.xavier_uniform_(part)
            self.bias_ih.zero_()
            self.bias_hh.zero_()
            self.bias_ih.chunk(3)[1].fill_(self.KEEP)  # the three are: reset, keep, candidate

    def weights(self) -> GateWeights:
        """Return what `torch.gru_cell` takes."""
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


GateWeights = tuple[Tensor, Tensor, Tensor, Tensor]


class FinishWeights(NamedTuple):
    """What `finish` needs of a layer."""

    output: Tensor
    attention_gate: GateWeights
    norm: Tensor
    norm_bias: Tensor
    widen: Tensor
    widen_bias: Tensor
    narrow: Tensor
    narrow_bias: Tensor
    feedforward_gate: GateWeights


def finish(inputs: Tensor, read: Tensor, weights: FinishWeights) -> Tensor:
    """Return a layer's outputs [N, D] for its inputs [N, D] and what its heads `read` [N, D]."""
    update = F.linear(read, weights.output).relu_()
    hidden = torch.gru_cell(update, inputs, *weights.attention_gate)
    normed = torch.layer_norm(hidden, weights.norm.shape, weights.norm, weights.norm_bias)
    wide = F.linear(normed, weights.widen, weights.widen_bias).relu_()
    update = F.linear(wide, weights.narrow, weights.narrow_bias).relu_()
    return torch.gru_cell(update, hidden, *weights.feedforward_gate)


class MemoryLayer(nn.Module):
    """Attention and a feed-forward part, both normed first and gated."""

    def __init__(self, attention: MemoryAttention, width: int, feedforward: int) -> None:
        super().__init__()
        self.attention = attention
        self.attention_gate = Gate(width)
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, feedforward)
        self.narrow = nn.Linear(feedforward, width)
        self.feedforward_gate = Gate(width)

    @staticmethod
    def slot_norm(width: int) -> SlotNorm:
        """Return what slots go through before its attention projects them."""
        return SlotNorm(width)

    def forward(self, inputs: Tensor, columns: Tensor, own: slice, band: Band) -> tuple[Tensor, Attended]:
        """Return the layer's outputs [B, T, D] and what its attention did; arguments as `MemoryAttention.forward`."""
        attended = self.attention(columns, own, band)
        outputs = finish(inputs.flatten(0, 1), attended.read.flatten(0, 1), self.finish_weights())
        return outputs.view_as(inputs), attended

    def finish_weights(self) -> FinishWeights:
        """Return what `finish` needs."""
        return FinishWeights(
            self.attention.output.weight,
            self.attention_gate.weights(),
            self.norm.weight,
            self.norm.bias,
            self.widen.weight,
            self.widen.bias,
            self.narrow.weight,
            self.narrow.bias,
            self.feedforward_gate.weights(),
        )


class PostNormLayer(nn.Module):
    """Attention and a feed-forward part, each added to what it reads and normed after that.

    The layer of the first transformers, of Transformer-XL (Dai et al. 2019, section 3.3) and of the paper: memory is
    projected as it is.
    """

    def __init__(self, attention: MemoryAttention, width: int, feedforward: int) -> None:
        super().__init__()
        self.attention = attention
        self.attention_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, feedforward)
        self.narrow = nn.Linear(feedforward, width)
        self.feedforward_norm = nn.LayerNorm(width)

    @staticmethod
    def slot_norm(width: int) -> NoNorm:
        """Return what slots go through before its attention projects them."""
        return NoNorm()

    def forward(self, inputs: Tensor, columns: Tensor, own: slice, band: Band) -> tuple[Tensor, Attended]:
        """Return the layer's outputs [B, T, D] and what its attention did; arguments as `MemoryAttention.forward`."""
        attended = self.attention(columns, own, band)
        hidden = self.attention_norm(inputs + self.attention.output(attended.read))
        update = self.narrow(self.widen(hidden).relu())
        return self.feedforward_norm(hidden + update), attended


def _split_heads(features: Tensor, heads: int) -> Tensor:
    """[B, N, D] -> [B, H, N, d]."""
    batch, count, width = features.shape
    return features.view(batch, count, heads, width // heads).transpose(1, 2)
