"""Data of a window of the compressive core: its plan, its slots in columns, and the indices that gather them.

This file holds plain data and index arithmetic. `ctrl.compressive.core` and `ctrl.compressive.layer_window` use it.
Sizes are those of `ctrl.compressive.layer_window`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctrl.compressive.attention.block_mask import BlockMask, lay_out
from ctrl.compressive.attention.memory_attention import Attended
from ctrl.compressive.schedule import WindowPlan
from ctrl.compressive.tiers import Tiers


class LayerPlan(NamedTuple):
    """Plan of windows for layers with the same tiers: everything that is known before the layers run."""

    window: WindowPlan
    buckets: Tensor
    """[B, N, Q, W] int16 or int32 relative-position buckets, see `BlockMask`."""
    times: Tensor | None
    """[B, n + T, CLOCK_FEATURES] the time of tier 0's slots; None without a clock."""
    end: Tensor | None
    """[B] the time at which the clock stood still when the plan was made; None without a clock."""
    query_masks: list[Tensor]
    """[B, Q, E] query masks of the reconstruction loss, by tier from 1 on; see `query_masks`."""


class Gather(NamedTuple):
    """Flat indices of slots, numbered through all envs."""

    at: Tensor  # [B, ..] int64
    missing: Tensor  # [B, .., 1] bool, True where there is no such slot


class WindowIndices(NamedTuple):
    """Schedule, mask and gather indices of windows, for layers with the same tiers; lists go by tier.

    Full masks and indices are too large to keep for all windows of a rollout, so each unroll expands its `LayerPlan`.
    """

    schedule: WindowPlan
    mask: BlockMask
    times: Tensor | None  # [B, n + T, CLOCK_FEATURES] as in `LayerPlan`
    query_masks: list[Tensor]  # [B, Q, E] as in `LayerPlan`
    stored: list[Gather]  # [B, n] the stored slots, from the state's ring
    blocks: list[Gather]  # [B, E, m] the slots to compress, from the columns of the tier below
    ring: list[Gather]  # [B, n] the slots that the ring holds after the window, from the tier's columns


class Ring(NamedTuple):
    """State of one tier of a layer."""

    slots: Tensor  # [B, n, D]
    importance: Tensor  # [B, n], or [B, 0] where slots are not ranked by attention
    carried: Tensor  # [B, n, R], see `CompressiveState`; forgetting relative to the step before the window


class Memory(NamedTuple):
    """One tier's slots during a window, in C = n + E columns."""

    stored: Tensor  # [B, n, D] from the state, oldest first; 0 where there is none
    formed: Tensor  # [B, E, D] formed in the window; above tier 0 with the compressor's graph
    blocks: Tensor  # [B, E, m, D] the slots that each of them was formed from
    importance: Tensor  # [B, C], or [B, 0] where slots are not ranked by attention
    carried: Tensor  # [B, C, R], forgetting relative to the beginning of the column's episode, or of the window
    normed: Tensor  # [B, C, D] normed for attention, without weights; in tier 0 [B, n, D], the stored slots only
    novelty: Tensor | None  # [B, C], with a graph only for tier 0's formed slots; None where it is not measured
    times: Tensor | None  # [B, C, CLOCK_FEATURES] the time of each slot's content; None without a clock

    def columns(self) -> int:
        """Return C, the number of columns."""
        return self.stored.shape[1] + self.formed.shape[1]

    def slots(self) -> Tensor:
        """Return all slots [B, C, D], the stored ones first."""
        return torch.cat([self.stored, self.formed], dim=1)

    def write_back(self, ring: Gather, forgotten: Tensor) -> Ring:
        """Return the tier's ring after the window.

        :param ring: gathers the slots that the ring holds after the window
        :param forgotten: [B, R] the sum of the log forget gates up to the window's last step
        """
        slots = gather_slots(self.slots().detach(), ring)  # [B, n, D]
        carried = gather_slots(self.carried.detach(), ring, forgotten[:, None])  # [B, n, R]
        if not self.importance.shape[1]:
            return Ring(slots, self.importance, carried)
        return Ring(slots, gather_slots(self.importance[:, :, None], ring)[:, :, 0], carried)


class LayerPass(NamedTuple):
    """Record of one layer's way through a window."""

    indices: WindowIndices
    memories: list[Memory]
    attended: Attended


def window_indices(tiers: Tiers, plan: LayerPlan) -> WindowIndices:
    """Expand a plan to full masks, and to indices that are numbered through all envs."""
    schedule, columns = plan.window, lay_out(tiers, plan.window.length, plan.buckets.device).columns
    indices = WindowIndices(
        schedule,
        BlockMask(columns, plan.buckets.long(), whole=len(columns) == 1),
        plan.times,
        plan.query_masks,
        stored=[],
        blocks=[],
        ring=[],
    )
    below = schedule.tiers[0]
    envs = torch.arange(len(below.exists), device=below.exists.device)[:, None]  # [B, 1]
    for tier in schedule.tiers:
        slots, missing = tier.schedule.slots, ~tier.exists[:, :, None]  # [B, C, 1]
        indices.stored.append(Gather(tier.stored + envs * slots, missing[:, :slots]))
        at = tier.source + envs[:, :, None] * below.exists.shape[1]
        indices.blocks.append(Gather(at, missing[:, slots:, None]))
        indices.ring.append(Gather(tier.ring + envs * tier.exists.shape[1], ~tier.kept[:, :, None]))
        below = tier
    return indices


LARGEST = 1e9
"""Largest size of a carried number. A slot that has lost more counts as forgotten."""


def harmless(carried: Tensor) -> Tensor:
    """Make carried numbers finite and small beside `MASKED`, whatever another episode may have left there."""
    largest = min(LARGEST, torch.finfo(carried.dtype).max / 64)
    return carried.detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp_(-largest, largest)


def sum_by_episode(values: Tensor, episode: Tensor) -> Tensor:
    """Return running sums within each episode: values [B, T, F] and episode numbers [B, T] -> [B, T, F].

    Steps before a reset are left out by selection and not by a difference of sums, so they do not change a single bit
    after it.
    """
    if not values.shape[2]:
        return values
    sums: Tensor = _SumByEpisode.apply(values, episode)  # type: ignore[no-untyped-call]
    return sums


class _SumByEpisode(torch.autograd.Function):
    """Running sums by doubling: in rounds of 1, 2, 4, .. steps each sum adds the sum that lies so far before it.

    Sums of other episodes are not added.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, episode: Tensor) -> Tensor:
        ctx.save_for_backward(episode)
        sums = values.clone()
        for steps in _doubling(episode.shape[1]):
            same = (episode[:, steps:] == episode[:, :-steps])[:, :, None]
            sums[:, steps:].add_(torch.where(same, sums[:, :-steps], 0))
        return sums

    @staticmethod
    def backward(ctx: Any, of_sums: Tensor) -> tuple[Tensor, None]:
        (episode,) = ctx.saved_tensors
        of_values = of_sums.clone()
        for steps in _doubling(episode.shape[1]):
            same = (episode[:, steps:] == episode[:, :-steps])[:, :, None]
            of_values[:, :-steps].add_(torch.where(same, of_values[:, steps:], 0))
        return of_values, None


def _doubling(length: int) -> list[int]:
    """Return the powers of two below `length`."""
    return [1 << power for power in range((length - 1).bit_length())]


def gather_slots(slots: Tensor, gather: Gather, added: Tensor | None = None) -> Tensor:
    """Gather slots: [B, S, F] at [B, ..] -> [B, .., F], 0 where there is no such slot.

    :param gather: indices that are numbered through all envs
    :param added: a tensor to add to the gathered slots
    """
    picked = pick_slots(slots, gather.at)
    return (picked if added is None else picked + added).masked_fill_(gather.missing, 0)


def pick_slots(slots: Tensor, index: Tensor) -> Tensor:
    """Gather slots as `gather_slots` does; where there is no such slot, an arbitrary one stands in."""
    picked: Tensor = slots.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, slots.shape[2])
    return picked
