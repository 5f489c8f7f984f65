"""Banded attention, with hand-written forward and backward, compared with plain attention and autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctrl.compressive.attention.block_attention import MASKED, KeysValues, block_attention
from ctrl.compressive.attention.block_mask import COPIES, BlockMask, block_size, find_buckets, lay_out, masked_bucket
from ctrl.compressive.schedule import plan_window
from ctrl.compressive.tiers import Tier, Tiers

BATCH, HEADS, WIDTH = 2, 3, 6
TIERS = (Tier(5), Tier(4, rate=3), Tier(2, rate=2))
MANY = (Tier(500), Tier(40, rate=3))
"""Tiers with so many slots that blocks are larger."""


def band_of(length: int, tiers: Tiers = TIERS) -> tuple[BlockMask, int]:
    """Return the mask of a window in the middle of episodes that end at different times, and its number of columns."""
    torch.manual_seed(0)
    reset = torch.zeros(BATCH, length, dtype=torch.bool)
    reset[0, length // 3] = reset[1, length // 2] = True
    plan = plan_window(tiers, torch.tensor([7, 31]), reset)
    layout = lay_out(tiers, length, reset.device)
    return BlockMask(layout.columns, find_buckets(tiers, plan, layout).long(), len(layout.columns) == 1), sum(
        tier.slot.shape[1] for tier in plan.tiers
    )


START = 5
"""Number of columns before those of the window's steps."""


def plain_attention(
    queries: Tensor,
    own: Tensor,
    rest: Tensor,
    biases: Tensor,
    decay: Tensor,
    time_queries: Tensor,
    time_keys: Tensor,
    mask: BlockMask,
    emphasis: Tensor | None = None,
) -> Tensor:
    """Compute attention of every query to every column, one head at a time.

    A column that a query's block does not contain has the masked bucket. Heads 1 and 2 forget; heads 0 and 1 know the
    time.
    """
    keys_values = torch.cat([rest[:, :START], own, rest[:, START:]], dim=1)
    if emphasis is not None:
        keys_values = keys_values * emphasis[:, :, None]
    blocks, size = mask.buckets.shape[1:3]
    length, count, features = queries.shape[1], keys_values.shape[1], WIDTH // HEADS
    row = torch.full((BATCH, blocks * size, count), biases.shape[1])
    for block in range(blocks):
        step = slice(block * size, (block + 1) * size)
        for position, column in enumerate(mask.columns[block].tolist()):  # a column may stand twice, once hidden
            row[:, step, column] = torch.minimum(row[:, step, column], mask.buckets[:, block, :, position] // COPIES)
    bias = torch.cat([biases, biases.new_full((HEADS, 1), MASKED)], dim=1)[:, row]
    keys, values = keys_values.chunk(2, dim=2)
    read = []
    for head in range(HEADS):
        part = slice(head * features, (head + 1) * features)
        scores = queries[..., part] @ keys[..., part].transpose(1, 2) / math.sqrt(features)
        if head < 2:
            scores = scores + time_queries[..., 7 * head : 7 * head + 7] @ time_keys.transpose(1, 2)
        if head > 0:
            scores = scores + decay[:, None, :, head - 1]
        read.append((scores + bias[head, :, :length]).softmax(dim=2) @ values[..., part])
    return torch.cat(read, dim=2)


@pytest.mark.parametrize(
    ("raw", "compressed", "size"), [(1, 1, 32), (256, 255, 32), (256, 256, 64), (2048, 512, 256), (90_000, 99, 256)]
)
def test_blocks_grow_with_the_slots(raw: int, compressed: int, size: int) -> None:
    tiers = Tier(raw), Tier(compressed, rate=1)
    assert (block_size(tiers, 999), block_size(tiers, 7)) == (size, 7)


@pytest.mark.parametrize("emphasised", [False, True])
@pytest.mark.parametrize(
    ("tiers", "length"), [*((TIERS, length) for length in (1, 9, 32, 33, 81)), (MANY, 63), (MANY, 64), (MANY, 150)]
)
def test_output_and_gradients_are_those_of_plain_attention(tiers: Tiers, length: int, emphasised: bool) -> None:
    mask, count = band_of(length, tiers)
    assert mask.buckets.shape[2] == block_size(tiers, length)
    queries = torch.randn(BATCH, length, WIDTH, dtype=torch.float64, requires_grad=True)
    own, rest = (
        torch.randn(BATCH, columns, 2 * WIDTH, dtype=torch.float64, requires_grad=True)
        for columns in (length, count - length)
    )
    biases = torch.randn(HEADS, masked_bucket(tiers), dtype=torch.float64, requires_grad=True)
    decay = torch.randn(BATCH, count, 2, dtype=torch.float64, requires_grad=True)
    time_queries = torch.randn(BATCH, length, 14, dtype=torch.float64, requires_grad=True)
    time_keys = torch.randn(BATCH, count, 7, dtype=torch.float64)
    emphasis = 1 + torch.rand(BATCH, count, dtype=torch.float64) if emphasised else None
    arguments = (queries, own, rest, biases, decay, time_queries)
    keys_values = KeysValues(own, rest, START, emphasis, decay, time_keys)
    found, weights = block_attention(queries, time_queries, keys_values, biases, mask)
    expected = plain_attention(*arguments, time_keys, mask, emphasis)
    torch.testing.assert_close(found, expected)
    assert not weights.requires_grad
    torch.testing.assert_close(weights.sum(dim=4), torch.ones_like(weights[..., 0]))
    of_outputs = torch.randn_like(found)
    gradients = (torch.autograd.grad(outputs, arguments, of_outputs) for outputs in (found, expected))
    for gradient, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_only_what_is_visible_has_weight() -> None:
    mask, count = band_of(40)
    biases = torch.randn(HEADS, masked_bucket(TIERS))
    queries, own = torch.randn(BATCH, 40, WIDTH), torch.randn(BATCH, 40, 2 * WIDTH)
    rest, decay = torch.randn(BATCH, count - 40, 2 * WIDTH), torch.randn(BATCH, count, 1)
    _, weights = block_attention(queries, None, KeysValues(own, rest, START, None, decay, None), biases, mask)
    visible = mask.buckets // COPIES != masked_bucket(TIERS)
    real = torch.arange(mask.buckets.shape[1] * mask.buckets.shape[2]).view(1, *mask.buckets.shape[1:3], 1) < 40
    assert not weights.masked_select(~visible & real).any()
    assert bool((weights.masked_select((visible & real).expand_as(weights)) > 0).all())
