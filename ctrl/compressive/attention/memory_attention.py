"""Attention of a window's steps to all slots of a layer, and the norm of slots before it.

`AgeAttention` takes a slot's position from its age in steps, `RelativeAttention` from its distance in slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrl.compressive.attention.block_attention import KeysValues, block_attention, masked_score
from ctrl.compressive.attention.block_mask import BY_AGE, BlockMask, Buckets
from ctrl.compressive.attention.clock import NEVER, TimeQueries, extend, time_keys
from ctrl.compressive.attention.novelty import Novelty

BOUND = 1e12
"""Entries of an unnormed slot count as 0 if they are larger than this or not a number. Products of two smaller entries
stay far below the size of `MASKED`, so a masked slot has no weight, whatever it holds."""


class Columns(NamedTuple):
    """All columns of a layer but the window's own steps, and what is known of all columns beside content."""

    rest: Tensor
    """[B, C - T, D] slots, normed without weights."""
    start: int
    """Number of columns of the rest that come before the window's steps."""
    decay: Tensor
    """[B, C, F] the term of forgetting in the score, up to a constant for each step; F = 0 without forgetting."""
    novelty: Tensor | None
    """[B, C]; None in a layer that does not measure it."""
    times: Tensor | None
    """[B, C, CLOCK_FEATURES] the time of the content; None without a clock."""


class Attended(NamedTuple):
    """Result of `MemoryAttention.forward`."""

    outputs: Tensor
    """[B, T, D] the attention output, heads side by side."""
    queries: Tensor
    """[B, T, D] content queries."""
    keys_values: KeysValues
    """Keys and values of all columns."""
    weights: Tensor
    """[H, B, N, Q, W] attention weights."""


class SlotNorm(nn.LayerNorm):
    """Layer norm of slots [.., D] before their projection.

    Where many maps follow, slots are normed without weights, and the norm's weights become part of the maps (`folded`).
    So stored slots, which carry no graph, need no gradient, and novelty is measured on the same numbers.
    """

    def forward(self, slots: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        return normalise(slots, self.weight, self.bias)

    def fixed(self, slots: Tensor) -> Tensor:
        """Return the norm of slots [.., D], with its weights held fixed."""
        return normalise(slots, self.weight.detach(), self.bias.detach())

    def without_weights(self, slots: Tensor) -> Tensor:
        """Return the norm of slots [.., D], without its weights."""
        return normalise(slots)

    def folded(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return weight and bias that fold the norm into `linear`, for slots that are normed without weights."""
        weight = linear.weight
        bias = weight @ self.bias if linear.bias is None else torch.addmv(linear.bias, weight, self.bias)
        return weight * self.weight, bias


class NoNorm(nn.Module):
    """No norm: slots [.., D] as they are, with 0 for entries beyond `BOUND`."""

    def forward(self, slots: Tensor) -> Tensor:
        """[.., D] -> [.., D]."""
        return torch.where(slots.abs() < BOUND, slots, 0)  # false for NaN

    fixed = without_weights = forward

    def folded(self, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """Return weight and bias of `linear`; the bias is 0 where it has none."""
        return linear.weight, linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias


class MemoryAttention(nn.Module, ABC):
    """Multi-head attention of the window's steps to all slots of a layer; the output without bias.

    Subclasses add a term for a slot's position.

    :param width: D
    :param heads: H
    :param norm: applied to slots before they are projected
    :param query_bias: if true, the queries' projection has a bias
    :param key_value_bias: if true, that of keys and values has one
    :param novelty: the layer's measure of novelty, where a compressor uses it
    :param forgetting: if true, the last quarter of the heads, but at least one of two or more, have a forget gate (Lin
        et al. 2025, arXiv 2503.02130)
    :param clock: if true, the first quarter of the heads, but at least one, attend by the step of the episode too
    """

    BUCKETS: ClassVar[Buckets]
    """Relative-position buckets."""
    GATE_BIASES = (3.0, 5.0)
    """Range of the forget gates' initial biases, spread evenly: they keep 95.3 % to 99.3 % a step."""

    def __init__(
        self,
        width: int,
        heads: int,
        norm: SlotNorm | NoNorm,
        *,
        query_bias: bool = False,
        key_value_bias: bool = False,
        novelty: Novelty | None = None,
        forgetting: bool = False,
        clock: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm
        self.query = nn.Linear(width, width, bias=query_bias)
        self.key_value = nn.Linear(width, 2 * width, bias=key_value_bias)
        self.output = nn.Linear(width, width, bias=False)
        self.forgetting_heads = max(heads // 4, int(heads > 1)) if forgetting else 0
        self.forget_gate = nn.Linear(width, self.forgetting_heads) if self.forgetting_heads else None
        self.time_queries = TimeQueries(max(heads // 4, 1)) if clock else None
        self.novelty = novelty

    def reset_parameters(self) -> None:
        """Initialise forget gates so that they depend on their biases alone."""
        if self.forget_gate is not None:
            nn.init.zeros_(self.forget_gate.weight)
            with torch.no_grad():
                # On the CPU, since torch imports hundreds of modules for a range on the meta device (`core_file`).
                self.forget_gate.bias.copy_(torch.linspace(*self.GATE_BIASES, self.forgetting_heads, device="cpu"))

    def log_forget(self, normed: Tensor) -> Tensor:
        """Return the logarithm of each forget gate, [.., F] for layer inputs [.., D] normed without weights."""
        if self.forget_gate is None:
            return normed.new_zeros(*normed.shape[:-1], 0)
        return F.logsigmoid(F.linear(normed, *self.norm.folded(self.forget_gate)))

    def forward(self, own: Tensor, columns: Columns, mask: BlockMask) -> Attended:
        """Attend from the window's steps to all columns.

        :param own: [B, T, D] the window's steps as layer inputs, normed without weights
        :param columns: all other columns, and facts of all
        :param mask: the columns that each step sees, and their relative positions
        """
        rest, start, decay, novelty, times = columns
        to_keys_values = self.norm.folded(self.key_value)
        own_kv, rest_kv = F.linear(own, *to_keys_values), F.linear(rest, *to_keys_values)  # [B, T or C - T, 2 D]
        queries = F.linear(own, *self.norm.folded(self.query))  # [B, T, D]
        time_queries = None
        if self.time_queries is not None and times is not None:
            time_queries = self.time_queries(times[:, start : start + own.shape[1]])  # [B, T, J K]
        by_time = None if times is None else time_keys(times)  # [B, C, K]
        keys_values = KeysValues(own_kv, rest_kv, start, self.emphasis(novelty), decay, by_time)
        outputs, weights = self._attend(queries, time_queries, keys_values, mask)
        return Attended(outputs, queries, keys_values, weights)

    @abstractmethod
    def _attend(
        self, queries: Tensor, time_queries: Tensor | None, keys_values: KeysValues, mask: BlockMask
    ) -> tuple[Tensor, Tensor]:
        """Return the heads' outputs, [B, T, D], and the weights [H, B, N, Q, W] without a graph."""

    def emphasis(self, novelty: Tensor | None) -> Tensor | None:
        """Return the factor [..] of keys and values for slots of some novelty [..]; None for 1."""
        return None if self.novelty is None or novelty is None else self.novelty.emphasis(novelty)

    def novelty_of(self, normed: Tensor) -> Tensor | None:
        """Return the novelty [..] of slots [.., D] normed without weights, with the graph of the measure.

        It is None in a layer without a measure.
        """
        if self.novelty is None:
            return None
        return self.novelty.of_normed(normed) if isinstance(self.norm, SlotNorm) else self.novelty(normed)

    def content_attention(self, queries: Tensor, keys_values: Tensor, visible: Tensor) -> Tensor:
        """Attend by content alone, without positions and output projection.

        :param queries: [B, Q, D]
        :param keys_values: [B, W, 2 D]
        :param visible: [B, Q, W] bool; a query without any visible slot gives a meaningless, finite result
        :return: [B, Q, D]
        """
        query = _split_heads(queries, self.heads)
        key, value = (_split_heads(part, self.heads) for part in keys_values.chunk(2, dim=-1))
        mask = queries.new_zeros(visible.shape).masked_fill_(~visible, masked_score(queries.dtype))
        outputs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
        return outputs.transpose(1, 2).flatten(start_dim=2)

    def fixed_keys_values(self, slots: Tensor) -> Tensor:
        """Return keys and values [.., 2 D] of slots [.., D], with a gradient to `slots` only.

        The layer's weights are held fixed by functional use of detached ones; the parameters themselves stay as they
        are.
        """
        weight, bias = self.key_value.weight.detach(), self.key_value.bias
        keys_values = F.linear(self.norm.fixed(slots), weight, None if bias is None else bias.detach())
        emphasis = self.emphasis(self.novelty_of(self.norm.without_weights(slots)))
        return keys_values if emphasis is None else keys_values * emphasis[..., None]


class AgeAttention(MemoryAttention):
    """Attention with a learned bias per head on a slot's age, in the role of Transformer-XL's relative positions.

    The bias of the queries is Transformer-XL's u: it scores a slot's content for all queries alike. So a query that
    learns which slots matter teaches all others, including those whose attention `most_used` ranks slots by.

    Raw and compressed slots share one scale, since age and not distance in slots is counted. Several ages may share a
    bias (`ctrl.compressive.attention.block_mask.age_bucket`). Slots older than any that training has met count as the
    oldest that it has, because the biases of greater ages have learned nothing.

    Where unusual slots have larger keys (`Novelty.emphasis`), keys and values have a bias too. The second quarter of
    four or more heads then begins by attending to unusual slots, whatever the query, but not to the step itself. The
    biases of its queries and keys start equal and positive, so a slot's score grows with its key. As soon as the
    measure of novelty knows the usual inputs, the policy reads a rare cue; the task loss need not find it first.

    :param buckets: number of biases, one for each bucket; the other arguments are those of `MemoryAttention`
    """

    BUCKETS = BY_AGE

    oldest_bucket: Tensor
    """[] int64, the bucket of the oldest age that training has met; `NEVER` until `settle` is called."""

    SCALE = 8.0
    """Factor from parameters to biases, so that an optimizer's steps soon single out one age."""
    OWN_STEP = -8.0
    """Initial bias of the step itself in heads that begin with unusual slots: the step that asks is unusual, too."""

    def __init__(
        self,
        width: int,
        heads: int,
        norm: SlotNorm | NoNorm,
        buckets: int,
        *,
        novelty: Novelty | None = None,
        **options: Any,
    ) -> None:
        self.novelty_heads = heads // 4 if novelty is not None and novelty.gain else 0
        biased = {"query_bias": True, "key_value_bias": self.novelty_heads > 0}
        super().__init__(width, heads, norm, novelty=novelty, **biased, **options)
        nn.init.zeros_(self.query.bias)
        self.age_bias = nn.Parameter(torch.zeros(heads, buckets))
        self.register_buffer("oldest_bucket", torch.tensor(NEVER))

    def reset_parameters(self) -> None:
        """Initialise as `MemoryAttention` does, and let some heads begin with unusual slots."""
        super().reset_parameters()
        if not self.novelty_heads:
            return
        first, last = self.novelty_heads, 2 * self.novelty_heads
        size = self.query.out_features // self.heads
        with torch.no_grad():
            self.query.weight[first * size : last * size] = 0.0
            self.query.bias[first * size : last * size] = 1.0
            self.key_value.bias[first * size : last * size] = 1.0  # keys come first
            self.age_bias[first:last, 0] = self.OWN_STEP / self.SCALE

    def age_biases(self) -> Tensor:
        """Return the biases that are added to scores, by head and bucket: [H, E]."""
        met = torch.arange(self.age_bias.shape[1], device=self.age_bias.device).clamp_max(self.oldest_bucket)
        return self.SCALE * self.age_bias.index_select(1, met)

    def settle(self, bucket: int) -> None:
        """Record the bucket of the oldest age of an update; the oldest of all updates counts."""
        extend(self.oldest_bucket, bucket)

    def _attend(
        self, queries: Tensor, time_queries: Tensor | None, keys_values: KeysValues, mask: BlockMask
    ) -> tuple[Tensor, Tensor]:
        return block_attention(queries, time_queries, keys_values, self.age_biases(), mask)


def normalise(slots: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Apply a layer norm to slots [.., D]; numbers that are not finite become 0."""
    normed = torch.layer_norm(slots, slots.shape[-1:], weight, bias)
    # Slots left in the window by another episode may overflow here. They get no weight, but 0 * NaN is NaN.
    normed.detach().nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
    return normed


def _split_heads(features: Tensor, heads: int) -> Tensor:
    """[B, N, D] -> [B, H, N, d]."""
    batch, count, width = features.shape
    return features.view(batch, count, heads, width // heads).transpose(1, 2)


def check_heads(heads: int, width: int) -> None:
    """Raise a ValueError unless `heads` divides `width`."""
    if width % heads:
        fitting = [count for count in range(1, width + 1) if width % count == 0]
        nearest = [max(count for count in fitting if count < heads), *(count for count in fitting if count > heads)][:2]
        raise ValueError(
            f"heads must divide width, got heads = {heads} and width = {width}; use heads = "
            f"{' or '.join(map(str, nearest))}"
        )
