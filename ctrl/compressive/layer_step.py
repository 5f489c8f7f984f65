"""One step of the layers without a graph: form the tiers' new slots, write the step's own, attend.

The slots lie in place, in rings. `LayerSlots` projects all of them in each step, which serves a single `step`. The
KV cache of acting keeps their keys and values (`ctrl.compressive.kv_cache`). `ctrl.compressive.cache_schedule` says
which slots are formed at a step and where they go.

Sizes in the comments: B envs, S slots of a layer, width D, H heads of d features, F of which forget and J go by time. K
slots are formed of m others each. A slot carries R numbers, see `CompressiveState`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ctrl.compressive.attention.block_attention import masked_score
from ctrl.compressive.attention.clock import TIME_KEYS, EpisodeClock, time_keys
from ctrl.compressive.attention.memory_attention import AgeAttention
from ctrl.compressive.cache_schedule import CacheSchedule, Integers, Moves
from ctrl.compressive.compressors import Compressor, importance_of
from ctrl.compressive.layer import MemoryLayer
from ctrl.compressive.tiers import Tiers
from ctrl.compressive.window import harmless

if TYPE_CHECKING:
    from ctrl.compressive.core import CompressiveCore, CompressiveState


class LayerSlots:
    """The slots of one layer in B envs.

    Views are made once and weights are at hand: at a small B, looking them up would take most of a step's time.

    :param layer: the layer whose weights project the slots
    :param memory: slots [B, S, D], the attention [B, S] that each has received so far, and their carried numbers
        [B, S, R]; see `CompressiveState`
    :param ranked: positions of the tiers whose slots are ranked by attention
    :param schedule: of the slots' positions
    :param clock: the core's clock, if it has one
    """

    KEEPS_BIASES: ClassVar[bool] = False
    """True if biases by age are kept from step to step, which pays from the second step on."""

    def __init__(
        self,
        layer: MemoryLayer,
        memory: tuple[Tensor, Tensor, Tensor],
        ranked: list[slice],
        schedule: CacheSchedule,
        clock: EpisodeClock | None,
    ) -> None:
        self._layer = layer
        self._clock = clock
        self._attention = cast(AgeAttention, layer.attention)
        self._schedule = schedule
        self.slots, self.importance, carried = memory
        self._ranked = ranked
        batch, _, width = self.slots.shape
        heads = layer.attention.heads
        self._shape = (batch, heads, width // heads)
        self._first_forgetting = heads - layer.attention.forgetting_heads
        self._flat_slots = self.slots.view(-1, width)
        # Each carried number lies in one piece, as it is changed and read.
        by_number = carried.movedim(2, 0).contiguous()  # [R, B, S]
        self.carried, self._flat_carried = by_number.movedim(0, 2), by_number.flatten(1)
        self._decay = by_number[: layer.attention.forgetting_heads]  # [F, B, S]
        self.refresh()

    def refresh(self) -> None:
        """Fetch the present weights."""
        attention = self._attention
        scale = 1 / math.sqrt(self._shape[2])
        weight, bias = attention.norm.folded(attention.query)
        self._query = weight * scale, bias * scale
        weight, bias = attention.norm.folded(attention.key_value)
        self._key_value = bias.view(2, 1, -1), weight.unflatten(0, (2, -1)).transpose(1, 2)  # [2, 1, D], [2, D, D]
        self._forget_gate = None if attention.forget_gate is None else attention.norm.folded(attention.forget_gate)
        biases = F.pad(attention.age_biases(), (0, 1), value=masked_score(weight.dtype))
        bucket_of_age = self._schedule.bucket_of_age
        self._biases = biases if bucket_of_age is None else biases.index_select(1, bucket_of_age)
        self._join = self._layer.weights().join
        queries = attention.time_queries
        self._time_query = None if queries is None else queries.matrix()

    def step(self, hidden: Tensor, moves: Moves, compressors: list[Compressor]) -> tuple[Tensor, Tensor | None]:
        """Form the tiers' new slots, write the step's own, and attend.

        :param hidden: [B, D] the layer's inputs
        :return: the layer's outputs [B, D], and the step's clock features [B, CLOCK_FEATURES], None without a clock
        """
        batch, heads, features = self._shape
        normed, carried = self._write(hidden, moves, compressors)  # [K + B, D], [R, K + B]
        times = self._project_slots(normed, carried, moves)  # [B, CLOCK_FEATURES]
        query = F.linear(normed[-batch:], *self._query)  # [B, D]
        biases = self._biases.index_select(1, moves.buckets).view(heads, batch, -1)  # [H, B, S]
        scores = (
            biases.transpose(0, 1)
            .reshape(batch * heads, 1, -1)
            .baddbmm_(query.view(batch * heads, 1, features), self._key)
        )  # [B H, 1, S]
        by_head = scores.view(batch, heads, -1)  # [B, H, S]
        if times is not None and self._time_query is not None:
            time_query = F.linear(time_keys(times), self._time_query).view(batch, -1, TIME_KEYS)  # [B, J, TIME_KEYS]
            by_head[:, : time_query.shape[1]] += torch.bmm(time_query, self._time_keys.transpose(1, 2))
        if self._first_forgetting < heads:
            by_head[:, self._first_forgetting :] += self._decay.transpose(0, 1)
        for part in self._ranked:
            self.importance[:, part] += torch.softmax(by_head[:, :, part], 2).mean(dim=1)
        attended = torch.bmm(torch.softmax(scores, 2, out=scores), self._value)  # [B H, 1, d]
        return self._join(hidden, attended.view_as(hidden)), times

    def _write(self, hidden: Tensor, moves: Moves, compressors: list[Compressor]) -> tuple[Tensor, Tensor]:
        """Write new slots.

        :return: the new slots [K + B, D] normed, the steps' own last, and their carried numbers [R, K + B]
        """
        formed, handed_on = self._form(moves, compressors)
        slots = torch.cat([*formed, hidden]) if formed else hidden  # [K + B, D]
        self._flat_slots.index_copy_(0, moves.target, slots)
        if self._ranked:
            self.importance.view(-1).index_fill_(0, moves.target, 0)
        normed: Tensor = self._attention.norm.without_weights(slots)
        carried = hidden.new_zeros(len(self._flat_carried), len(hidden))  # [R, B]
        if len(carried):
            if self._forget_gate is not None:
                log_forget = F.logsigmoid(F.linear(normed[-len(hidden) :], *self._forget_gate))  # [B, F]
                carried[: len(self._decay)] = -log_forget.t()
            own, carried = carried, torch.cat([*(each.t() for each in handed_on), carried], dim=1)  # [R, K + B]
            # All slots fade by the step's gates. Its own slot starts at minus that, so that it ends at 0.
            for kept, values in zip(self._flat_carried, carried, strict=True):
                kept.index_copy_(0, moves.target, values)
            self._decay -= own[: len(self._decay), :, None]
        return normed, carried

    def _form(self, moves: Moves, compressors: list[Compressor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tiers' new slots [K, D] and their carried numbers [K, R], one pair for each merge."""
        slots, handed_on = [], []
        for merge in moves.merges:
            blocks = self._flat_slots.index_select(0, merge.source).view(-1, len(merge.held), self._flat_slots.shape[1])
            compressor, attention, novelty = compressors[merge.tier - 1], None, None
            if compressor.uses_attention():
                received = self.importance.view(-1).index_select(0, merge.source)
                attention = received.view(-1, len(merge.held)) / merge.held  # [K, m]
            if compressor.uses_novelty():
                novelty = self._novelty_of(blocks, merge.source)  # [K, m]
            importance = importance_of(compressor, attention, novelty)
            slots.append(compressor(blocks, importance))
            if len(self._flat_carried):
                carried = self._flat_carried.index_select(1, merge.source)
                carried = carried.view(-1, *blocks.shape[:2]).movedim(0, 2)  # [K, m, R]
                if self._clock is not None:
                    carried.select(2, -1).add_(merge.to_new_centre)
                handed_on.append(compressor.carry(carried, blocks, importance))
        return slots, handed_on

    def _novelty_of(self, blocks: Tensor, source: Tensor) -> Tensor | None:
        """Return the novelty [K, m] of the slots of blocks [K, m, D], which lie at `source` [K m]."""
        return self._attention.novelty_of(self._attention.norm.without_weights(blocks))

    def _project_slots(self, normed: Tensor, carried: Tensor, moves: Moves) -> Tensor | None:
        """Bring the keys and values of all slots up to date.

        :param normed: [K + B, D] the slots that the step has written
        :param carried: [R, K + B] their carried numbers
        :return: the step's clock features [B, CLOCK_FEATURES]; None without a clock
        """
        _, times = self._project_all()
        return None if times is None else times.index_select(0, moves.target[-self._shape[0] :])

    def _project_all(self) -> tuple[Tensor | None, Tensor | None]:
        """Project all slots; return their novelty [B S] and clock features [B S, CLOCK_FEATURES], if there are any."""
        batch, heads, features = self._shape
        normed = self._attention.norm.without_weights(self._flat_slots)
        novelty = self._attention.novelty_of(normed)
        projected = self._project(normed, novelty).view(2, batch, -1, heads, features)
        # Each env lies in one piece, so that a slot's keys and values are written close together.
        self._keys_values = projected.transpose(2, 3).contiguous()  # [2, B, H, S, d]
        key, self._value = self._keys_values.view(2, batch * heads, -1, features)  # [B H, S, d]
        self._key = key.transpose(1, 2)
        centres = torch.from_numpy(np.maximum(self._schedule.centre, 0).reshape(-1)).to(self.slots.device)
        times = self._times(centres, self._flat_carried)
        if times is not None:
            self._time_keys = time_keys(times).view(batch, -1, TIME_KEYS).contiguous()
        return novelty, times

    def _project(self, normed: Tensor, novelty: Tensor | None) -> Tensor:
        """Return keys and values [2, N, D] of N slots.

        :param normed: [N, D] the slots, without the norm's weights
        :param novelty: [N] of the slots; None if it is not measured
        """
        bias, weight = self._key_value
        projected = torch.baddbmm(bias, normed.expand(2, -1, -1), weight)
        emphasis = self._attention.emphasis(novelty)
        if emphasis is not None:
            projected *= emphasis[:, None]
        return projected

    def _times(self, centres: Tensor, carried: Tensor) -> Tensor | None:
        """Return clock features [N, CLOCK_FEATURES] of slots from centres [N] and carried numbers [R, N]."""
        return None if self._clock is None else cast(Tensor, self._clock(centres, self.slots.dtype, carried[-1]))


class MemoryInPlace:
    """The memory of B envs, which changes in place from step to step.

    :param core: the core, with positions by age
    :param state: the state to begin with; it is copied
    :param kind: how each layer keeps its slots
    """

    def __init__(self, core: CompressiveCore, state: CompressiveState, kind: type[LayerSlots] = LayerSlots) -> None:
        self._core = core
        self._clock: Integers = state.clock.cpu().numpy().copy()
        self._schedules = {
            tiers: CacheSchedule(tiers, core.heads, state.clock, expand_biases=kind.KEEPS_BIASES)
            for tiers in dict.fromkeys(core.tiers)
        }
        self._compressors = [core.compressors_of(layer) for layer in range(len(core.layers))]
        self._ranked = [ranked_parts(tiers, core.ranks(layer)) for layer, tiers in enumerate(core.tiers)]
        with torch.no_grad():
            self.layers = self._lay_out(state, kind)

    def _lay_out(self, state: CompressiveState, kind: type[LayerSlots]) -> list[LayerSlots]:
        core, layers = self._core, []
        sizes = [sum(tier.slots for tier in tiers) for tiers in core.tiers]
        slots, carried = state.slots.detach().split(sizes, dim=1), harmless(state.carried).split(sizes, dim=1)
        parts = [part.stop - part.start for ranked in self._ranked for part in ranked]
        importances = iter(state.importance.detach().split(parts, dim=1))
        kept = {tiers: self._kept(tiers) for tiers in self._schedules}  # [B, S, 1] each
        for layer, (tiers, ranked) in enumerate(zip(core.tiers, self._ranked, strict=True)):
            importance = slots[layer].new_zeros(slots[layer].shape[:2])
            for part in ranked:
                importance[:, part] = torch.where(kept[tiers][:, part, 0], next(importances), 0)
            memory = torch.where(kept[tiers], slots[layer], 0), importance, torch.where(kept[tiers], carried[layer], 0)
            module = cast(MemoryLayer, core.layers[layer])
            layers.append(kind(module, memory, ranked, self._schedules[tiers], core.clock))
        return layers

    def step(self, inputs: Tensor) -> Tensor:
        """Consume one observation embedding per env: [B, I] -> [B, O]. Gradients must be off."""
        core, times = self._core, None
        moves = {tiers: schedule.advance(self._clock, inputs.device) for tiers, schedule in self._schedules.items()}
        self._clock += 1
        hidden: Tensor = core.embed(inputs)  # [B, D]
        for layer, tiers, compressors in zip(self.layers, core.tiers, self._compressors, strict=True):
            hidden, times = layer.step(hidden, moves[tiers], compressors)
        outputs: Tensor = core.norm(hidden)
        return outputs if core.output_clock is None else outputs + core.output_clock(times)

    def forget(self, envs: Integers) -> None:
        """Empty the memory of some envs. Slots left in place are masked, and they are finite."""
        self._clock[envs] = 0
        for schedule in self._schedules.values():
            schedule.forget(envs)

    def refresh(self) -> None:
        """Take over the present weights."""
        for layer in self.layers:
            layer.refresh()

    def state(self, envs: Integers | None = None) -> CompressiveState:
        """Return a copy of the state, of all envs or some."""
        picked = np.arange(len(self._clock)) if envs is None else np.asarray(envs)
        index = torch.from_numpy(picked).to(self._core.device)
        kept = {tiers: self._kept(tiers)[index] for tiers in self._schedules}  # [B, S, 1] each
        slots, importance, carried = [], [], []
        for layer, tiers, ranked in zip(self.layers, self._core.tiers, self._ranked, strict=True):
            slots.append(torch.where(kept[tiers], layer.slots[index], 0))
            carried.append(torch.where(kept[tiers], layer.carried[index], 0))
            importance += [torch.where(kept[tiers][:, part, 0], layer.importance[index, part], 0) for part in ranked]
        clock = torch.from_numpy(self._clock[picked]).to(self._core.device)
        joined = torch.cat(slots, dim=1)
        importances = torch.cat([joined.new_zeros(len(picked), 0), *importance], dim=1)
        return self._core.make_state([clock, joined, importances, torch.cat(carried, dim=1)])

    def _kept(self, tiers: Tiers) -> Tensor:
        """Return [B, S, 1] bool, true where a position of a layer holds a slot."""
        return torch.from_numpy(self._schedules[tiers].kept[:, :, None]).to(self._core.device)


def ranked_parts(tiers: Tiers, ranks: list[bool]) -> list[slice]:
    """Return the positions of the tiers whose slots are ranked by the attention that they receive."""
    starts = np.cumsum([0, *(tier.slots for tier in tiers)]).tolist()
    return [slice(starts[at], starts[at + 1]) for at, wanted in enumerate(ranks) if wanted]
