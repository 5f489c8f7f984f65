"""Attention of a window's blocks to their columns, forward and backward by hand.

Written out because on a CPU two gradients are slow if left to autograd: that of a table lookup, and that of columns
which several blocks share. Head by head, because the scores of one head stay in a CPU's cache, and those of all don't.
Sizes are those of `ctrl.band`: B windows of T steps in N blocks of Q steps, each with W of the C columns; H heads of
d = D / H features.
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


class KeysValues(NamedTuple):
    """Keys and values of all columns: those of the window's steps stand among the rest."""

    own: Tensor
    """[B, T, 2 D] of the window's steps."""
    rest: Tensor
    """[B, C - T, 2 D] of all other columns."""
    start: int
    """How many of the rest come before the window's steps."""

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return them in the columns' order."""
        return self.rest[:, : self.start], self.own, self.rest[:, self.start :]


class ColumnTerms(NamedTuple):
    """What is known of each column beside its content."""

    emphasis: Tensor | None
    """[B, C] how many times as large keys and values become, without a graph; None for 1."""
    decay: Tensor
    """[B, C, F] added to the scores of the last F heads; F may be 0."""
    clock_keys: Tensor
    """[B, C, K d] added to the keys of K heads; K may be 0."""
    clock_from: int
    """The first of these K heads."""


def banded_attention(
    queries: Tensor, keys_values: KeysValues, biases: Tensor, terms: ColumnTerms, band: Band
) -> tuple[Tensor, Tensor]:
    """Attend from each block's steps to its columns.

    :param queries: [B, T, D]
    :param keys_values: of all columns
    :param biases: [H, E], one for each row of the band but the hidden one
    :param terms: of all columns
    :return: the heads' outputs side by side, [B, T, D], and the weights, [H, B, N, Q, W], which carry no gradient
    """
    read, weights = _BandedAttention.apply(queries, biases, band, *keys_values, *terms)  # type: ignore[no-untyped-call]
    return read, weights


class _BandedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        biases: Tensor,
        band: Band,
        own: Tensor,
        rest: Tensor,
        start: int,
        emphasis: Tensor | None,
        decay: Tensor,
        clock_keys: Tensor,
        clock_from: int,
    ) -> tuple[Tensor, Tensor]:
        heads, (_, _, size, width) = len(biases), band.row.shape
        scale = 1 / math.sqrt(queries.shape[2] // heads)
        query = _split_heads(band.split(queries), heads)  # [H, B, N, Q, d]
        columns = _by_head(KeysValues(own, rest, start), heads)  # [2, H, B, C, d]
        if emphasis is not None:
            columns *= emphasis[:, :, None]
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
            scores.baddbmm_(query[head].flatten(0, 1), key[head].transpose(1, 2), alpha=scale)
            if head >= forgetting.start:
                weights[head].add_(lost[..., head - forgetting.start][:, :, None])
            torch.softmax(scores, 2, out=scores)
            torch.bmm(scores, value[head], out=read[head].view(-1, size, query.shape[4]))
        ctx.band, ctx.scale, ctx.rows = band, scale, biases.shape[1]
        ctx.own, ctx.count = slice(start, start + own.shape[1]), own.shape[1] + rest.shape[1]
        ctx.clocked, ctx.forgetting = clocked, forgetting
        ctx.save_for_backward(query, columns, weights, emphasis)
        ctx.set_materialize_grads(False)  # none arrives for the weights
        ctx.mark_non_differentiable(weights)
        return band.join(_join_heads(read), queries.shape[1]), weights

    @staticmethod
    def backward(ctx: Any, of_output: Tensor, _: None) -> tuple[Tensor | None, ...]:
        band, scale, count = ctx.band, ctx.scale, ctx.count
        query, columns, weights, emphasis = ctx.saved_tensors
        key, value = columns
        heads, batch, _, size, features = query.shape
        of_read = _split_heads(band.split(of_output), heads)  # [H, B, N, Q, d]
        of_query, of_columns = torch.empty_like(query), torch.empty_like(columns)
        of_lost = []
        of_table = query.new_zeros(heads, (ctx.rows + 1) * COPIES)
        for head in range(heads):
            weight, of_head = weights[head].flatten(0, 1), of_read[head].flatten(0, 1)
            of_scores = torch.bmm(of_head, value[head].transpose(1, 2))
            torch._softmax_backward_data(of_scores, weight, 2, weight.dtype, grad_input=of_scores)
            _multiply(of_scores.transpose(1, 2), query[head].flatten(0, 1), scale, of_columns[0, head])
            torch.bmm(weight.transpose(1, 2), of_head, out=of_columns[1, head])
            _multiply(of_scores, key[head], scale, of_query[head].view(-1, size, features))
            of_table[head].scatter_add_(0, band.row.flatten(), of_scores.flatten())
            if head >= ctx.forgetting.start:
                of_lost.append(of_scores.sum(dim=1).view(batch, -1, 1))  # [B, N W, 1]
        of_columns = _gather_blocks(of_columns.view(2, heads, batch, -1, features), band, count)  # [2, H, B, C, d]
        of_clock_keys = of_columns[0, ctx.clocked].permute(1, 2, 0, 3).clone(memory_format=torch.contiguous_format)
        if emphasis is not None:
            of_columns *= emphasis[:, :, None]
        of_decay = _gather_blocks(torch.cat(of_lost, dim=2), band, count) if of_lost else None  # [B, C, F]
        of_rows = of_table.view(heads, -1, COPIES).sum(dim=2)  # the last is the hidden one's, 0
        of_queries = band.join(_join_heads(of_query), of_output.shape[1])
        of_own, of_rest = _by_column(of_columns, ctx.own)
        return of_queries, of_rows[:, :-1], None, of_own, of_rest, None, None, of_decay, of_clock_keys.flatten(2), None


def _multiply(left: Tensor, right: Tensor, scale: float, out: Tensor) -> None:
    """Write scale * left @ right to `out`."""
    torch.baddbmm(out, left, right, beta=0, alpha=scale, out=out)


def _by_head(keys_values: KeysValues, heads: int) -> Tensor:
    """Return [2, H, B, C, d] keys and values, contiguous."""
    parts = [part.unflatten(2, (2, heads, -1)).permute(2, 3, 0, 1, 4) for part in keys_values.parts()]
    return torch.cat(parts, dim=3).contiguous()


def _by_column(columns: Tensor, own: slice) -> tuple[Tensor, Tensor]:
    """[2, H, B, C, d] -> [B, T, 2 D] of the window's steps and [B, C - T, 2 D] of the rest."""
    by_column = columns.permute(2, 3, 0, 1, 4)
    rest = torch.cat([by_column[:, : own.start], by_column[:, own.stop :]], dim=1)
    return by_column[:, own].flatten(2), rest.flatten(2)


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
