"""One step of the compressive core as a fixed graph of tensor operations, for exporters.

`CompressiveCore.step` asks numpy which slots a step forms, and does only that. An exporter can't follow it: it needs
the same operations at every step, whatever the numbers are. So each step here forms a slot for every tier and env, and
selects it where the schedule says so. What the schedule says is a closed form of each env's clock
(`ctrl.compressive.schedule`). Both give the same results.

Sizes in the comments: B envs, S slots of a layer, n of a tier, m of a block, width D, H heads of d features, F of which
forget. A slot carries R numbers, see `CompressiveState`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrl.compressive.attention.block_attention import masked_score
from ctrl.compressive.attention.block_mask import age_bucket, exact_ages, masked_bucket
from ctrl.compressive.attention.clock import time_keys
from ctrl.compressive.attention.memory_attention import AgeAttention, MemoryAttention
from ctrl.compressive.attention.relative import RelativeAttention
from ctrl.compressive.compressors import importance_of
from ctrl.compressive.layer import MemoryLayer
from ctrl.compressive.schedule import EMPTY, TierSchedule, count_slots, ring_centres, tier_schedules
from ctrl.compressive.tiers import Tiers
from ctrl.compressive.window import harmless

if TYPE_CHECKING:
    from ctrl.compressive.core import CompressiveCore, CompressiveState


class Slots(NamedTuple):
    """The slots of one layer, or of one of its tiers."""

    content: Tensor  # [B, S, D]
    importance: Tensor  # [B, S], 0 in tiers that are not ranked by attention
    carried: Tensor  # [B, S, R]

    def split(self, sizes: list[int]) -> list[Slots]:
        """Return the slots of each tier."""
        return [Slots(*parts) for parts in zip(*(leaf.split(sizes, dim=1) for leaf in self), strict=True)]

    def only(self, kept: Tensor) -> Slots:
        """Set slots to 0 where `kept` [B, S] is false, whatever they hold."""
        return self.written(~kept, *(leaf.new_zeros(()) for leaf in self))

    def written(self, here: Tensor, content: Tensor, importance: Tensor, carried: Tensor) -> Slots:
        """Replace slots where `here` [B, S] is true."""
        return Slots(
            torch.where(here[:, :, None], content, self.content),
            torch.where(here, importance, self.importance),
            torch.where(here[:, :, None], carried, self.carried),
        )

    def picked(self, index: Tensor) -> Slots:
        """Return the slots at the positions `index` [B, m]."""
        wide = index[:, :, None]
        return Slots(
            self.content.gather(1, wide.expand(-1, -1, self.content.shape[2])),
            self.importance.gather(1, index),
            self.carried.gather(1, wide.expand(-1, -1, self.carried.shape[2])),
        )


def graph_step(core: CompressiveCore, inputs: Tensor, state: CompressiveState) -> tuple[Tensor, CompressiveState]:
    """Take one step of all layers.

    :param inputs: [B, I]
    :param state: the state before the step, whose clock is 0 where an episode begins
    :return: outputs [B, O] and the state after the step
    """
    hidden, kept, time_features = core.embed(inputs), list[Slots](), None
    for layer, slots in enumerate(_by_layer(core, state)):
        step = LayerGraph(core, layer, state.clock)
        hidden, time_features, after = step.run(hidden, slots)
        kept.append(after)
    outputs: Tensor = core.norm(hidden)
    if core.output_clock is not None:
        outputs = outputs + core.output_clock(time_features)
    content, _, carried = (torch.cat(parts, dim=1) for parts in zip(*kept, strict=True))
    ranked = [
        tier.importance
        for layer, slots in enumerate(kept)
        for tier, is_ranked in zip(slots.split(_sizes(core.tiers[layer])), core.ranks(layer), strict=True)
        if is_ranked
    ]
    importance = torch.cat([content.new_zeros(content.shape[0], 0), *ranked], dim=1)
    return outputs, core.make_state([state.clock + 1, content, importance, carried])


def _by_layer(core: CompressiveCore, state: CompressiveState) -> list[Slots]:
    """Split a state into the slots of each layer."""
    sizes = [sum(_sizes(tiers)) for tiers in core.tiers]
    ranked = [
        (tier.slots, rank)
        for layer, tiers in enumerate(core.tiers)
        for tier, rank in zip(tiers, core.ranks(layer), strict=True)
    ]
    kept = [size for size, rank in ranked if rank]
    stored = iter(state.importance.split(kept, dim=1) if kept else ())  # `torch.export` can't load a split into nothing
    zeros = state.slots.new_zeros(state.slots.shape[0], 1)
    importance = torch.cat([next(stored) if rank else zeros.expand(-1, size) for size, rank in ranked], dim=1)
    leaves = (leaf.split(sizes, dim=1) for leaf in (state.slots, importance, harmless(state.carried)))
    return [Slots(*parts) for parts in zip(*leaves, strict=True)]


def _sizes(tiers: Tiers) -> list[int]:
    return [tier.slots for tier in tiers]


class LayerGraph:
    """One layer of a core, at one step.

    :param core: the core
    :param layer: the layer's index
    :param time: [B] the step of each env's episode, counted from 0
    """

    def __init__(self, core: CompressiveCore, layer: int, time: Tensor) -> None:
        self._core = core
        self._layer = cast(MemoryLayer, core.layers[layer])
        self._attention = self._layer.attention
        self._compressors = core.compressors_of(layer)
        self._ranked = core.ranks(layer)
        self._tiers = core.tiers[layer]
        self._schedules = tier_schedules(self._tiers)
        self._time = time
        self._before, self._centres = (ring_centres(self._tiers, clock) for clock in (time, time + 1))  # [B, S]

    def run(self, hidden: Tensor, slots: Slots) -> tuple[Tensor, Tensor | None, Slots]:
        """Return the layer's outputs [B, D], the step's clock features [B, CLOCK_FEATURES], and the slots after it.

        :param hidden: [B, D] the layer's inputs
        :param slots: before the step
        """
        stored = slots.only(self._before != EMPTY)
        normed = self._attention.norm.without_weights(hidden)
        slots = self._written(stored, hidden, normed).only(self._centres != EMPTY)
        times = self._times(slots.carried)  # [B, S, CLOCK_FEATURES]
        own_times = None if times is None else self._own(times)
        scores, values = self._attend(normed, own_times, slots, times)  # [B, H, S], [B, H, S, d]
        attended = (scores.softmax(dim=2)[:, :, None] @ values).flatten(1)  # [B, D]
        slots = slots._replace(importance=slots.importance + self._received(scores))
        outputs = self._layer.weights().join(hidden, attended)
        return outputs, own_times, slots.only(self._centres != EMPTY)

    def _written(self, slots: Slots, hidden: Tensor, normed: Tensor) -> Slots:
        """Form the tiers' new slots, let all slots fade, and write the step's own."""
        parts = slots.split(_sizes(self._tiers))
        written = [parts[0]]
        for tier, (own, below) in enumerate(zip(parts[1:], parts[:-1], strict=True), start=1):
            formed = (part[:, None] for part in self._formed(tier, below))
            schedule = self._schedules[tier]
            number = schedule.newest(self._time)  # [B]
            here = _at(number, schedule) & schedule.forms(self._time)[:, None]  # [B, n]
            written.append(own.written(here, *formed))
        content, importance, carried = (torch.cat(leaves, dim=1) for leaves in zip(*written, strict=True))
        lost = F.pad(self._attention.log_forget(normed), (0, carried.shape[2] - self._core.forgetting_heads))  # [B, R]
        joined = Slots(content, importance, carried + lost[:, None])
        first = F.pad(_at(self._time, self._schedules[0]), (0, content.shape[1] - self._tiers[0].slots))  # [B, S]
        nothing = carried.new_zeros(())
        return joined.written(first, hidden[:, None], nothing, nothing)

    def _formed(self, tier: int, below: Slots) -> tuple[Tensor, Tensor, Tensor]:
        """Return a tier's new slot in every env, as if it were due: content [B, D], importance [B], carried [B, R]."""
        schedule, compressor = self._schedules[tier], self._compressors[tier - 1]
        first = schedule.newest(self._time)[:, None] * schedule.rate  # [B, 1]
        block = below.picked((first + torch.arange(schedule.rate, device=first.device)) % self._tiers[tier - 1].slots)
        attention = novelty = None
        if compressor.uses_attention():
            held = self._schedules[tier - 1].lifetime(torch.arange(schedule.rate)).to(block.importance)  # [m]
            attention = block.importance / held
        if compressor.uses_novelty():
            novelty = self._attention.novelty_of(self._attention.norm.without_weights(block.content))
        importance = importance_of(compressor, attention, novelty)  # [B, m]
        carried = block.carried
        if self._core.clock is not None:  # the last number is a time, which counts from the new slot's centre
            to_new_centre = schedule.block_centres()[:, None].to(carried)  # [m, 1]
            carried = carried + F.pad(to_new_centre, (carried.shape[2] - 1, 0))
        handed_on = compressor.carry(carried, block.content, importance) if carried.shape[2] else carried[:, 0]
        return compressor(block.content, importance), carried.new_zeros(carried.shape[0]), handed_on

    def _attend(
        self, normed: Tensor, own_times: Tensor | None, slots: Slots, times: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the scores of all slots [B, H, S], and their values [B, H, S, d]."""
        attention = self._attention
        query = F.linear(normed, *attention.norm.folded(attention.query)).unflatten(
            1, (attention.heads, -1)
        )  # [B, H, d]
        normed_slots = attention.norm.without_weights(slots.content)
        keys_values = F.linear(normed_slots, *attention.norm.folded(attention.key_value))  # [B, S, 2 D]
        if (emphasis := attention.emphasis(attention.novelty_of(normed_slots))) is not None:
            keys_values = keys_values * emphasis[:, :, None]
        keys, values = (
            keys_values.unflatten(2, (2, attention.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        )  # [B, H, S, d]
        scores = self._scores(attention, query, keys) + self._decay(slots.carried)
        if attention.time_queries is not None and own_times is not None and times is not None:
            by_time = attention.time_queries(own_times).unflatten(1, (-1, time_keys(times).shape[2]))  # [B, J, K]
            by_time = by_time @ time_keys(times).transpose(1, 2)  # [B, J, S]
            scores = scores + F.pad(by_time, (0, 0, 0, attention.heads - by_time.shape[1]))
        return scores, values

    def _scores(self, attention: MemoryAttention, query: Tensor, keys: Tensor) -> Tensor:
        """Return the scores by content and by position, [B, H, S]."""
        size = math.sqrt(query.shape[2])
        if isinstance(attention, AgeAttention):
            biases = F.pad(attention.age_biases(), (0, 1), value=masked_score(query.dtype))  # [H, E]
            by_content = (keys @ query[:, :, :, None])[..., 0] / size
            return by_content + biases[:, self._age_buckets()].transpose(0, 1)
        relative = cast(RelativeAttention, attention)
        encodings = relative.get_buffer("sinusoids").to(query)
        position_keys = relative.position_key(encodings).unflatten(1, (relative.heads, -1)).movedim(0, 2)  # [H, d, E]
        by_content = (keys @ (query + relative.content_bias)[:, :, :, None])[..., 0]
        by_distance = ((query + relative.position_bias)[:, :, None] @ position_keys)[:, :, 0] / size  # [B, H, E]
        by_distance = F.pad(by_distance, (0, 1), value=masked_score(query.dtype))
        bucket = self._distances()[:, None].expand(-1, relative.heads, -1)  # [B, H, S]
        return by_content / size + by_distance.gather(2, bucket)

    def _age_buckets(self) -> Tensor:
        """Return [B, S] the relative-position bucket of each slot by its age."""
        age = self._time[:, None] - self._centres
        bucket = age.clamp_max(exact_ages(self._tiers) - 1)
        if firsts := first_ages(self._tiers):
            # An exponent read from a float's digits, as in `age_bucket`, has no operation in ONNX.
            bucket = bucket + (age[:, :, None] >= torch.tensor(firsts, device=age.device)).sum(dim=2)
        return torch.where(self._centres == EMPTY, masked_bucket(self._tiers), bucket)

    def _distances(self) -> Tensor:
        """Return [B, S] the relative-position bucket of each slot by its distance, see `block_mask.distances`."""
        newer, parts = torch.zeros_like(self._time), []
        for schedule, counts in zip(self._schedules, count_slots(self._tiers, self._time + 1), strict=True):
            parts.append((newer + counts.created - 1)[:, None] - schedule.newest_in_ring(counts.created))
            newer = newer + counts.created - counts.evicted
        return torch.where(self._centres == EMPTY, sum(_sizes(self._tiers)), torch.cat(parts, dim=1))

    def _decay(self, carried: Tensor) -> Tensor:
        """Return [B, H, S] what forgetting heads have kept of each slot; 0 for the others."""
        heads, forgetting = self._attention.heads, self._core.forgetting_heads
        return F.pad(carried[:, :, :forgetting].transpose(1, 2), (0, 0, heads - forgetting, 0))

    def _times(self, carried: Tensor) -> Tensor | None:
        """Return clock features [B, S, CLOCK_FEATURES] of all slots; None without a clock."""
        clock = self._core.clock
        if clock is None:
            return None
        return cast(Tensor, clock(self._centres.clamp_min(0), self._core.dtype, carried[:, :, -1]))

    def _own(self, times: Tensor) -> Tensor:
        """Pick the step's own slot: [B, S, N] -> [B, N]."""
        index = (self._time % self._tiers[0].slots)[:, None, None]
        return times.gather(1, index.expand(-1, -1, times.shape[2]))[:, 0]

    def _received(self, scores: Tensor) -> Tensor:
        """Return the attention [B, S] that each slot of a ranked tier receives, among the tier's slots; 0 elsewhere."""
        parts = [
            part.softmax(dim=2).mean(dim=1) if ranked else part.new_zeros(()).expand(part.shape[0], part.shape[2])
            for part, ranked in zip(scores.split(_sizes(self._tiers), dim=2), self._ranked, strict=True)
        ]
        return torch.cat(parts, dim=1)


def _at(number: Tensor, schedule: TierSchedule) -> Tensor:
    """Return [B, n] bool, true at the ring position of slot `number` [B]."""
    return torch.arange(schedule.slots, device=number.device) == (number % schedule.slots)[:, None]


@lru_cache(maxsize=64)
def first_ages(tiers: Tiers) -> tuple[int, ...]:
    """Return the first age of each bucket that several ages share, up to the last bucket in use."""
    exact = exact_ages(tiers)
    return tuple(_first_age(bucket, exact) for bucket in range(exact, masked_bucket(tiers)))


def _first_age(bucket: int, exact: int) -> int:
    """Return the lowest age in a bucket. Float rounding moves some by a few steps, so it is found by bisection."""
    low, high = exact, 2**62
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if int(age_bucket(torch.tensor(middle), exact)) >= bucket else (middle + 1, high)
    return low
