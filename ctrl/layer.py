"""One layer: attention over the memory and a feed-forward part, each behind a gate (Parisotto et al. 2020, GTrXL).

Read from top to bottom, in the order in which data meets it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrl.band import Band


class AgeBias(nn.Module):
    """A learned bias per head on the age of a slot: one entry per step up to 32 steps, then 4 per doubling.

    The role is that of relative positions in Transformer-XL; age, not distance in slots, lets raw and compressed
    slots share one scale.
    """

    EXACT = 32
    PER_OCTAVE = 4

    def __init__(self, heads: int, reach: int) -> None:
        """
        :param heads: H
        :param reach: the oldest age that is ever visible, in steps
        """
        super().__init__()
        starts = list(range(1, self.EXACT + 1))  # the first age of each entry but the first
        while starts[-1] <= reach:
            step = len(starts) + 1 - self.EXACT
            starts.append(math.ceil(self.EXACT * 2 ** (step / self.PER_OCTAVE)))
        starts = [start for start in starts if start <= reach]
        self.register_buffer("starts", torch.tensor(starts, dtype=torch.int64), persistent=False)
        self.weight = nn.Parameter(torch.zeros(len(starts) + 1, heads))

    def forward(self, age: Tensor) -> Tensor:
        """[..., Q, W] -> [..., H, Q, W]; ages out of reach, which are never visible, read the nearest entry."""
        entry = torch.bucketize(age, self.get_buffer("starts"), right=True)
        return F.embedding(entry, self.weight).movedim(-1, -3)


class Attended(NamedTuple):
    """What `MemoryAttention` returns."""

    output: Tensor
    """[B, T, D]"""
    queries: Tensor
    """[B, T, D]"""
    keys_values: Tensor
    """[B, C, 2 D] of all columns."""
    weights: Tensor
    """[B, N, H, Q, W]"""


class MemoryAttention(nn.Module):
    """Multi-head attention of the window's steps to all slots of a layer; queries, keys and values without bias."""

    def __init__(self, width: int, heads: int, reach: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.age_bias = AgeBias(heads, reach)

    def forward(self, inputs: Tensor, slots: Tensor, band: Band) -> Attended:
        """Attend.

        :param inputs: [B, T, D] the layer's inputs
        :param slots: [B, C, D] all columns, as layer inputs
        :param band: which step sees which of them, and at what age
        """
        queries = self.query(self.norm(inputs))
        keys_values = self._project(slots, self.norm.weight, self.norm.bias, self.key_value.weight)
        bias = self.age_bias(band.raw_age).expand(*band.visible.shape[:2], -1, -1, -1)  # [B, N, H, Q, W_0]
        if band.compressed_age.shape[-1]:
            bias = torch.cat([bias, self.age_bias(band.compressed_age)], dim=-1)
        read, weights = self._read(band.split(queries), band.gather(keys_values), band.visible, bias)
        return Attended(self.output(band.join(read, inputs.shape[1])), queries, keys_values, weights)

    def content_attention(self, queries: Tensor, keys_values: Tensor, visible: Tensor) -> Tensor:
        """Attend by content alone, without age and output projection.

        :param queries: [B, Q, D]
        :param keys_values: [B, W, 2 D]
        :param visible: [B, Q, W] bool; a row without any gives a meaningless, finite result
        :return: [B, Q, D]
        """
        return self._read(queries, keys_values, visible, None)[0]

    def fixed_keys_values(self, slots: Tensor) -> Tensor:
        """[.., D] -> [.., 2 D] with this layer's weights held fixed, so that a gradient reaches `slots` only.

        Fixed by functional use of detached weights: the parameters themselves stay as they are.
        """
        norm = self.norm
        return self._project(slots, norm.weight.detach(), norm.bias.detach(), self.key_value.weight.detach())

    def _project(self, slots: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
        normed = F.layer_norm(slots, self.norm.normalized_shape, scale, shift, self.norm.eps)
        # What another episode left in the window may overflow here. It gets no weight, but 0 * NaN is NaN.
        return F.linear(normed.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), weight)

    def _read(
        self, queries: Tensor, keys_values: Tensor, visible: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what the queries [.., Q, D] read [.., Q, D] and the weights [.., H, Q, W]."""
        keys, values = keys_values.chunk(2, dim=-1)
        query = _split_heads(queries / math.sqrt(queries.shape[-1] // self.heads), self.heads)
        scores = query @ _split_heads(keys, self.heads).transpose(-1, -2)
        if bias is not None:
            scores = scores + bias
        # Finite, so that a row without any visible slot stays finite; exp() of it is exactly 0 beside a real score.
        scores = scores.masked_fill(~visible.unsqueeze(-3), torch.finfo(scores.dtype).min / 2)
        weights = scores.softmax(dim=-1)
        return (weights @ _split_heads(values, self.heads)).transpose(-2, -3).flatten(start_dim=-2), weights


class Gate(nn.Module):
    """GRU-type gate in place of a residual sum (GTrXL, equations 5 to 7); at first it lets its input pass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_update = nn.Linear(width, 3 * width, bias=False)
        self.of_input = nn.Linear(width, 2 * width, bias=False)
        self.of_reset_input = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.full((width,), 2.0))

    def forward(self, inputs: Tensor, update: Tensor) -> Tensor:
        """Gate `update` [.., D] into `inputs` [.., D]."""
        reset_update, mix_update, candidate_update = self.of_update(update).chunk(3, dim=-1)
        reset_input, mix_input = self.of_input(inputs).chunk(2, dim=-1)
        reset = torch.sigmoid(reset_update + reset_input)
        mix = torch.sigmoid(mix_update + mix_input - self.bias)
        candidate = torch.tanh(candidate_update + self.of_reset_input(reset * inputs))
        return torch.lerp(inputs, candidate, mix)


class MemoryLayer(nn.Module):
    """Attention and a feed-forward part, both normed first and gated."""

    def __init__(self, width: int, heads: int, feedforward: int, reach: int) -> None:
        super().__init__()
        self.attention = MemoryAttention(width, heads, reach)
        self.attention_gate = Gate(width)
        self.feedforward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, feedforward), nn.ReLU(), nn.Linear(feedforward, width), nn.ReLU()
        )
        self.feedforward_gate = Gate(width)

    def forward(self, inputs: Tensor, slots: Tensor, band: Band) -> tuple[Tensor, Attended]:
        """Return the layer's outputs [B, T, D] and what its attention did; arguments as `MemoryAttention.forward`."""
        attended = self.attention(inputs, slots, band)
        hidden = self.attention_gate(inputs, attended.output.relu())
        return self.feedforward_gate(hidden, self.feedforward(hidden)), attended


def _split_heads(features: Tensor, heads: int) -> Tensor:
    """[.., N, D] -> [.., H, N, d]."""
    split: Tensor = features.unflatten(-1, (heads, -1))
    return split.transpose(-2, -3)
