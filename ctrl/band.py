"""Banded attention: a window's steps in blocks, each with only the columns that its steps can see.

A step sees at most the n + 1 columns of a tier up to its own (see `ctrl.timeline`), so a block of Q steps needs
n + Q / rho or so of them, however long the window is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctrl.timeline import StepPlan, TierPlan, WindowPlan

BLOCK = 32
"""Steps in a block: enough for good matrix products, and not many columns that are masked for most of its steps."""


class Band(NamedTuple):
    """How a window of T steps is cut into N blocks of Q steps, each of which attends to W columns of all tiers."""

    columns: Tensor
    """[N, W] columns that each block attends to, numbered through all tiers."""
    widths: list[int]
    """W by tier."""
    visible: Tensor
    """[B, N, Q, W] bool, true where a step may attend to a column."""
    raw_age: Tensor
    """[Q, W_0] int64, steps from a column of tier 0 to a step: the same in all blocks. Negative: not yet formed."""
    compressed_age: Tensor
    """[B, N, Q, W - W_0] int64, likewise for the other tiers, from the slot's centre, rounded down."""

    def split(self, steps: Tensor) -> Tensor:
        """[B, T, ...] -> [B, N, Q, ...]; the last block is filled up with zeros."""
        return _split(steps, *self.visible.shape[1:3])

    def join(self, blocks: Tensor, length: int) -> Tensor:
        """[B, N, Q, ...] -> [B, T, ...], T = `length`."""
        return blocks.flatten(1, 2)[:, :length]

    def gather(self, slots: Tensor) -> Tensor:
        """[B, C, F] of all tiers' columns -> [B, N, W, F]."""
        if len(self.columns) == 1:
            return slots[:, None]
        picked: Tensor = slots.index_select(1, self.columns.flatten()).unflatten(1, self.columns.shape)
        return picked


def make_band(plan: WindowPlan) -> Band:
    """Cut a planned window into blocks."""
    length = plan.episode.shape[1]
    size = min(BLOCK, length)
    steps = torch.arange(length, device=plan.episode.device)
    blocks = -(-length // size)
    columns, in_range, visible, ages = [], [], [], []
    offset = 0
    for tier in plan.tiers:
        count = tier.columns.number.shape[1]
        wanted = _columns_of_blocks(tier, blocks, size, count)
        picked = wanted.clamp_max(count - 1)
        columns.append(picked + offset)
        in_range.append(wanted < count)
        seen, age = _look(tier, picked, _split(steps[None], blocks, size), plan, (blocks, size))
        visible.append(seen & in_range[-1][:, None, :])
        ages.append(age)
        offset += count
    return Band(
        torch.cat(columns, dim=1),
        [part.shape[1] for part in columns],
        torch.cat(visible, dim=3),
        steps[:size, None] - torch.arange(columns[0].shape[1], device=steps.device) + plan.tiers[0].rhythm.slots,
        torch.cat(ages[1:], dim=3) if len(ages) > 1 else ages[0][..., :0],
    )


def step_band(plan: StepPlan) -> Band:
    """Look at a layer's rings from a single step: one block of one step, every position a column."""
    size = plan.kept.shape[1]
    return Band(
        torch.arange(size, device=plan.kept.device)[None],
        [0, size],
        plan.kept[:, None, None],
        plan.age[:1, :0],
        plan.age[:, None, None],
    )


def _columns_of_blocks(tier: TierPlan, blocks: int, size: int, count: int) -> Tensor:
    """Return [N, W_i], the columns up to that of each block's last step, from n before that of its first step."""
    if blocks == 1:
        return torch.arange(count, device=tier.evicted.device)[None]
    span = tier.rhythm.span
    first = torch.arange(blocks, device=tier.evicted.device) * size
    width = 1 + tier.rhythm.slots + max((start + size - 1) // span - start // span for start in first.tolist())
    return torch.div(first, span, rounding_mode="floor")[:, None] + torch.arange(width, device=first.device)


def _look(
    tier: TierPlan, picked: Tensor, steps: Tensor, plan: WindowPlan, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return which of the picked columns each step sees, and their ages: [B, N, Q, W_i]."""
    exists, step, number, episode = (part[:, picked][:, :, None, :] for part in tier.columns)  # [B, N, 1, W_i]
    visible = exists & (episode == _split(plan.episode, *shape)[..., None])
    visible &= (_split(tier.evicted, *shape)[..., None] <= number) & (step <= steps[..., None])
    age = steps[..., None] - step + (tier.rhythm.first - tier.rhythm.span // 2)
    return visible, age


def _split(steps: Tensor, blocks: int, size: int) -> Tensor:
    missing = blocks * size - steps.shape[1]
    if missing:
        steps = torch.cat([steps, steps.new_zeros(len(steps), missing, *steps.shape[2:])], dim=1)
    split: Tensor = steps.unflatten(1, (blocks, size))
    return split
