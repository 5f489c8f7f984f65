"""Attention of a window's blocks to their columns, with a backward pass by hand.

Autograd would be slow on a CPU for two gradients: that of a table lookup, and that of columns that several blocks
share. Heads are computed one by one, because the scores of one head stay in a CPU's cache, and those of all don't.

Sizes are those of `ctrl.compressive.attention.block_mask`: B windows of T steps in N blocks of Q steps, each with W of
the C columns; H heads of d = D / H features.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrl.compressive.attention.block_mask import COPIES, BlockMask

MASKED = -1e30
"""Score of a masked slot. It is finite, so that a query without any visible slot stays finite, and exp() of it is
exactly 0 beside a real score."""


def masked_score(dtype: torch.dtype) -> float:
    """Return `MASKED`, or a quarter of the lowest number in float16, which has none so low."""
    return max(MASKED, torch.finfo(dtype).min / 4)


class KeysValues(NamedTuple):
    """Keys and values of all columns, those of the window's own steps apart from the rest, and their score terms."""

    own: Tensor
    """[B, T, 2 D] of the window's steps."""
    rest: Tensor
    """[B, C - T, 2 D] of all other columns."""
    start: int
    """Number of columns of the rest that come before the window's steps."""
    emphasis: Tensor | None
    """[B, C] the factor of keys and values, without a graph, not yet applied; None for 1."""
    decay: Tensor
    """[B, C, F] added to the scores of the last F heads; F may be 0."""
    time_keys: Tensor | None
    """[B, C, K] time keys, see `ctrl.compressive.attention.clock`, without a graph; None without a clock."""

    def joined(self) -> Tensor:
        """Return [B, C, 2 D] keys and values of all columns in their order, times emphasis."""
        joined = torch.cat(in_order(self.own, self.rest, self.start), dim=1)
        return joined if self.emphasis is None else joined * self.emphasis[:, :, None]


def in_order(own: Tensor, rest: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the parts [B, .., 2 D] of `KeysValues` in the order of the columns."""
    return rest[:, :start], own, rest[:, start:]


def block_attention(
    queries: Tensor, time_queries: Tensor | None, keys_values: KeysValues, biases: Tensor, mask: BlockMask
) -> tuple[Tensor, Tensor]:
    """Attend from each block's steps to its columns.

    :param queries: [B, T, D]
    :param time_queries: [B, T, J K] of the first J heads; None without a clock
    :param keys_values: of all columns
    :param biases: [H, E], one for each bucket but the masked one
    :param mask: columns and buckets of each block
    :return: the heads' outputs side by side, [B, T, D], and the weights, [H, B, N, Q, W], which carry no gradient
    """
    attended, weights = _BlockAttention.apply(queries, time_queries, biases, mask, *keys_values)  # type: ignore[no-untyped-call]
    return attended, weights


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        time_queries: Tensor | None,
        biases: Tensor,
        mask: BlockMask,
        own: Tensor,
        rest: Tensor,
        start: int,
        emphasis: Tensor | None,
        decay: Tensor,
        time_keys: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        heads, (batch, blocks, size, width) = len(biases), mask.buckets.shape
        scale = 1 / math.sqrt(queries.shape[2] // heads)
        query = _split_heads(mask.split(queries), heads)  # [H, B, N, Q, d]
        columns = _by_head(in_order(own, rest, start), heads)  # [2, H, B, C, d]
        if emphasis is not None:
            columns *= emphasis[:, :, None]
        if not mask.whole:
            columns = columns.index_select(3, mask.columns.flatten())
        columns = columns.view(2, heads, -1, width, query.shape[4])  # [2, H, B N, W, d]
        key, value = columns
        table = F.pad(biases, (0, 1), value=masked_score(biases.dtype)).repeat_interleave(COPIES, dim=1)
        forgetting = slice(heads - decay.shape[2], heads)
        lost = decay.index_select(1, mask.columns.flatten()).unflatten(1, mask.columns.shape)  # [B, N, W, F]
        time_query, time_key = query.new_empty(0), None  # [J, B, N, Q, K], [B N, W, K]
        if time_queries is not None and time_keys is not None:
            time_query = _split_heads(mask.split(time_queries), time_queries.shape[2] // time_keys.shape[2])
            time_key = time_keys.index_select(1, mask.columns.flatten()).view(batch * blocks, width, -1)
        weights, attended = query.new_empty(heads, *mask.buckets.shape), torch.empty_like(query)
        for head in range(heads):
            scores = weights[head].view(-1, size, width)
            torch.index_select(table[head], 0, mask.buckets.flatten(), out=scores.view(-1))
            scores.baddbmm_(query[head].flatten(0, 1), key[head].transpose(1, 2), alpha=scale)
            if time_key is not None and head < len(time_query):
                scores.baddbmm_(time_query[head].flatten(0, 1), time_key.transpose(1, 2))
            if head >= forgetting.start:
                weights[head].add_(lost[..., head - forgetting.start][:, :, None])
            torch.softmax(scores, 2, out=scores)
            torch.bmm(scores, value[head], out=attended[head].view(-1, size, query.shape[4]))
        ctx.mask, ctx.scale, ctx.num_buckets = mask, scale, biases.shape[1]
        ctx.own, ctx.count = slice(start, start + own.shape[1]), own.shape[1] + rest.shape[1]
        ctx.forgetting, ctx.timed = forgetting, len(time_query)
        ctx.save_for_backward(query, columns, weights, emphasis, time_key)
        ctx.set_materialize_grads(False)  # no gradient arrives for the weights
        ctx.mark_non_differentiable(weights)
        return mask.join(_join_heads(attended), queries.shape[1]), weights

    @staticmethod
    def backward(ctx: Any, of_output: Tensor, _: None) -> tuple[Tensor | None, ...]:
        mask, scale, count = ctx.mask, ctx.scale, ctx.count
        query, columns, weights, emphasis, time_key = ctx.saved_tensors
        key, value = columns
        heads, batch, _, size, features = query.shape
        of_attended = _split_heads(mask.split(of_output), heads)  # [H, B, N, Q, d]
        of_query, of_columns = torch.empty_like(query), torch.empty_like(columns)
        of_lost, of_times = [], []
        of_table = query.new_zeros(heads, (ctx.num_buckets + 1) * COPIES)
        for head in range(heads):
            weight, of_head = weights[head].flatten(0, 1), of_attended[head].flatten(0, 1)
            of_scores = torch.bmm(of_head, value[head].transpose(1, 2))
            torch._softmax_backward_data(of_scores, weight, 2, weight.dtype, grad_input=of_scores)
            _multiply(of_scores.transpose(1, 2), query[head].flatten(0, 1), scale, of_columns[0, head])
            torch.bmm(weight.transpose(1, 2), of_head, out=of_columns[1, head])
            _multiply(of_scores, key[head], scale, of_query[head].view(-1, size, features))
            if head < ctx.timed:
                of_times.append(torch.bmm(of_scores, time_key).view(batch, -1, size, time_key.shape[2]))
            of_table[head].scatter_add_(0, mask.buckets.flatten(), of_scores.flatten())
            if head >= ctx.forgetting.start:
                of_lost.append(of_scores.sum(dim=1).view(batch, -1, 1))  # [B, N W, 1]
        of_columns = _gather_blocks(of_columns.view(2, heads, batch, -1, features), mask, count)  # [2, H, B, C, d]
        if emphasis is not None:
            of_columns *= emphasis[:, :, None]
        of_decay = _gather_blocks(torch.cat(of_lost, dim=2), mask, count) if of_lost else None  # [B, C, F]
        of_biases = of_table.view(heads, -1, COPIES).sum(dim=2)  # the last is the masked bucket's, 0
        of_queries = mask.join(_join_heads(of_query), of_output.shape[1])
        of_time_queries = mask.join(torch.cat(of_times, dim=3), of_output.shape[1]) if of_times else None
        of_own, of_rest = _by_column(of_columns, ctx.own)
        return of_queries, of_time_queries, of_biases[:, :-1], None, of_own, of_rest, None, None, of_decay, None


def _multiply(left: Tensor, right: Tensor, scale: float, out: Tensor) -> None:
    """Write scale * left @ right to `out`."""
    torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _by_head(parts: tuple[Tensor, ...], heads: int) -> Tensor:
    """Return [2, H, B, C, d] keys and values, contiguous, from parts [B, .., 2 D]."""
    by_head = [part.unflatten(2, (2, heads, -1)).permute(2, 3, 0, 1, 4) for part in parts]
    return torch.cat(by_head, dim=3).contiguous()


def _by_column(columns: Tensor, own: slice) -> tuple[Tensor, Tensor]:
    """[2, H, B, C, d] -> [B, T, 2 D] of the window's steps and [B, C - T, 2 D] of the rest."""
    by_column = columns.permute(2, 3, 0, 1, 4)
    rest = torch.cat([by_column[:, : own.start], by_column[:, own.stop :]], dim=1)
    return by_column[:, own].flatten(2), rest.flatten(2)


def _gather_blocks(blocks: Tensor, mask: BlockMask, count: int) -> Tensor:
    """Sum over blocks what belongs to the same column: [.., N W, d] -> [.., C, d], C = `count`."""
    if mask.whole:
        return blocks
    whole = blocks.new_zeros(*blocks.shape[:-2], count, blocks.shape[-1])
    return whole.index_add_(-2, mask.columns.flatten(), blocks)


def _split_heads(features: Tensor, heads: int) -> Tensor:
    """[.., D] -> [H, .., d], contiguous."""
    split: Tensor = features.unflatten(-1, (heads, -1))
    return split.movedim(-2, 0).contiguous()


def _join_heads(features: Tensor) -> Tensor:
    """[H, .., d] -> [.., D]."""
    return features.movedim(0, -2).flatten(start_dim=-2)
