"""One layer's way through a window: recall the stored slots, compress what is evicted, attend, write back.

Sizes in the comments: B windows of T steps, width D. A tier has n stored slots and forms E more in the window, together
C columns; the C of all tiers are joined for attention. A block has m slots. F heads forget. A slot carries R numbers: F
logarithms of what is left of it, and with a clock one more, the time of its content.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrl.compressive.attention.block_mask import lay_out, tier_mask, visible
from ctrl.compressive.attention.memory_attention import Columns
from ctrl.compressive.compressors import importance_of
from ctrl.compressive.layer import MemoryLayer
from ctrl.compressive.window import (
    LayerPass,
    Memory,
    Ring,
    WindowIndices,
    gather_slots,
    pick_slots,
    sum_by_episode,
)

if TYPE_CHECKING:
    from ctrl.compressive.core import CompressiveCore


class LayerWindow:
    """One layer of a core, ready to run through windows.

    :param core: the core
    :param layer: the layer's index
    :param indices: schedule, mask and gather indices of the windows, for the layer's tiers
    """

    def __init__(self, core: CompressiveCore, layer: int, indices: WindowIndices) -> None:
        self._core = core
        self._layer = cast(MemoryLayer, core.layers[layer])
        self._attention = self._layer.attention
        self._compressors = core.compressors_of(layer)
        self._ranked = core.ranks(layer)
        self._tiers = core.tiers[layer]
        self._indices = indices

    def run(self, hidden: Tensor, rings: list[Ring]) -> tuple[Tensor, LayerPass, list[Ring]]:
        """Return the layer's outputs [B, T, D], a record of its pass, and its tiers' rings after the window.

        :param hidden: [B, T, D] the layer's inputs
        :param rings: the rings of its tiers, before the window
        """
        indices = self._indices
        normed = self._attention.norm.without_weights(hidden)  # [B, T, D]
        # How much each step has forgotten, since its episode or the window began.
        forgotten = self._forgotten(normed)  # [B, T, R]
        # Tier 0 holds the window's own steps; each later tier compresses what the one before it evicts.
        memories = [self._short_term(hidden.detach(), normed.detach(), forgotten, rings[0])]
        for tier in range(1, len(rings)):
            memories.append(self._compressed(tier, memories[-1], normed.detach(), rings[tier]))
        # Attend from the window's steps to the slots of all tiers at once, and join to the layer's inputs.
        outputs, attended = self._layer(hidden, normed, self._columns(memories), indices.mask)  # [B, T, D]
        # Keep what the tiers hold after the last step.
        last = forgotten[:, -1].detach()  # [B, R]
        kept = [memory.write_back(ring, last) for memory, ring in zip(memories, indices.ring, strict=True)]
        return outputs, LayerPass(indices, memories, attended), kept

    def _forgotten(self, normed: Tensor) -> Tensor:
        """Return [B, T, R] the sum of the log forget gates of each head up to each step, within its episode.

        With a clock a last entry of 0 joins: the content of a tier-0 slot is of the slot's own step.
        """
        forgotten = sum_by_episode(self._attention.log_forget(normed), self._indices.schedule.episode)  # [B, T, F]
        return forgotten if self._core.clock is None else F.pad(forgotten, (0, 1))

    def _short_term(self, hidden: Tensor, normed: Tensor, forgotten: Tensor, ring: Ring) -> Memory:
        """Collect tier 0: the stored steps, then the window's own.

        :param hidden: [B, T, D] the layer's inputs, without a graph
        :param normed: [B, T, D] the same, normed for attention without weights
        :param forgotten: [B, T, R] running sums of the log forget gates
        :param ring: before the window
        """
        attention, gather = self._attention, self._indices.stored[0]
        stored = gather_slots(ring.slots, gather)  # [B, n, D]
        normed_stored = attention.norm.without_weights(stored)  # [B, n, D]
        with torch.no_grad():
            stored_novelty = attention.novelty_of(normed_stored)  # [B, n]
        novelty = joined([stored_novelty, attention.novelty_of(normed)])  # [B, C]
        carried = torch.cat([gather_slots(ring.carried, gather), -forgotten], dim=1)  # [B, C, R]
        blocks, times = hidden[:, :, None], self._indices.times  # [B, T, 1, D], [B, C, CLOCK_FEATURES]
        memory = Memory(stored, hidden, blocks, ring.importance, carried, normed_stored, novelty, times)
        return self._with_importance(0, normed, memory)

    def _compressed(self, tier: int, below: Memory, normed: Tensor, ring: Ring) -> Memory:
        """Collect a later tier: the stored slots, then those that it forms from the slots of the tier below.

        :param below: the tier below
        :param normed: [B, T, D] the layer's inputs, normed without weights, without a graph
        :param ring: before the window
        """
        attention, gather = self._attention, self._indices.stored[tier]
        stored = gather_slots(ring.slots, gather)  # [B, n, D]
        blocks, formed, handed_on = self._compress(tier, below)  # [B, E, m, D], [B, E, D], [B, E, R]
        slots = torch.cat([stored, self._core.cut_graph(formed)], dim=1)  # [B, C, D]
        normed_slots = attention.norm.without_weights(slots)  # [B, C, D]
        with torch.no_grad():
            novelty = attention.novelty_of(normed_slots)  # [B, C]
        carried = torch.cat([gather_slots(ring.carried, gather), handed_on], dim=1)  # [B, C, R]
        times = self._times(tier, carried.detach())  # [B, C, CLOCK_FEATURES]
        memory = Memory(stored, formed, blocks, ring.importance, carried, normed_slots, novelty, times)
        return self._with_importance(tier, normed, memory)

    def _compress(self, tier: int, below: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Return a tier's blocks [B, E, m, D], their slots [B, E, D] and their carried numbers [B, E, R]."""
        compressor, attention, novelty = self._compressors[tier - 1], None, None
        gather, schedules = self._indices.blocks[tier], self._indices.schedule.tiers
        blocks = gather_slots(self._core.cut_graph(below.slots()), gather)  # [B, E, m, D]
        if compressor.uses_attention():
            received = gather_slots(below.importance[:, :, None], gather).flatten(0, 1)[:, :, 0]  # [B E, m]
            held = schedules[tier - 1].schedule.lifetime(torch.arange(blocks.shape[2]))  # [m]
            attention = received / held.to(received.device)
        if compressor.uses_novelty() and below.novelty is not None:
            novelty = pick_slots(below.novelty.detach()[:, :, None], gather.at).flatten(0, 1)[:, :, 0]  # [B E, m]
        importance = importance_of(compressor, attention, novelty)  # [B E, m]
        flat = blocks.flatten(0, 1)  # [B E, m, D]
        formed = compressor(flat, importance).unflatten(0, blocks.shape[:2])  # [B, E, D]
        carried = gather_slots(below.carried, gather).flatten(0, 1)  # [B E, m, R]
        if self._core.clock is not None:  # the last number is a time, which counts from the new slot's centre
            to_new_centre = schedules[tier].schedule.block_centres()[:, None]  # [m, 1]
            carried = carried + F.pad(to_new_centre, (carried.shape[2] - 1, 0)).to(carried)
        fixed = None if importance is None else importance.detach()
        handed_on = compressor.carry(carried, flat.detach(), fixed)  # [B E, R]
        return blocks, formed, handed_on.unflatten(0, blocks.shape[:2])

    def _times(self, tier: int, carried: Tensor) -> Tensor | None:
        """Return [B, C, CLOCK_FEATURES] the time of the content of a later tier's slots; None without a clock."""
        clock = self._core.clock
        if clock is None:
            return None
        plan = self._indices.schedule.tiers[tier]
        return cast(Tensor, clock(plan.schedule.centre(plan.slot), self._core.dtype, carried[:, :, -1]))

    @torch.no_grad()
    def _with_importance(self, tier: int, normed: Tensor, memory: Memory) -> Memory:
        """Count the attention that a tier's slots have received by the time they leave, or the window ends.

        See `MostUsedCompressor`. A tier whose slots are not ranked by attention stays as it is.

        :param memory: of the tier; its `importance` still is the ring of the state
        """
        if not self._ranked[tier]:
            return memory
        length, times = normed.shape[1], self._indices.times
        mask, part = tier_mask(self._tiers, self._indices.mask, tier, length)
        # The steps' own columns come first and are never attended to: the mask counts the tier's columns from T on.
        own_times = None if times is None else times[:, self._tiers[0].slots :]  # [B, T, CLOCK_FEATURES]
        slots = torch.cat([memory.normed, normed], dim=1) if tier == 0 else memory.normed  # [B, C, D]
        decay = F.pad(memory.carried[:, :, : self._core.forgetting_heads], (0, 0, length, 0))  # [B, T + C, F]
        novelty = None if memory.novelty is None else F.pad(memory.novelty, (length, 0))  # [B, T + C]
        columns = Columns(slots, 0, decay, novelty, joined([own_times, memory.times]))
        weights = self._attention(normed, columns, mask).weights  # [H, B, N, Q, W]
        seen = visible(self._indices.schedule, lay_out(self._tiers, length, normed.device))[..., part]
        shares = torch.where(seen, weights.mean(dim=0), 0).sum(dim=2).flatten(1)  # [B, N W]
        received = shares.new_zeros(len(shares), length + memory.columns())  # [B, T + C]
        received.index_add_(1, mask.columns.flatten(), shares)
        before = gather_slots(memory.importance[:, :, None], self._indices.stored[tier])[:, :, 0]  # [B, n]
        return memory._replace(importance=received[:, length:] + F.pad(before, (0, memory.formed.shape[1])))

    def _columns(self, memories: list[Memory]) -> Columns:
        """Join the columns of all tiers."""
        rest = torch.cat([memory.normed for memory in memories], dim=1)  # [B, sum of C - T, D]
        carried = torch.cat([memory.carried for memory in memories], dim=1)  # [B, sum of C, R]
        novelty = joined([memory.novelty for memory in memories])
        times = joined([memory.times for memory in memories])
        return Columns(rest, self._tiers[0].slots, carried[:, :, : self._core.forgetting_heads], novelty, times)


def joined(parts: list[Tensor | None]) -> Tensor | None:
    """Join the tensors [B, C, ..] of several groups of columns; None where there are none."""
    present = [part for part in parts if part is not None]
    return torch.cat(present, dim=1) if present else None
