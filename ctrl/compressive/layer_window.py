"""One layer's way through a window: recall the stored slots, compress what is evicted, attend, write back.

Sizes in the comments: B windows of T steps, width D. A tier has n stored slots and forms E more in the window, together
C columns. A block has m slots. F heads forget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrl.compressive.attention.block_mask import lay_out, tier_mask, visible
from ctrl.compressive.attention.memory_attention import ColumnFacts
from ctrl.compressive.compressors import importance_of
from ctrl.compressive.layer import MemoryLayer
from ctrl.compressive.window import (
    GatherIndices,
    LayerPass,
    Memory,
    Ring,
    WindowIndices,
    gather_slots,
    pick_slots,
    sum_by_episode,
    to_new_centre,
)

if TYPE_CHECKING:
    from ctrl.compressive.core import CompressiveCore


class LayerWindow:
    """One layer of a core, ready to run through windows.

    :param core: the core
    :param layer: the layer's index
    :param indices: plan, mask and gather indices of the windows, for the layer's tiers
    """

    def __init__(self, core: CompressiveCore, layer: int, indices: WindowIndices) -> None:
        self._core = core
        self._layer = cast(MemoryLayer, core.layers[layer])
        self._attention = self._layer.attention
        self._compressors = core.compressors_of(layer)
        self._ranked = core.ranks(layer)
        self._tiers = core.tiers[layer]
        self._indices = indices
        self._plan = indices.plan
        self._schedules = [tier.schedule for tier in indices.plan.window.tiers]

    def run(self, hidden: Tensor, rings: list[Ring]) -> tuple[Tensor, LayerPass, list[Ring]]:
        """Return the layer's outputs [B, T, D], a record of its pass, and its tiers' rings after the window.

        :param hidden: [B, T, D] the layer's inputs
        :param rings: the rings of its tiers, before the window
        """
        normed = self._attention.norm.without_weights(hidden)  # [B, T, D]
        forgotten = self._forgotten(normed)  # [B, T, F + 1]
        memories = self._recall(hidden.detach(), normed.detach(), forgotten, rings)
        known = self._column_facts(memories)
        rest = torch.cat([memory.normed for memory in memories], dim=1)  # [B, sum of C - T, D]
        outputs, attended = self._layer(hidden, normed, rest, self._tiers[0].slots, known, self._indices.mask)
        last = forgotten[:, -1].detach()  # [B, F + 1]
        gathers = self._indices.gathers
        kept = [memory.write_back(gather.ring, last) for memory, gather in zip(memories, gathers, strict=True)]
        return outputs, LayerPass(self._indices, memories, attended), kept

    def _forgotten(self, normed: Tensor) -> Tensor:
        """Return [B, T, F + 1] the sum of the log forget gates of each head up to each step, within its episode.

        With a clock a last entry of 0 joins: the content of a tier-0 slot is of the slot's own step.
        """
        forgotten = sum_by_episode(self._attention.log_forget(normed), self._plan.window.episode)
        return forgotten if self._core.clock is None else F.pad(forgotten, (0, 1))

    def _recall(self, hidden: Tensor, normed: Tensor, forgotten: Tensor, rings: list[Ring]) -> list[Memory]:
        """Collect, tier by tier, every slot of the layer that exists at some step of the window.

        :param hidden: [B, T, D] the layer's inputs, without a graph
        :param normed: [B, T, D] the same, normed for attention without weights
        :param forgotten: [B, T, F + 1] running sums of the log forget gates
        :param rings: of the layer's tiers, before the window
        """
        attention, memories = self._attention, list[Memory]()
        for tier, (ring, gather) in enumerate(zip(rings, self._indices.gathers, strict=True)):
            stored = gather_slots(ring.slots, gather.stored)  # [B, n, D]
            before = gather_slots(ring.carried, gather.stored)  # [B, n, F + 1]
            if tier == 0:
                blocks, formed, carried = hidden[:, :, None], hidden, -forgotten
                normed_keys, novelty = attention.norm.without_weights(stored), [attention.novelty_of(normed)]
            else:
                blocks, formed, carried = self._compress(tier, memories[-1], gather)  # [B, E, m, D], [B, E, D or F + 1]
                keys = torch.cat([stored, self._core.cut_graph(formed)], dim=1)  # [B, C, D]
                normed_keys, novelty = attention.norm.without_weights(keys), []
            with torch.no_grad():
                novelty = [attention.novelty_of(normed_keys), *novelty]
            carried = torch.cat([before, carried], dim=1)  # [B, C, F + 1]
            times = self._times(tier, carried.detach())  # [B, C, CLOCK_FEATURES]
            memory = Memory(stored, formed, blocks, ring.importance, carried, normed_keys, joined(novelty), times)
            if self._ranked[tier]:
                memory = memory._replace(importance=self._importance(tier, normed, memory))
            memories.append(memory)
        return memories

    def _compress(self, tier: int, below: Memory, gather: GatherIndices) -> tuple[Tensor, Tensor, Tensor]:
        """Return a tier's blocks [B, E, m, D], their slots [B, E, D] and their carried numbers [B, E, F + 1]."""
        compressor, attention, novelty = self._compressors[tier - 1], None, None
        blocks = gather_slots(self._core.cut_graph(below.slots()), gather.blocks)  # [B, E, m, D]
        if compressor.uses_attention():
            received = gather_slots(below.importance[:, :, None], gather.blocks).flatten(0, 1)[:, :, 0]  # [B E, m]
            held = self._schedules[tier - 1].lifetime(torch.arange(blocks.shape[2]))  # [m]
            attention = received / held.to(received.device)
        if compressor.uses_novelty() and below.novelty is not None:
            novelty = pick_slots(below.novelty.detach()[:, :, None], gather.blocks.at).flatten(0, 1)[:, :, 0]
        importance = importance_of(compressor, attention, novelty)  # [B E, m]
        flat = blocks.flatten(0, 1)  # [B E, m, D]
        formed = compressor(flat, importance).unflatten(0, blocks.shape[:2])  # [B, E, D]
        facts = gather_slots(below.carried, gather.blocks).flatten(0, 1)  # [B E, m, F + 1]
        if self._core.clock is not None:
            facts = facts + to_new_centre(self._schedules[tier], facts.shape[2]).to(facts)
        fixed = None if importance is None else importance.detach()
        return blocks, formed, compressor.carry(facts, flat.detach(), fixed).unflatten(0, blocks.shape[:2])

    def _times(self, tier: int, carried: Tensor) -> Tensor | None:
        """Return [B, C, CLOCK_FEATURES] the time of the content of a tier's slots; None without a clock."""
        clock = self._core.clock
        if tier == 0 or clock is None:
            return self._plan.times
        centres = self._schedules[tier].centre(self._plan.window.tiers[tier].columns.number)  # [B, C]
        return cast(Tensor, clock(centres, self._core.dtype, carried[:, :, -1]))

    @torch.no_grad()
    def _importance(self, tier: int, normed: Tensor, memory: Memory) -> Tensor:
        """Return [B, C] the attention that a tier's slots have received by the time they leave, or the window ends.

        See `MostUsedCompressor`. `memory.importance` still is the ring of the state.
        """
        length = normed.shape[1]
        mask, part = tier_mask(self._tiers, self._indices.mask, tier, length)
        own = None if self._plan.times is None else self._plan.times[:, self._tiers[0].slots :]
        novelty = None if memory.novelty is None else F.pad(memory.novelty, (length, 0))
        decay = F.pad(memory.carried[:, :, : self._core.forgetting_heads], (0, 0, length, 0))
        known = ColumnFacts(decay, novelty, joined([own, memory.times]))
        # The tier's mask counts its columns from T on: the steps' own columns come first and are never attended to.
        keys = torch.cat([memory.normed, normed], dim=1) if tier == 0 else memory.normed
        weights = self._attention(normed, keys, 0, known, mask).weights  # [H, B, N, Q, W]
        seen = visible(self._plan.window, lay_out(self._tiers, length, normed.device))[..., part]
        shares = torch.where(seen, weights.mean(dim=0), 0).sum(dim=2).flatten(1)  # [B, N W]
        received = shares.new_zeros(len(shares), length + memory.columns())
        received.index_add_(1, mask.columns.flatten(), shares)
        before = gather_slots(memory.importance[:, :, None], self._indices.gathers[tier].stored)[:, :, 0]  # [B, n]
        return received[:, length:] + F.pad(before, (0, memory.formed.shape[1]))

    def _column_facts(self, memories: list[Memory]) -> ColumnFacts:
        """Join the facts of the columns of all tiers."""
        decay = torch.cat([memory.carried for memory in memories], dim=1)[:, :, : self._core.forgetting_heads]
        novelty = joined([memory.novelty for memory in memories])
        return ColumnFacts(decay, novelty, joined([memory.times for memory in memories]))


def joined(parts: list[Tensor | None]) -> Tensor | None:
    """Join the tensors [B, C, ..] of several groups of columns; None where none is known."""
    known = [part for part in parts if part is not None]
    return torch.cat(known, dim=1) if known else None
