"""Attention of a window's steps to all slots of a layer, and the norm that slots go through first.

`AgeAttention` counts a slot's position by its age in steps, `RelativeAttention` by its distance in slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrl.compressive.attention.block_attention import MASKED, KeysValues, ScoreTerms, banded_attention
from ctrl.compressive.attention.block_mask import BlockMask
from ctrl.compressive.attention.clock import NEVER, TimeQueries, extend, time_keys
from ctrl.compressive.attention.novelty import Novelty

BOUND = 1e12
"""Entries of an unnormed slot beyond this, or that are not a number, count as 0. Products of two such numbers stay far
below the size of `MASKED`, so a slot that is not visible has no weight, whatever it holds."""


class Attended(NamedTuple):
    """What `MemoryAttention` returns."""

    read: Tensor
    """[B, T, D] what the heads read, side by side."""
    queries: Tensor
    """[B, T, D] by content."""
    projected: KeysValues
    """Keys and values of all columns, before what is unusual is made larger."""
    emphasis: Tensor | None
    """[B, C] how many times as large they become; None for 1."""
    weights: Tensor
    """[H, B, N, Q, W]"""

    def keys_values(self) -> Tensor:
        """Return [B, C, 2 D] keys and values of all columns, without a graph."""
        joined = torch.cat(self.projected.parts(), dim=1).detach()
        return joined if self.emphasis is None else joined * self.emphasis[:, :, None]


class ColumnFacts(NamedTuple):
    """What a layer knows of each column beside its content."""

    decay: Tensor
    """[B, C, F] the score that it has lost by forgetting, up to a number for each step; F = 0 without forgetting."""
    novelty: Tensor | None
    """[B, C], None in a layer that does not measure it."""
    times: Tensor | None
    """[B, C, CLOCK_FEATURES] its time, None in a layer that does not know it."""


class SlotNorm(nn.LayerNorm):
    """Norms slots [.., D] before their projection.

    Where many maps follow, it is done without weights, which then become part of the maps: so stored slots, which
    carry no graph, need no gradient, and novelty is measured of the same numbers.
    """

    def forward(self, slots: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        return normalise(slots, self.weight, self.bias)

    def fixed(self, slots: Tensor) -> Tensor:
        """Do the same with the weights held fixed."""
        return normalise(slots, self.weight.detach(), self.bias.detach())

    def without_weights(self, slots: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        return normalise(slots)

    def folded(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return weight and bias that do to slots normed without weights what `linear` does to normed slots."""
        weight = linear.weight
        bias = weight @ self.bias if linear.bias is None else torch.addmv(linear.bias, weight, self.bias)
        return weight * self.weight, bias


class NoNorm(nn.Module):
    """Takes slots [.., D] as they are, within `BOUND`."""

    def forward(self, slots: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        return torch.where(slots.abs() < BOUND, slots, 0)  # false for NaN

    fixed = without_weights = forward

    def folded(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return weight and bias of `linear`."""
        return linear.weight, linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias


class MemoryAttention(nn.Module, ABC):
    """Multi-head attention of the window's steps to all slots of a layer; keys, values and output without bias.

    Subclasses say how a slot's position counts.

    :param width: D
    :param heads: H
    :param norm: applied to slots before they are projected
    :param query_bias: whether queries have one
    :param forgetting: whether the last quarter of the heads, but at least one of two or more, have a forget gate (Lin
        et al. 2025, arXiv 2503.02130)
    :param clock: whether the first quarter of the heads, but at least one, attend by the step of the episode too
    """

    GATE_BIASES = (3.0, 5.0)
    """First biases of the forget gates, spread evenly: they keep 95.3 % to 99.3 % a step."""

    def __init__(
        self,
        width: int,
        heads: int,
        norm: SlotNorm | NoNorm,
        *,
        query_bias: bool = False,
        forgetting: bool = False,
        clock: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm
        self.query = nn.Linear(width, width, bias=query_bias)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.novelty: Novelty | None = None
        """The layer's measure of novelty, where a compressor asks for it; the core sets it."""
        self.forgetting_heads = max(heads // 4, int(heads > 1)) if forgetting else 0
        self.forget_gate = nn.Linear(width, self.forgetting_heads) if self.forgetting_heads else None
        self.time_queries = TimeQueries(max(heads // 4, 1)) if clock else None

    def reset_parameters(self) -> None:
        """Give gates their first weights: they depend on their biases alone."""
        if self.forget_gate is not None:
            nn.init.zeros_(self.forget_gate.weight)
            with torch.no_grad():
                self.forget_gate.bias.copy_(torch.linspace(*self.GATE_BIASES, self.forgetting_heads))

    def log_forget(self, normed: Tensor) -> Tensor:
        """Return the logarithm of each forget gate, [.., F] for layer inputs [.., D] normed without weights."""
        if self.forget_gate is None:
            return normed.new_zeros(*normed.shape[:-1], 0)
        return F.logsigmoid(F.linear(normed, *self.norm.folded(self.forget_gate)))

    def forward(self, own: Tensor, rest: Tensor, start: int, known: ColumnFacts, mask: BlockMask) -> Attended:
        """Attend.

        :param own: [B, T, D] the window's steps as layer inputs, normed without weights
        :param rest: [B, C - T, D] likewise all other columns
        :param start: how many of these come before the window's steps
        :param known: of all columns
        :param mask: which step sees which column, and its relative position
        """
        decay, novelty, times = known
        to_keys_values = self.norm.folded(self.key_value)
        keys_values = KeysValues(F.linear(own, *to_keys_values), F.linear(rest, *to_keys_values), start)
        queries = F.linear(own, *self.norm.folded(self.query))
        asked = None
        if self.time_queries is not None and times is not None:
            asked = self.time_queries(times[:, start : start + own.shape[1]])
        emphasis = self.emphasis(novelty)
        terms = ScoreTerms(emphasis, decay, asked, None if times is None else time_keys(times))
        read, weights = self._read(queries, keys_values, terms, mask)
        return Attended(read, queries, keys_values, emphasis, weights)

    @abstractmethod
    def _read(
        self, queries: Tensor, keys_values: KeysValues, terms: ScoreTerms, mask: BlockMask
    ) -> tuple[Tensor, Tensor]:
        """Return the heads' outputs, [B, T, D], and the weights [H, B, N, Q, W] without a graph."""

    def emphasis(self, novelty: Tensor | None) -> Tensor | None:
        """Return how many times as large keys and values of slots of some novelty are, both [..]; None for 1."""
        return None if self.novelty is None or novelty is None else self.novelty.emphasis(novelty)

    def novelty_of(self, normed: Tensor) -> Tensor | None:
        """Return the novelty [..] of slots [.., D] normed without weights, with the graph of the measure.

        None if there is no measure.
        """
        if self.novelty is None:
            return None
        return self.novelty.of_normed(normed) if isinstance(self.norm, SlotNorm) else self.novelty(normed)

    def content_attention(self, queries: Tensor, keys_values: Tensor, visible: Tensor) -> Tensor:
        """Attend by content alone, without age and output projection.

        :param queries: [B, Q, D]
        :param keys_values: [B, W, 2 D]
        :param visible: [B, Q, W] bool; a row without any gives a meaningless, finite result
        :return: [B, Q, D]
        """
        query = _split_heads(queries, self.heads)
        key, value = (_split_heads(part, self.heads) for part in keys_values.chunk(2, dim=-1))
        mask = queries.new_zeros(visible.shape).masked_fill_(~visible, MASKED)
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
        return read.transpose(1, 2).flatten(start_dim=2)

    def fixed_keys_values(self, slots: Tensor) -> Tensor:
        """[.., D] -> [.., 2 D] with this layer's weights held fixed, so that a gradient reaches `slots` only.

        Fixed by functional use of detached weights: the parameters themselves stay as they are.
        """
        keys_values = F.linear(self.norm.fixed(slots), self.key_value.weight.detach())
        emphasis = self.emphasis(self.novelty_of(self.norm.without_weights(slots)))
        return keys_values if emphasis is None else keys_values * emphasis[..., None]


class AgeAttention(MemoryAttention):
    """A learned bias per head on a slot's age has the role that relative positions have in Transformer-XL.

    The bias of the queries is Transformer-XL's u: what a slot is worth whatever is asked. A query that finds out which
    slots matter so teaches all others, also those by whose attention `most_used` chooses what to keep.

    Age, not distance in slots, lets raw and compressed slots share one scale; `ctrl.compressive.attention.block_mask.age_bucket` says which ages share
    a bias. Older slots than any that training has met count as the oldest that it has: the biases of their ages have
    learned nothing.

    :param rows: how many biases
    """

    oldest_bucket: Tensor
    """[] int64, the row of the oldest age that training has met; `NEVER` until `settle` is called."""

    SCALE = 8.0
    """Biases are this many times their parameters, so that an optimizer's steps can single out one age in time."""

    def __init__(self, width: int, heads: int, norm: SlotNorm | NoNorm, rows: int, **options: bool) -> None:
        super().__init__(width, heads, norm, query_bias=True, **options)
        nn.init.zeros_(self.query.bias)
        self.age_bias = nn.Parameter(torch.zeros(heads, rows))
        self.register_buffer("oldest_bucket", torch.tensor(NEVER))

    def age_biases(self) -> Tensor:
        """Return what is added to the scores of slots by head and age, [H, rows]."""
        rows = torch.arange(self.age_bias.shape[1], device=self.age_bias.device).clamp_max(self.oldest_bucket)
        return self.SCALE * self.age_bias.index_select(1, rows)

    def settle(self, row: int) -> None:
        """Take note of the row of the oldest age of an update; the oldest of all updates counts."""
        extend(self.oldest_bucket, row)

    def _read(
        self, queries: Tensor, keys_values: KeysValues, terms: ScoreTerms, mask: BlockMask
    ) -> tuple[Tensor, Tensor]:
        return banded_attention(queries, keys_values, self.age_biases(), terms, mask)


def normalise(slots: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Norm slots [.., D] for their projection."""
    normed = torch.layer_norm(slots, slots.shape[-1:], weight, bias)
    # What another episode left in the window may overflow here. It gets no weight, but 0 * NaN is NaN.
    normed.detach().nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return normed


def _split_heads(features: Tensor, heads: int) -> Tensor:
    """[B, N, D] -> [B, H, N, d]."""
    batch, count, width = features.shape
    return features.view(batch, count, heads, width // heads).transpose(1, 2)
