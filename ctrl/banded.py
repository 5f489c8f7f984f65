"""Attention of a window's blocks to their columns, forward and backward by hand.

Written out because on a CPU two gradients are slow if left to autograd: that of a table lookup, and that of columns
which several blocks share. Head by head, because the scores of one head stay in a CPU's cache, and those of all don't. Sizes are those of `ctrl.band`: B windows of T steps in N blocks of Q steps, each with W of
the C columns; H heads of d = D / H features.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrl.band import COPIES, Band

HIDDEN = -1e30
"""Score of what is not visible: finite, so that a row without any visible column stays finite, and exp() of it is
exactly 0 beside a real score."""


class ColumnTerms(NamedTuple):
    """What some heads know of each column beside its content."""

    decay: Tensor
    """[B, C, F] added to the scores of the last F heads; F may be 0."""
    clock_keys: Tensor
    """[B, C, K d] added to the keys of K heads; K may be 0."""
    clock_from: int
    """The first of these K heads."""


def banded_attention(
    queries: Tensor, keys_values: Tensor, biases: Tensor, terms: ColumnTerms, band: Band
) -> tuple[Tensor, Tensor]:
    """Attend from each block's steps to its columns.

    :param queries: [B, T, D]
    :param keys_values: [B, C, 2 D]
    :param biases: [H, E], one for each row of the band but the hidden one
    :param terms: of all columns
    :return: the heads' outputs side by side, [B, T, D], and the weights, [H, B, N, Q, W], which carry no gradient
    """
    read, weights = _BandedAttention.apply(queries, keys_values, biases, *terms, band)  # type: ignore[no-untyped-call]
    return read, weights


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys_values: Tensor,
        biases: Tensor,
        decay: Tensor,
        clock_keys: Tensor,
        clock_from: int,
        band: Band,
    ) -> tuple[Tensor, Tensor]:
        heads, (_, _, size, width) = len(biases), band.row.shape
        scale = 1 / math.sqrt(queries.shape[2] // heads)
        query = _split_heads(band.split(queries) * scale, heads)  # [H, B, N, Q, d]
        columns = keys_values.unflatten(2, (2, heads, -1)).permute(2, 3, 0, 1, 4).contiguous()  # [2, H, B, C, d]
        clocked = slice(clock_from, clock_from + clock_keys.shape[2] // query.shape[4])
        if clock_keys.shape[2]:
            columns[0, clocked] += clock_keys.unflatten(2, (-1, query.shape[4])).permute(2, 0, 1, 3)
        if not band.whole:
            columns = columns.index_select(3, band.columns.flatten())
        columns = columns.view(2, heads, -1, width, query.shape[4])  # [2, H, B N, W, d]
        key, value = columns
        table = F.pad(biases, (0, 1), value=HIDDEN).repeat_interleave(COPIES, dim=1)
        forgetting = slice(heads - decay.shape[2], heads)
        lost = decay.index_select(1, band.columns.flatten()).unflatten(1, band.columns.shape)  # [B, N, W, F]
        weights, read = query.new_empty(heads, *band.row.shape), torch.empty_like(query)
        for head in range(heads):
            scores = weights[head].view(-1, size, width)
            torch.index_select(table[head], 0, band.row.flatten(), out=scores.view(-1))
            scores.baddbmm_(query[head].flatten(0, 1), key[head].transpose(1, 2))
            if head >= forgetting.start:
                weights[head].add_(lost[..., head - forgetting.start][:, :, None])
            torch.softmax(scores, 2, out=scores)
            torch.bmm(scores, value[head], out=read[head].view(-1, size, query.shape[4]))
        ctx.band, ctx.scale, ctx.counts = band, scale, (keys_values.shape[1], biases.shape[1])
        ctx.clocked, ctx.forgetting = clocked, forgetting
        ctx.save_for_backward(query, columns, weights)
        ctx.set_materialize_grads(False)  # none arrives for the weights
        ctx.mark_non_differentiable(weights)
        return band.join(_join_heads(read), queries.shape[1]), weights

    @staticmethod
    def backward(ctx: Any, of_output: Tensor, _: None) -> tuple[Tensor | None, ...]:
        band, (count, rows) = ctx.band, ctx.counts
        query, columns, weights = ctx.saved_tensors
        key, value = columns
        heads, batch, _, size, features = query.shape
        of_read = _split_heads(band.split(of_output), heads)  # [H, B, N, Q, d]
        of_query, of_columns = torch.empty_like(query), torch.empty_like(columns)
        of_lost = []
        of_table = query.new_zeros(heads, (rows + 1) * COPIES)
        for head in range(heads):
            weight, of_head = weights[head].flatten(0, 1), of_read[head].flatten(0, 1)
            of_scores = torch.bmm(of_head, value[head].transpose(1, 2))
            torch._softmax_backward_data(of_scores, weight, 2, weight.dtype, grad_input=of_scores)
            torch.bmm(of_scores.transpose(1, 2), query[head].flatten(0, 1), out=of_columns[0, head])
            torch.bmm(weight.transpose(1, 2), of_head, out=of_columns[1, head])
            torch.bmm(of_scores, key[head], out=of_query[head].view(-1, size, features))
            of_table[head].scatter_add_(0, band.row.flatten(), of_scores.flatten())
            if head >= ctx.forgetting.start:
                of_lost.append(of_scores.sum(dim=1).view(batch, -1, 1))  # [B, N W, 1]
        of_columns = _gather_blocks(of_columns.view(2, heads, batch, -1, features), band, count)  # [2, H, B, C, d]
        of_keys_values = of_columns.permute(2, 3, 0, 1, 4).reshape(batch, count, -1)
        of_clock_keys = of_columns[0, ctx.clocked].permute(1, 2, 0, 3).reshape(batch, count, -1)
        of_decay = _gather_blocks(torch.cat(of_lost, dim=2), band, count) if of_lost else None  # [B, C, F]
        of_rows = of_table.view(heads, -1, COPIES).sum(dim=2)  # the last is the hidden one's, 0
        of_queries = band.join(_join_heads(of_query) * ctx.scale, of_output.shape[1])
        return of_queries, of_keys_values, of_rows[:, :-1], of_decay, of_clock_keys, None, None


def _gather_blocks(blocks: Tensor, band: Band, count: int) -> Tensor:
    """Add up what all blocks say of each column: [.., N W, d] -> [.., C, d], C = `count`."""
    if band.whole:
        return blocks
    whole = blocks.new_zeros(*blocks.shape[:-2], count, blocks.shape[-1])
    return whole.index_add_(-2, band.columns.flatten(), blocks)


def _split_heads(features: Tensor, heads: int) -> Tensor:
    """[.., D] -> [H, .., d], contiguous."""
    split: Tensor = features.unflatten(-1, (heads, -1))
    return split.movedim(-2, 0).contiguous()


def _join_heads(features: Tensor) -> Tensor:
    """[H, .., d] -> [.., D]."""
    return features.movedim(0, -2).flatten(start_dim=-2)
