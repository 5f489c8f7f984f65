"""Rates that layers choose for themselves, from what their own compression loses.

A layer that reads nearly the same from compressed slots as from what they were formed from can afford a higher rate and
so a longer reach with the same slots; one that loses much needs a lower rate. Between two rollouts each layer's first
compressed tier moves to the next higher or lower of its choices (half, once and twice the rate that it was built with),
as a running mean of its reconstruction error falls below `LOW` or rises above `HIGH`. The paper leaves rates that
differ by layer open (section 6); how they are chosen here is not from the paper.

The state's shape does not change: it holds as many slots as before, which stand for other spans. It says with which
rates it was written, and a core that has other rates by then reads it by `resample`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ctrl.compressors import Compressor, make_compressor
from ctrl.memory import Tier, Tiers
from ctrl.timeline import EMPTY, ring_centres

LOW, HIGH = 0.1, 0.3
"""Reconstruction errors (a share of what is read) between which a rate stays as it is."""
START = (LOW + HIGH) / 2
"""Where the running mean starts, and starts again when the rate has changed."""
DECAY = 0.9
"""What the running mean keeps in each update."""


def rate_choices(tiers: Tiers) -> tuple[int, ...]:
    """Return the rates that a layer's first compressed tier may have, ascending; none if the layer has no such tier."""
    if len(tiers) == 1:
        return ()
    rate = tiers[1].rate
    return tuple(choice for choice in (rate // 2, rate, 2 * rate) if 1 <= choice <= tiers[0].slots)


def with_rate(tiers: Tiers, rate: int) -> Tiers:
    """Return the tiers with another rate of the first compressed one."""
    return (tiers[0], replace(tiers[1], rate=rate), *tiers[2:])


def next_rate(rate: int, error: float, choices: Sequence[int]) -> int:
    """Return the rate that the running mean of a layer's error asks for."""
    at = choices.index(rate)
    if error < LOW:
        return choices[min(at + 1, len(choices) - 1)]
    return choices[max(at - 1, 0)] if error > HIGH else rate


def resample(old: Tiers, new: Tiers, clock: Tensor, slots: Tensor) -> Tensor:
    """Read a layer's slots, written with the tiers `old`, as if they had been written with the tiers `new`.

    Each slot becomes a copy of the one whose centre is closest to its own; what was never kept can't come back.

    :param clock: [B] steps of the current episode consumed so far
    :param slots: [B, S, D]
    :return: [B, S, D], 0 where there is none
    """
    written, wanted = ring_centres(old, clock), ring_centres(new, clock)
    closest = (wanted[:, :, None] - written[:, None]).abs().argmin(dim=2, keepdim=True)
    copied = slots.gather(1, closest.expand(-1, -1, slots.shape[2]))
    return torch.where(wanted[:, :, None] != EMPTY, copied, 0)


class CompressorOfRates(Compressor):
    """A compressor for each of several rates; which one is asked follows from the block's size."""

    def __init__(self, name: str, width: int, rates: Sequence[int]) -> None:
        super().__init__(width, max(rates))
        self.by_rate = nn.ModuleDict({str(rate): make_compressor(name, width, rate) for rate in rates})

    def forward(self, blocks: Tensor, usage: Tensor | None = None) -> Tensor:
        """[N, m, D] -> [N, D]."""
        slots: Tensor = self.by_rate[str(blocks.shape[1])](blocks, usage)
        return slots


def make_tier_compressor(tier: Tier, width: int, rates: Sequence[int]) -> Compressor:
    """Build what forms a tier's slots: for its own rate, or for all of `rates` if there are any."""
    if rates:
        return CompressorOfRates(tier.compressor, width, rates)
    return make_compressor(tier.compressor, width, tier.rate)
