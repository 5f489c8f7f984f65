"""Block masks: a window's steps in blocks, each with only the columns that its steps can see.

A step sees at most the n + 1 columns of a tier up to its own (see `ctrl.compressive.schedule`). So a block of Q steps
needs about n + Q / rho columns of the tier, however long the window is.

Each step has a relative-position bucket for each column: an index of a layer's table, by the slot's age in steps or its
distance in slots (see `Buckets`). The last bucket is the masked one and means "not visible". Buckets are the same for
all layers with the same tiers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrl.compressive.schedule import TierSchedule, WindowPlan, count_slots, tier_schedules
from ctrl.compressive.tiers import Tiers, reach

SMALLEST_BLOCK, LARGEST_BLOCK = 32, 256
"""Steps in a block, at least and at most; see `block_size`."""
COPIES = 8
"""Number of copies of each bias, used in turn along the columns. Neighbouring columns often share a bucket; summing
their gradients into different copies is faster, since no sum has to wait for the one before it."""
EXACT = 32
"""All ages below this, at least, have a bucket each."""


class BlockLayout(NamedTuple):
    """A window of T steps cut into N blocks of Q steps, each of which attends to W columns of all tiers."""

    columns: Tensor
    """[N, W] the columns that each block attends to, numbered through all tiers."""
    real: Tensor
    """[N, W] bool, false where a block would attend to columns beyond a tier's last."""
    widths: list[int]
    """W by tier."""
    steps: Tensor
    """[N, Q, 1] the steps of each block; the last ones may lie beyond the window."""


class BlockMask(NamedTuple):
    """Columns and relative-position buckets of each block."""

    columns: Tensor
    """[N, W] the columns that each block attends to."""
    buckets: Tensor
    """[B, N, Q, W] int64 bucket times `COPIES`, plus the copy of the bias that this column uses; see `Buckets`."""
    whole: bool
    """True if there is one block, with all columns in their order."""

    def split(self, steps: Tensor) -> Tensor:
        """[B, T, ...] -> [B, N, Q, ...]; the last block is filled up with zeros."""
        blocks, size = self.buckets.shape[1:3]
        missing = blocks * size - steps.shape[1]
        if missing:
            steps = torch.cat([steps, steps.new_zeros(len(steps), missing, *steps.shape[2:])], dim=1)
        return steps.view(len(steps), blocks, size, *steps.shape[2:])

    def join(self, blocks: Tensor, length: int) -> Tensor:
        """[B, N, Q, ...] -> [B, T, ...], T = `length`."""
        return blocks.flatten(1, 2)[:, :length]


def exact_ages(tiers: Tiers) -> int:
    """Return how many ages, from 0 on, have a bucket each: a power of two, at least the slots of tier 0."""
    return max(EXACT, 1 << (tiers[0].slots - 1).bit_length())


def age_bucket(age: Tensor, exact: int = EXACT) -> Tensor:
    """Return the bucket of each age: one per step below `exact`, then 4 per doubling, evenly within it.

    From `exact` on, a power of two, the bucket is read from the exponent and the first two binary digits of a float32.
    """
    first = (exact.bit_length() - 1 + _FLOAT_BIAS) * 4
    rounded = (age.clamp_min(exact).float().view(torch.int32) >> 21) - (first - exact)
    return torch.where(age < exact, age, rounded)


_FLOAT_BIAS = 127
"""Exponent bias of float32."""


@lru_cache
def masked_bucket(tiers: Tiers) -> int:
    """Return the bucket for all that is not visible: one after that of the oldest age that these tiers reach."""
    oldest = torch.tensor(reach(tiers), device="cpu")  # also where a core is laid out on the meta device
    return int(age_bucket(oldest, exact_ages(tiers))) + 1


def block_size(tiers: Tiers, length: int) -> int:
    """Return the steps of a block: a power of two, about an eighth of the slots that a step sees.

    Larger blocks make larger matrix products and copy fewer columns. But each step masks about as many of its block's
    columns as the block has steps.
    """
    eighth = max(1, sum(tier.slots for tier in tiers) // 8)
    size = 1 << (eighth.bit_length() - 1)
    return min(max(size, SMALLEST_BLOCK), LARGEST_BLOCK, length)


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # the cached tensors may be made while acting and used in training later
def lay_out(tiers: Tiers, length: int, device: torch.device) -> BlockLayout:
    """Cut windows of `length` steps into blocks."""
    size = block_size(tiers, length)
    blocks = -(-length // size)
    columns, widths, offset = [], [], 0
    for schedule in tier_schedules(tiers):
        count = schedule.count_columns(length)
        wanted = _columns_of_blocks(schedule, blocks, size, count)
        columns.append(torch.where(wanted < count, wanted + offset, -1))
        widths.append(wanted.shape[1])
        offset += count
    joined = torch.cat(columns, dim=1)
    steps = torch.arange(blocks * size).view(blocks, size, 1)
    return BlockLayout(joined.clamp_min(0).to(device), (joined >= 0).to(device), widths, steps.to(device))


def visible(plan: WindowPlan, layout: BlockLayout) -> Tensor:
    """Return [B, N, Q, W] bool, true where the step sees the column's slot."""
    born = _at(layout, [torch.where(tier.exists, tier.step, plan.length) for tier in plan.tiers])
    gone = _at(layout, [tier.gone for tier in plan.tiers])
    born = born.masked_fill(~layout.real, plan.length)
    return (layout.steps >= born[:, :, None]) & (layout.steps < gone[:, :, None])


def tier_mask(tiers: Tiers, mask: BlockMask, tier: int, length: int) -> tuple[BlockMask, slice]:
    """Cut one tier out of the mask of windows of T = `length` steps.

    :return: the tier's own mask, with columns numbered from T on, and its part of the W columns of each block
    """
    layout = lay_out(tiers, length, mask.buckets.device)
    part = slice(sum(layout.widths[:tier]), sum(layout.widths[: tier + 1]))
    offset = sum(schedule.count_columns(length) for schedule in tier_schedules(tiers)[:tier])
    columns = (mask.columns[:, part] - offset).clamp_min(0) + length
    return BlockMask(columns, mask.buckets[..., part], whole=False), part


def ages(plan: WindowPlan, layout: BlockLayout) -> Tensor:
    """Return [B, N, Q, W] each slot's age at each step, from its centre, rounded down; meaningless where not visible.

    The result is int32, which is faster, unless ages may exceed it.
    """
    centres = [tier.step - (tier.schedule.first - tier.schedule.span // 2) for tier in plan.tiers]
    last = plan.tiers[-1].schedule
    dtype = torch.int32 if last.first + last.slots * last.span + plan.length < 2**31 else torch.int64
    return layout.steps.to(dtype) - _at(layout, centres).to(dtype)[:, :, None]


def distances(tiers: Tiers, plan: WindowPlan, layout: BlockLayout) -> Tensor:
    """Return [B, N, Q, W] how many visible slots are newer than each slot, at each step; meaningless where not visible.

    This is Transformer-XL's distance in the sequence of compressed memory, memory and current step. Say that by a step
    c_i slots of tier i are formed, of which e_i have left it. Then slot k of tier i is at the distance
    sum of (c_j - e_j) over j < i, plus c_i - 1 - k. The step itself is at the distance 0.
    """
    blocks, size, _ = layout.steps.shape
    time = F.pad(plan.time, (0, blocks * size - plan.length)).view(-1, blocks, size, 1)
    newer = torch.zeros_like(time)
    newest = []  # by tier, [B, N, Q, W_i] the distance of slot 0
    for counts, width in zip(count_slots(tiers, time + 1), layout.widths, strict=True):
        newest.append((newer + counts.created - 1).expand(-1, -1, -1, width))
        newer = newer + counts.created - counts.evicted
    return torch.cat(newest, dim=3) - _at(layout, [tier.slot for tier in plan.tiers])[:, :, None]


class Buckets(NamedTuple):
    """A kind of relative-position buckets: which entry of a layer's table stands for a slot, by its age or distance."""

    find: Callable[[Tiers, WindowPlan, BlockLayout], Tensor]
    """Returns [B, N, Q, W] int32 or int64 buckets, meaningless where not visible."""
    masked: Callable[[Tiers], int]
    """Returns the masked bucket, one after the last that is in use."""


BY_AGE = Buckets(lambda tiers, plan, layout: age_bucket(ages(plan, layout), exact_ages(tiers)), masked_bucket)
BY_DISTANCE = Buckets(distances, lambda tiers: sum(tier.slots for tier in tiers))


def find_buckets(tiers: Tiers, plan: WindowPlan, layout: BlockLayout, kind: Buckets = BY_AGE) -> Tensor:
    """Return `BlockMask.buckets`, as int16 to save memory, or as int32 where there are too many buckets for that.

    :param kind: by age or by distance
    """
    masked = kind.masked(tiers)
    found = kind.find(tiers, plan, layout).masked_fill_(~visible(plan, layout), masked)
    buckets = found.to(torch.int16 if (masked + 1) * COPIES <= 2**15 else torch.int32)
    copies = torch.arange(buckets.shape[3], device=buckets.device) % COPIES
    return buckets.mul_(COPIES).add_(copies.to(buckets.dtype))


def _at(layout: BlockLayout, columns: list[Tensor]) -> Tensor:
    """Join the tiers' columns [B, C_i], and gather those of each block: [B, N, W]."""
    joined = torch.cat(columns, dim=1)
    picked: Tensor = joined.index_select(1, layout.columns.flatten()).view(-1, *layout.columns.shape)
    return picked


def _columns_of_blocks(schedule: TierSchedule, blocks: int, size: int, count: int) -> Tensor:
    """Return [N, W_i], the columns up to that of each block's last step, from n before that of its first step."""
    if blocks == 1:
        return torch.arange(count)[None]
    first = [start // schedule.span for start in range(0, blocks * size, size)]
    last = [(start + size - 1) // schedule.span for start in range(0, blocks * size, size)]
    width = 1 + schedule.slots + max(end - start for start, end in zip(first, last, strict=True))
    return torch.tensor(first)[:, None] + torch.arange(width)
