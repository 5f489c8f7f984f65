"""Data of a window of the compressive core: its plan, its slots in columns, and the indices that gather them.

This file holds plain data and index arithmetic. `ctrl.compressive.core` and `ctrl.compressive.layer_window` use it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrl.compressive.attention.block_mask import BlockMask, lay_out
from ctrl.compressive.attention.memory_attention import Attended
from ctrl.compressive.schedule import TierPlan, TierSchedule, WindowPlan
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


class Ring(NamedTuple):
    """State of one tier of a layer."""

    slots: Tensor  # [B, n, D]
    importance: Tensor  # [B, n], or [B, 0] where slots are not ranked by attention
    carried: Tensor  # [B, n, F + 1], see `CompressiveState`; forgetting relative to the step before the window


class Memory(NamedTuple):
    """One tier's slots during a window, in C = n + E columns."""

    stored: Tensor  # [B, n, D] from the state, oldest first; 0 where there is none
    formed: Tensor  # [B, E, D] formed in the window; above tier 0 with the compressor's graph
    blocks: Tensor  # [B, E, m, D] the slots that each of them was formed from
    importance: Tensor  # [B, C], or [B, 0] where slots are not ranked by attention
    carried: Tensor  # [B, C, F + 1], forgetting relative to the beginning of the column's episode, or of the window
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
        :param forgotten: [B, F + 1] the sum of the log forget gates up to the window's last step
        """
        slots = gather_slots(self.slots().detach(), ring)  # [B, n, D]
        carried = gather_slots(self.carried.detach(), ring, forgotten[:, None])  # [B, n, F + 1]
        if not self.importance.shape[1]:
            return Ring(slots, self.importance, carried)
        return Ring(slots, gather_slots(self.importance[:, :, None], ring)[:, :, 0], carried)


class Gather(NamedTuple):
    """Flat indices of slots, numbered through all envs."""

    at: Tensor  # [B, ..] int64
    missing: Tensor  # [B, .., 1] bool, True where there is no such slot


class GatherIndices(NamedTuple):
    """Indices that gather the slots of one tier; the same for layers with the same tiers."""

    stored: Gather  # [B, n] the stored slots, from the state's ring
    blocks: Gather  # [B, E, m] the slots to compress, from the columns of the tier below
    ring: Gather  # [B, n] the slots that the ring holds after the window, from the tier's columns

    def formed(self) -> Tensor:
        """Return [B, E] bool, True where the tier forms a slot."""
        return ~self.blocks.missing[:, :, 0, 0]


class WindowIndices(NamedTuple):
    """Plan, mask and gather indices of windows, for layers with the same tiers."""

    plan: LayerPlan
    mask: BlockMask
    gathers: list[GatherIndices]


class LayerPass(NamedTuple):
    """Record of one layer's way through a window."""

    indices: WindowIndices
    memories: list[Memory]
    attended: Attended


def window_indices(tiers: Tiers, plan: LayerPlan) -> WindowIndices:
    """Expand a plan to full masks and indices, which are too large to keep for all windows of a rollout."""
    columns = lay_out(tiers, plan.window.length, plan.buckets.device).columns
    mask = BlockMask(columns, plan.buckets.long(), whole=len(columns) == 1)
    return WindowIndices(plan, mask, gather_indices(plan.window.tiers))


def gather_indices(tiers: list[TierPlan]) -> list[GatherIndices]:
    """Turn each tier's plan into indices that are numbered through all envs."""
    gathers = []
    below = tiers[0].columns.exists
    for tier in tiers:
        slots, exists = tier.schedule.slots, tier.columns.exists
        envs = torch.arange(len(exists), device=exists.device)[:, None]
        missing = ~exists[:, :, None]  # [B, n + E, 1]
        gathers.append(
            GatherIndices(
                Gather(tier.stored + envs * slots, missing[:, :slots]),
                Gather(tier.source + envs[:, :, None] * below.shape[1], missing[:, slots:, None]),
                Gather(tier.ring + envs * exists.shape[1], ~tier.kept[:, :, None]),
            )
        )
        below = exists
    return gathers


LARGEST = 1e9
"""Largest size of a carried number. A slot that has lost more counts as forgotten."""


def harmless(carried: Tensor) -> Tensor:
    """Make carried numbers finite and small beside `MASKED`, whatever another episode may have left there."""
    return carried.detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp_(-LARGEST, LARGEST)


def to_new_centre(schedule: TierSchedule, facts: int) -> Tensor:
    """Return offsets for the carried numbers of a tier's blocks, so that times count from the new slot's centre.

    :param schedule: of the tier that the blocks become a slot of
    :param facts: F + 1, the count of carried numbers; the time is the last
    :return: [m, F + 1], to be added to [.., m, F + 1]; 0 except for the time
    """
    return F.pad(schedule.block_centres().float()[:, None], (facts - 1, 0))


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
