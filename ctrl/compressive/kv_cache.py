"""Acting with the compressive core: a KV cache, rings of slots with their keys and values, written in place.

An unroll projects all slots in each window. Here each slot's keys and values are projected once, when it is formed, and
again only when the weights have changed. `ctrl.compressive.cache_schedule` says which slots are formed at a step and
where they go.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from ctrl.compressive.attention.block_attention import MASKED
from ctrl.compressive.attention.clock import TIME_KEYS, EpisodeClock, time_keys
from ctrl.compressive.attention.memory_attention import AgeAttention
from ctrl.compressive.cache_schedule import CacheSchedule, Integers, Moves
from ctrl.compressive.compressors import Compressor, importance_of
from ctrl.compressive.layer import MemoryLayer
from ctrl.compressive.tiers import Tiers
from ctrl.compressive.window import harmless
from ctrl.core import Acting

if TYPE_CHECKING:
    from ctrl.compressive.core import CompressiveCore, CompressiveState


class _OptimizerSteps:
    """Number of steps that all optimizers have taken. Fused ones write to weights without raising their versions."""

    taken = 0

    @classmethod
    def count(cls, *_: object) -> None:
        cls.taken += 1


register_optimizer_step_post_hook(_OptimizerSteps.count)


class LayerCache:
    """The slots of one layer in B envs, with their keys and values.

    Views are made once and weights are at hand: at a small B, looking them up would take most of a step's time.

    :param layer: the layer whose weights project the slots
    :param memory: slots [B, S, D], the attention [B, S] that each has received so far, and their carried numbers
        [B, S, F + 1]; see `CompressiveState`
    :param ranked: positions of the tiers whose slots are ranked by attention
    :param schedule: of the slots' positions
    :param clock: the core's clock, if it has one
    """

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
        batch, size, width = self.slots.shape
        heads = layer.attention.heads
        self._shape = (batch, heads, width // heads)
        self._first_forgetting = heads - layer.attention.forgetting_heads
        # Each carried number lies in one piece, as it is changed and read.
        by_fact = carried.movedim(2, 0).contiguous()  # [F + 1, B, S]
        self.carried, self._flat_carried = by_fact.movedim(0, 2), by_fact.flatten(1)
        self._decay = by_fact[: layer.attention.forgetting_heads]
        # Each env lies in one piece, so that a slot's keys and values are written close together.
        self._keys_values = self.slots.new_empty(2, batch, heads, size, width // heads)
        self._flat_slots, self._flat_keys_values = (
            self.slots.view(-1, width),
            self._keys_values.view(-1, width // heads),
        )
        self._time_keys = self.slots.new_empty(batch, size, TIME_KEYS if clock is not None else 0)
        self._flat_time_keys = self._time_keys.flatten(0, 1)
        measured = layer.attention.novelty is not None
        self._novelty = self.slots.new_empty(batch * size if measured else 0)  # of all slots, numbered through all envs
        key, self._value = self._keys_values.view(2, batch * heads, size, -1)  # [B H, S, d]
        self._key = key.transpose(1, 2)
        self.refresh()

    def refresh(self) -> None:
        """Fetch the present weights, and project all slots with them."""
        attention = self._attention
        batch, heads, features = self._shape
        scale = 1 / math.sqrt(features)
        weight, bias = attention.norm.folded(attention.query)
        self._query = weight * scale, bias * scale
        weight, bias = attention.norm.folded(attention.key_value)
        self._key_value = bias.view(2, 1, -1), weight.unflatten(0, (2, -1)).transpose(1, 2)  # [2, 1, D], [2, D, D]
        self._forget_gate = None if attention.forget_gate is None else attention.norm.folded(attention.forget_gate)
        biases = F.pad(attention.age_biases(), (0, 1), value=MASKED)
        bucket_of_age = self._schedule.bucket_of_age
        self._biases = biases if bucket_of_age is None else biases.index_select(1, bucket_of_age)
        self._join = self._layer.weights().join
        centres = torch.from_numpy(np.maximum(self._schedule.centre, 0).reshape(-1)).to(self.slots.device)
        normed = attention.norm.without_weights(self._flat_slots)
        novelty = attention.novelty_of(normed)
        if novelty is not None:
            self._novelty.copy_(novelty)
        projected = self._project(normed, novelty)
        times = self._times(centres, self._flat_carried)
        if times is not None:
            self._flat_time_keys.copy_(time_keys(times))
        queries = attention.time_queries
        self._time_query = None if queries is None else queries.matrix()
        self._keys_values.copy_(projected.view(2, batch, -1, heads, features).transpose(2, 3))

    def step(self, hidden: Tensor, moves: Moves, compressors: list[Compressor]) -> tuple[Tensor, Tensor | None]:
        """Form the tiers' new slots, write the step's own, and attend.

        :param hidden: [B, D] the layer's inputs
        :return: the layer's outputs [B, D], and the step's clock features [B, CLOCK_FEATURES], None without a clock
        """
        batch, heads, features = self._shape
        normed, times = self._write(hidden, moves, compressors)
        query = F.linear(normed[-batch:], *self._query)
        biases = self._biases.index_select(1, moves.buckets).view(heads, batch, -1)
        scores = (
            biases.transpose(0, 1)
            .reshape(batch * heads, 1, -1)
            .baddbmm_(query.view(batch * heads, 1, features), self._key)
        )
        if times is not None and self._time_query is not None:
            asked = F.linear(time_keys(times), self._time_query).view(batch, -1, TIME_KEYS)
            scores.view(batch, heads, -1)[:, : asked.shape[1]] += torch.bmm(asked, self._time_keys.transpose(1, 2))
        if self._first_forgetting < heads:
            scores.view(batch, heads, -1)[:, self._first_forgetting :] += self._decay.transpose(0, 1)
        for part in self._ranked:
            shares = torch.softmax(scores.view(batch, heads, -1)[:, :, part], 2)
            self.importance[:, part] += shares.mean(dim=1)
        read = torch.bmm(torch.softmax(scores, 2, out=scores), self._value)
        return self._join(hidden, read.view_as(hidden)), times

    def _form(self, moves: Moves, compressors: list[Compressor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tiers' new slots [K, D] and their carried numbers [K, F + 1], one pair for each merge."""
        slots, carried = [], []
        for merge in moves.merges:
            blocks = self._flat_slots.index_select(0, merge.source).view(-1, len(merge.held), self._flat_slots.shape[1])
            compressor, attention = compressors[merge.tier - 1], None
            if compressor.uses_attention():
                attention = (
                    self.importance.view(-1).index_select(0, merge.source).view(-1, len(merge.held)) / merge.held
                )
            novelty = None
            if compressor.uses_novelty():
                novelty = self._novelty.index_select(0, merge.source).view(-1, len(merge.held))
            importance = importance_of(compressor, attention, novelty)
            slots.append(compressor(blocks, importance))
            if len(self._flat_carried):
                facts = self._flat_carried.index_select(1, merge.source)
                facts = facts.view(-1, *blocks.shape[:2]).movedim(0, 2)
                if self._clock is not None:
                    facts = facts + merge.to_new_centre
                carried.append(compressor.carry(facts, blocks, importance))
        return slots, carried

    def _write(self, hidden: Tensor, moves: Moves, compressors: list[Compressor]) -> tuple[Tensor, Tensor | None]:
        """Write new slots, their keys and values.

        :return: the new slots [K + B, D] normed, the steps' own last; the step's clock features [B, CLOCK_FEATURES]
        """
        formed, carried = self._form(moves, compressors)
        slots = torch.cat([*formed, hidden]) if formed else hidden
        self._flat_slots.index_copy_(0, moves.target, slots)
        if self._ranked:
            self.importance.view(-1).index_fill_(0, moves.target, 0)
        normed: Tensor = self._attention.norm.without_weights(slots)
        times = None
        if facts := len(self._flat_carried):
            of_step = hidden.new_zeros(facts, len(hidden))
            if self._forget_gate is not None:
                log_forget = F.logsigmoid(F.linear(normed[-len(hidden) :], *self._forget_gate))  # [B, F]
                of_step[: len(self._decay)] = -log_forget.t()
            new = torch.cat([*(each.t() for each in carried), of_step], dim=1)
            # All slots fade by the step's gates. Its own slot starts at minus that, so that it ends at 0.
            for fact, values in zip(self._flat_carried, new, strict=True):
                fact.index_copy_(0, moves.target, values)
            self._decay -= of_step[: len(self._decay), :, None]
            times = self._times(moves.centres, new)
        novelty = self._attention.novelty_of(normed)
        if novelty is not None:
            self._novelty.index_copy_(0, moves.target, novelty)
        if times is not None:
            self._flat_time_keys.index_copy_(0, moves.target, time_keys(times))
            times = times[-len(hidden) :]
        keys_values = self._project(normed, novelty).view(-1, self._shape[2])
        self._flat_keys_values.index_copy_(0, moves.head_target, keys_values)
        return normed, times

    def _times(self, centres: Tensor, carried: Tensor) -> Tensor | None:
        """Return clock features [N, CLOCK_FEATURES] of slots from centres [N] and carried numbers [F + 1, N]."""
        return None if self._clock is None else cast(Tensor, self._clock(centres, self.slots.dtype, carried[-1]))

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


class CompressiveActing(Acting["CompressiveState"]):
    """A compressive core that `acts_in_place`, acting in B envs; see `MemoryCore.acting`."""

    core: CompressiveCore

    def __init__(self, core: CompressiveCore, state: CompressiveState) -> None:
        super().__init__(core, state)
        self._take_over(state)

    def _take_over(self, state: CompressiveState) -> None:
        """Build the caches of a state, for the core as it is now."""
        core = self.core
        self._clock: Integers = state.clock.cpu().numpy().copy()
        self._tiers = list(core.tiers)
        self._schedules = {
            tiers: CacheSchedule(tiers, core.heads, state.clock, core.masked_bucket(tiers), state.carried)
            for tiers in dict.fromkeys(self._tiers)
        }
        self._compressors = [core.compressors_of(layer) for layer in range(len(core.layers))]
        self._places: list[tuple[Any, str]] = [
            (kept, name)
            for part in (core.layers, core.clock)
            if part is not None
            for owner in part.modules()
            for kept in (owner._parameters, owner._buffers)
            for name, tensor in cast("dict[str, Tensor | None]", kept).items()
            if tensor is not None
        ]
        self._watch(self._weights())
        self._ranked = [ranked_parts(tiers, core.ranks(layer)) for layer, tiers in enumerate(core.tiers)]
        sizes = [sum(tier.slots for tier in tiers) for tiers in core.tiers]
        slots, carried = state.slots.detach().split(sizes, dim=1), harmless(state.carried).split(sizes, dim=1)
        importances = iter(
            state.importance.detach().split([part.stop - part.start for ranked in self._ranked for part in ranked], 1)
        )
        with torch.no_grad():
            self._layers = []
            for layer, tiers in enumerate(core.tiers):
                kept, ranked = self._kept(tiers), self._ranked[layer]
                importance = slots[layer].new_zeros(slots[layer].shape[:2])
                for part in ranked:
                    importance[:, part] = torch.where(kept[:, part, 0], next(importances), 0)
                memory = torch.where(kept, slots[layer], 0), importance, torch.where(kept, carried[layer], 0)
                module = cast(MemoryLayer, core.layers[layer])
                self._layers.append(LayerCache(module, memory, ranked, self._schedules[tiers], core.clock))

    def state(self, envs: Integers | None = None) -> CompressiveState:
        """Return a copy of the state, of all envs or some."""
        picked = np.arange(len(self._clock)) if envs is None else np.asarray(envs)
        index = torch.from_numpy(picked).to(self.core.device)
        kept = {tiers: self._kept(tiers)[index] for tiers in self._schedules}  # [B, S, 1] each
        slots, importance, carried = [], [], []
        for layer, tiers, ranked in zip(self._layers, self._tiers, self._ranked, strict=True):
            slots.append(torch.where(kept[tiers], layer.slots[index], 0))
            carried.append(torch.where(kept[tiers], layer.carried[index], 0))
            importance += [torch.where(kept[tiers][:, part, 0], layer.importance[index, part], 0) for part in ranked]
        clock = torch.from_numpy(self._clock[picked]).to(self.core.device)
        joined = torch.cat(slots, dim=1)
        importances = torch.cat([joined.new_zeros(len(picked), 0), *importance], dim=1)
        return self._make_state(clock, joined, importances, torch.cat(carried, dim=1))

    def _make_state(self, *leaves: Tensor) -> CompressiveState:
        return self.core.make_state(leaves)

    def _step(self, inputs: Tensor, reset: Tensor) -> Tensor:
        self._follow_weights()
        if len(restarted := np.flatnonzero(reset.cpu().numpy())):
            self._forget(restarted)
        moves = {tiers: schedule.advance(self._clock, inputs.device) for tiers, schedule in self._schedules.items()}
        self._clock += 1
        core = self.core
        hidden: Tensor = core.embed(inputs)
        times = None
        for layer, tiers, compressors in zip(self._layers, self._tiers, self._compressors, strict=True):
            hidden, times = layer.step(hidden, moves[tiers], compressors)
        outputs: Tensor = core.norm(hidden)
        return outputs if core.output_clock is None else outputs + core.output_clock(times)

    def _forget(self, envs: Integers) -> None:
        """Empty the memory of some envs. Slots left in place are masked, and they are finite."""
        self._clock[envs] = 0
        for schedule in self._schedules.values():
            schedule.forget(envs)

    def _follow_weights(self) -> None:
        weights = self._weights()
        if _versions(weights) != self._versions:
            self._watch(weights)
            for layer in self._layers:
                layer.refresh()

    def _weights(self) -> list[Tensor]:
        """Return parameters and buffers of the layers and the clock as they are now; any may have been replaced."""
        return [parameters[name] for parameters, name in self._places]

    def _watch(self, weights: list[Tensor]) -> None:
        self._versions = _versions(weights)
        self._storages = [weight.untyped_storage() for weight in weights]  # kept, or another may get its address

    def _kept(self, tiers: Tiers) -> Tensor:
        """Return [B, S, 1] bool, true where a position of a layer holds a slot."""
        return torch.from_numpy(self._schedules[tiers].kept[:, :, None]).to(self.core.device)


def ranked_parts(tiers: Tiers, ranks: list[bool]) -> list[slice]:
    """Return the positions of the tiers whose slots are ranked by the attention that they receive."""
    starts = np.cumsum([0, *(tier.slots for tier in tiers)]).tolist()
    return [slice(starts[at], starts[at + 1]) for at, wanted in enumerate(ranks) if wanted]


def _versions(weights: list[Tensor]) -> tuple[int, list[tuple[int, int]]]:
    """Return a fingerprint that differs when a parameter was written to or replaced."""
    return _OptimizerSteps.taken, [(weight.data_ptr(), weight._version) for weight in weights]
