"""Attention with Transformer-XL's relative positions (Dai et al. 2019, arXiv 1901.02860, section 3.3).

The score of a slot x for a step h, d slots apart, is

    (W_q h + u)^T W_k x + (W_q h + v)^T W_r R_d        R_d = (sin(d f_0), sin(d f_1), .., cos(d f_0), cos(d f_1), ..)

with f_i = 10000^(-2i / D) and the biases u and v of each head, divided by the root of the head's size (which the paper
leaves out of its equations, and its code does not). Positions are distances in slots, not ages, see
`ctrl.compressive.attention.block_mask.distances`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrl.compressive.attention.block_attention import KeysValues, masked_score
from ctrl.compressive.attention.block_mask import BY_DISTANCE, COPIES, BlockMask
from ctrl.compressive.attention.memory_attention import MemoryAttention, NoNorm, SlotNorm


class RelativeAttention(MemoryAttention):
    """Attention by content and by the sinusoids of the distance in slots.

    :param distances: number of distances, from 0 on; the other arguments are those of `MemoryAttention`
    """

    BUCKETS = BY_DISTANCE

    def __init__(self, width: int, heads: int, norm: SlotNorm | NoNorm, distances: int, **options: Any) -> None:
        super().__init__(width, heads, norm, **options)
        self.position_key = nn.Linear(width, width, bias=False)  # W_r
        self.content_bias = nn.Parameter(torch.zeros(heads, width // heads))  # u
        self.position_bias = nn.Parameter(torch.zeros(heads, width // heads))  # v
        self.register_buffer("sinusoids", sinusoids(distances, width), persistent=False)

    def _attend(
        self, queries: Tensor, time_queries: Tensor | None, keys_values: KeysValues, mask: BlockMask
    ) -> tuple[Tensor, Tensor]:
        encodings = self.get_buffer("sinusoids").to(self.position_key.weight)
        position_keys = self.position_key(encodings).unflatten(1, (self.heads, -1)).transpose(0, 1)  # [H, E, d]
        biases = self.content_bias, self.position_bias
        return relative_attention(queries, time_queries, keys_values, position_keys, biases, mask)


def sinusoids(count: int, width: int) -> Tensor:
    """Return R [E, D] for distances 0 .. E - 1: sines of D / 2 frequencies (rounded up), then their cosines."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(count, dtype=torch.float64)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width].float()


def relative_attention(
    queries: Tensor,
    time_queries: Tensor | None,
    keys_values: KeysValues,
    position_keys: Tensor,
    biases: tuple[Tensor, Tensor],
    mask: BlockMask,
) -> tuple[Tensor, Tensor]:
    """Attend from each block's steps to its columns; sizes as in `ctrl.compressive.attention.block_attention`.

    :param queries: [B, T, D]
    :param time_queries: [B, T, J K] of the first J heads; None without a clock
    :param keys_values: of all columns
    :param position_keys: [H, E, d], one for each bucket of the mask but the masked one
    :param biases: u and v, each [H, d]
    :param mask: columns and buckets of each block
    :return: the heads' outputs side by side, [B, T, D], and the weights, [H, B, N, Q, W], without a graph
    """
    heads, _, features = position_keys.shape
    of_content, of_position = (bias[:, None, None, None] for bias in biases)
    query = mask.split(queries).unflatten(3, (heads, -1)).movedim(3, 0)  # [H, B, N, Q, d]
    columns = keys_values.joined().index_select(1, mask.columns.flatten()).unflatten(1, mask.columns.shape)
    key, value = columns.unflatten(3, (2, heads, -1)).permute(3, 4, 0, 1, 2, 5)  # [H, B, N, W, d] each
    by_distance = (query + of_position) @ position_keys.transpose(1, 2)[:, None, None]  # [H, B, N, Q, E]
    by_distance = F.pad(by_distance / math.sqrt(features), (0, 1), value=masked_score(query.dtype))
    by_content = (query + of_content) @ key.transpose(3, 4) / math.sqrt(features)  # [H, B, N, Q, W]
    if time_queries is not None and keys_values.time_keys is not None:
        time_key = keys_values.time_keys.index_select(1, mask.columns.flatten()).unflatten(1, mask.columns.shape)
        time_query = mask.split(time_queries).unflatten(3, (-1, time_key.shape[3])).movedim(3, 0)  # [J, B, N, Q, K]
        by_time = time_query @ time_key.transpose(2, 3)
        by_content = torch.cat([by_content[: len(by_time)] + by_time, by_content[len(by_time) :]])
    decay = keys_values.decay
    lost = F.pad(decay, (heads - decay.shape[2], 0)).index_select(1, mask.columns.flatten())
    lost = lost.unflatten(1, mask.columns.shape).permute(3, 0, 1, 2)[:, :, :, None]  # [H, B, N, 1, W]
    bucket = (mask.buckets // COPIES).expand(heads, -1, -1, -1, -1)
    weights = (by_content + lost + by_distance.gather(4, bucket)).softmax(dim=4)
    attended = (weights @ value).movedim(0, 3).flatten(start_dim=3)  # [B, N, Q, D]
    return mask.join(attended, queries.shape[1]), weights.detach()
