"""One layer: attention over the memory and a feed-forward part, each behind a gate (Parisotto et al. 2020, GTrXL).

Read from top to bottom, in the order in which data meets it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        buckets = self._buckets(torch.arange(reach + 1))
        self.register_buffer("bucket_of_age", buckets, persistent=False)
        self.weight = nn.Parameter(torch.zeros(int(buckets.max()) + 1, heads))

    @classmethod
    def _buckets(cls, age: Tensor) -> Tensor:
        octaves = torch.log2(age.double().clamp_min(1) / cls.EXACT)
        return torch.where(age < cls.EXACT, age, cls.EXACT + (cls.PER_OCTAVE * octaves).floor().long())

    def index(self, age: Tensor, visible: Tensor) -> Tensor:
        """Return which entry each age reads; a last entry, past the learned ones, stands for «not visible».

        :param age: any shape, int64; meaningless where not visible
        :param visible: the same shape, bool
        """
        buckets = self.get_buffer("bucket_of_age")
        return torch.where(visible, buckets[age.clamp(0, len(buckets) - 1)], len(self.weight))

    def forward(self, index: Tensor) -> Tensor:
        """[B, T, S] -> [B, H, T, S], where `index` comes from `index()`."""
        # Finite, so that a row without any visible slot stays finite; exp() of it is exactly 0 beside any real score.
        hidden = self.weight.new_full((1, self.weight.shape[1]), torch.finfo(self.weight.dtype).min / 2)
        return F.embedding(index, torch.cat([self.weight, hidden])).permute(0, 3, 1, 2)


class Attended(NamedTuple):
    """What `MemoryAttention` returns."""

    output: Tensor
    """[B, T, D]"""
    queries: Tensor
    """[B, H, T, d], before scaling; the reconstruction loss asks the same questions."""
    weights: Tensor
    """[B, H, T, S]"""


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

    def forward(self, inputs: Tensor, slots: Tensor, bias_index: Tensor) -> Attended:
        """Attend.

        :param inputs: [B, T, D] the layer's inputs
        :param slots: [B, S, D] what can be attended, as layer inputs
        :param bias_index: [B, T, S] from `AgeBias.index`
        """
        queries = split_heads(self.query(self.norm(inputs)), self.heads)  # [B, H, T, d]
        keys, values = self._keys_values(slots, self.norm.weight, self.norm.bias, self.key_value.weight)
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])  # [B, H, T, S]
        weights = (scores + self.age_bias(bias_index)).softmax(dim=-1)
        return Attended(self.output(merge_heads(weights @ values)), queries, weights)

    def content_attention(self, queries: Tensor, slots: Tensor, visible: Tensor) -> Tensor:
        """Attend by content alone, with this layer's weights held fixed (algorithm 2 of the paper).

        Fixed by functional use of detached weights: a gradient reaches `slots` only.

        :param queries: [B, H, T, d]
        :param slots: [B, S, D]
        :param visible: [B, T, S] bool; a row without any gives a meaningless, finite result
        :return: [B, T, D], without the output projection
        """
        keys, values = self._keys_values(
            slots, self.norm.weight.detach(), self.norm.bias.detach(), self.key_value.weight.detach()
        )
        scores = queries.detach() @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
        scores = scores.masked_fill(~visible[:, None], torch.finfo(scores.dtype).min / 2)
        return merge_heads(scores.softmax(dim=-1) @ values)

    def _keys_values(self, slots: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        normed = F.layer_norm(slots, self.norm.normalized_shape, scale, shift, self.norm.eps)
        # What another episode left in the window may overflow here. It gets no weight, but 0 * NaN is NaN.
        normed = normed.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        keys, values = F.linear(normed, weight).chunk(2, dim=-1)
        return split_heads(keys, self.heads), split_heads(values, self.heads)


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

    def forward(self, inputs: Tensor, slots: Tensor, bias_index: Tensor) -> tuple[Tensor, Attended]:
        """Return the layer's outputs [B, T, D] and what its attention did; arguments as `MemoryAttention.forward`."""
        attended = self.attention(inputs, slots, bias_index)
        hidden = self.attention_gate(inputs, attended.output.relu())
        return self.feedforward_gate(hidden, self.feedforward(hidden)), attended


def split_heads(features: Tensor, heads: int) -> Tensor:
    """[B, N, D] -> [B, H, N, d]."""
    return features.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(features: Tensor) -> Tensor:
    """[B, H, N, d] -> [B, N, D]."""
    return features.transpose(1, 2).flatten(start_dim=2)
