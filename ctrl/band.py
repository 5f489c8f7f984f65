"""Banded attention: a window's steps in blocks, each with only the columns that its steps can see.

A step sees at most the n + 1 columns of a tier up to its own (see `ctrl.timeline`), so a block of Q steps needs
n + Q / rho or so of them, however long the window is. What a step sees at all, and how old it is, is one number: the
row of a layer's table of biases (`age_row`), the last of which means "not visible". It is the same for all layers with
the same tiers, so it is worked out once a window.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ctrl.timeline import TierPlan, WindowPlan

BLOCK = 32
"""Steps in a block: enough for good matrix products, and not many columns that are masked for most of its steps."""
COPIES = 8
"""Copies of each bias, read in turn along the columns: neighbours often have the same row, and a sum that waits for the
one before it is slow."""
EXACT = 32
"""Ages below this have a row each, older ones share four per doubling."""


class Band(NamedTuple):
    """How a window of T steps is cut into N blocks of Q steps, each of which attends to W columns of all tiers."""

    columns: Tensor
    """[N, W] columns that each block attends to, numbered through all tiers."""
    widths: list[int]
    """W by tier."""
    age: Tensor
    """[B, N, Q, W] int64, steps from a slot's centre to a step, rounded down; meaningless where it is not visible."""
    row: Tensor
    """[B, N, Q, W] int64, the row of the table of biases: `age_row(age)`, or `hidden_row` where not visible; times
    `COPIES`, plus which copy of the row this column reads."""

    def split(self, steps: Tensor) -> Tensor:
        """[B, T, ...] -> [B, N, Q, ...]; the last block is filled up with zeros."""
        return _split(steps, *self.row.shape[1:3])

    def join(self, blocks: Tensor, length: int) -> Tensor:
        """[B, N, Q, ...] -> [B, T, ...], T = `length`."""
        return blocks.flatten(1, 2)[:, :length]


def age_row(age: Tensor) -> Tensor:
    """Return the row of each age, int64: one per step up to 32 steps, then 4 per doubling, evenly within it.

    The exponent and the first two digits of a float are just that.
    """
    rounded = (age.clamp_min(EXACT).float().view(torch.int32) >> 21) - (_EXACT_BITS - EXACT)
    return torch.where(age < EXACT, age, rounded)


_EXACT_BITS = int(torch.tensor(float(EXACT)).view(torch.int32)) >> 21


@lru_cache
def hidden_row(reach: int) -> int:
    """Return the row after that of the oldest age, `reach`; it stands for all that is not visible."""
    return int(age_row(torch.tensor(reach))) + 1


def make_band(plan: WindowPlan, reach: int) -> Band:
    """Cut a planned window into blocks.

    :param plan: the window, planned for a layer's tiers
    :param reach: how far these tiers reach back
    """
    length = plan.episode.shape[1]
    size = min(BLOCK, length)
    blocks = -(-length // size)
    steps = torch.arange(blocks * size, device=plan.episode.device).view(1, blocks, size, 1)
    columns, born, gone, centre = [], [], [], []
    offset = 0
    for tier in plan.tiers:
        count = tier.columns.number.shape[1]
        wanted = _columns_of_blocks(tier, blocks, size, count)
        picked = wanted.clamp_max(count - 1)
        never = ~tier.columns.exists[:, picked] | (wanted >= count)
        columns.append(picked + offset)
        born.append(torch.where(never, length, tier.columns.step[:, picked]))  # [B, N, W_i]
        gone.append(tier.columns.gone[:, picked])
        centre.append(born[-1] - (tier.rhythm.first - tier.rhythm.span // 2))
        offset += count
    born_at, gone_at, centre_at = (torch.cat(parts, dim=2).unsqueeze(2) for parts in (born, gone, centre))
    age = steps - centre_at  # [B, N, Q, W]
    visible = (steps >= born_at) & (steps < gone_at)
    row = torch.where(visible, age_row(age), hidden_row(reach)) * COPIES
    row += torch.arange(row.shape[3], device=row.device) % COPIES
    return Band(torch.cat(columns, dim=1), [part.shape[1] for part in columns], age, row)


def _columns_of_blocks(tier: TierPlan, blocks: int, size: int, count: int) -> Tensor:
    """Return [N, W_i], the columns up to that of each block's last step, from n before that of its first step."""
    device = tier.stored.device
    if blocks == 1:
        return torch.arange(count, device=device)[None]
    span = tier.rhythm.span
    first = [start // span for start in range(0, blocks * size, size)]
    width = 1 + tier.rhythm.slots + max((index * size + size - 1) // span - start for index, start in enumerate(first))
    return torch.tensor(first, device=device)[:, None] + torch.arange(width, device=device)


def _split(steps: Tensor, blocks: int, size: int) -> Tensor:
    missing = blocks * size - steps.shape[1]
    if missing:
        steps = torch.cat([steps, steps.new_zeros(len(steps), missing, *steps.shape[2:])], dim=1)
    split: Tensor = steps.unflatten(1, (blocks, size))
    return split
