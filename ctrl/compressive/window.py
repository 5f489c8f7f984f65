"""What a window of the compressive core works on: slots laid out in columns, taken from rings and put back into them.

Plain data and index arithmetic; what is done with it is `ctrl.compressive.core`.
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
    """What is known of windows before their layers run, for layers with the same tiers."""

    window: WindowPlan
    row: Tensor
    """[B, N, Q, W] int16 or int32, see `BlockMask`."""
    times: Tensor | None
    """[B, n + T, CLOCK_FEATURES] the time of raw slots; None where nobody asks for it."""
    end: Tensor | None
    """[B] where the clock stood still when the plan was made."""
    asked: list[Tensor]
    """By tier from 1 on, what the reconstruction loss compares; see `query_masks`."""


class Ring(NamedTuple):
    """What the state holds of one tier of a layer."""

    slots: Tensor  # [B, n, D]
    importance: Tensor  # [B, n], or [B, 0] where nobody asks for it
    carried: Tensor  # [B, n, F + 1], see `CompressiveState`; forgetting relative to the step before the window


class Memory(NamedTuple):
    """One tier's slots during a window, C = n + E columns."""

    stored: Tensor  # [B, n, D] from the state, oldest first; 0 where there is none
    formed: Tensor  # [B, E, D] formed in the window; a tier above 0 has the compressor's graph here
    blocks: Tensor  # [B, E, m, D] what each of them was formed from
    importance: Tensor  # [B, C], or [B, 0] where nobody asks for it
    carried: Tensor  # [B, C, F + 1], what is forgotten relative to the beginning of the column's episode, or the window
    normed: Tensor  # [B, C, D] as attention norms them, without weights; [B, n, D] in tier 0, of the stored ones
    novelty: Tensor | None  # [B, C], without a graph but for tier 0's formed ones; None where nobody measures it
    times: Tensor | None  # [B, C, CLOCK_FEATURES] when what each holds was; None where nobody asks for it

    def columns(self) -> int:
        """Return C."""
        return self.stored.shape[1] + self.formed.shape[1]

    def slots(self) -> Tensor:
        """[B, C, D]"""
        return torch.cat([self.stored, self.formed], dim=1)

    def write_back(self, ring: Gather, forgotten: Tensor) -> Ring:
        """Return the tier's ring after the window.

        :param ring: the key that each position of the ring holds after the window
        :param forgotten: [B, F + 1] logarithm of all that was forgotten by the window's last step
        """
        slots = gather_slots(self.slots().detach(), ring)  # [B, n, D]
        carried = gather_slots(self.carried.detach(), ring, forgotten[:, None])  # [B, n, F + 1]
        if not self.importance.shape[1]:
            return Ring(slots, self.importance, carried)
        return Ring(slots, gather_slots(self.importance[:, :, None], ring)[:, :, 0], carried)


class Gather(NamedTuple):
    """Slots to be picked, numbered through all envs."""

    at: Tensor  # [B, ..] int64
    missing: Tensor  # [B, .., 1] bool, True where there is no such slot


class GatherIndices(NamedTuple):
    """Where the slots of a tier come from and go to; the same for layers with the same tiers."""

    stored: Gather  # [B, n] of the state's rings
    blocks: Gather  # [B, E, m] of the keys of the tier below: what is compressed
    ring: Gather  # [B, n] of the tier's keys: what the ring holds after the window

    def formed(self) -> Tensor:
        """Return [B, E] bool, True where the tier forms a slot."""
        return ~self.blocks.missing[:, :, 0, 0]


class WindowIndices(NamedTuple):
    """What windows are to layers with the same tiers."""

    plan: LayerPlan
    mask: BlockMask
    gathers: list[GatherIndices]


class LayerPass(NamedTuple):
    """What happened in one layer during a window."""

    indices: WindowIndices
    memories: list[Memory]
    attended: Attended


def window_indices(tiers: Tiers, plan: LayerPlan) -> WindowIndices:
    """Spell out a plan; what is spelled out is too large to keep for all windows of a rollout."""
    columns = lay_out(tiers, plan.window.length, plan.row.device).columns
    mask = BlockMask(columns, plan.row.long(), whole=len(columns) == 1)
    return WindowIndices(plan, mask, gather_indices(plan.window.tiers))


def gather_indices(tiers: list[TierPlan]) -> list[GatherIndices]:
    """Number what each tier's plan gathers through all envs."""
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
"""What is handed on beside content is no larger: more is as good as forgotten."""


def harmless(carried: Tensor) -> Tensor:
    """Put finite numbers, small beside the score of what is not visible, for what another episode may have left."""
    return carried.detach().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp_(-LARGEST, LARGEST)


def to_new_centre(schedule: TierSchedule, facts: int) -> Tensor:
    """Return what is added to facts [.., m, F + 1] of a tier's blocks, so that times count from the new slot's middle.

    :param schedule: of the tier that the blocks become a slot of
    :param facts: F + 1, how many there are, the time last
    :return: [m, F + 1], 0 but for the time
    """
    return F.pad(schedule.block_centres().float()[:, None], (facts - 1, 0))


def sum_by_episode(values: Tensor, episode: Tensor) -> Tensor:
    """Sum up each episode's steps: [B, T, F], and [B, T] the number of each step's episode -> [B, T, F].

    What came before a reset is left out by selection, and not by a difference of sums, so that it does not change a
    single bit after it.
    """
    if not values.shape[2]:
        return values
    sums: Tensor = _SumByEpisode.apply(values, episode)  # type: ignore[no-untyped-call]
    return sums


class _SumByEpisode(torch.autograd.Function):
    """Of 1, 2, 4, .. steps in turn: each sum takes up that of as many steps before it, if they are of its episode."""

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
    """Pick slots: [B, S, F] at [B, ..], numbered through all envs -> [B, .., F], 0 where there is no such slot.

    :param added: to what is picked
    """
    picked = pick_slots(slots, gather.at)
    return (picked if added is None else picked + added).masked_fill_(gather.missing, 0)


def pick_slots(slots: Tensor, index: Tensor) -> Tensor:
    """Pick slots as `gather_slots` does; any where there is no such slot."""
    picked: Tensor = slots.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, slots.shape[2])
    return picked
