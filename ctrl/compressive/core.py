"""The Compressive Transformer as a memory core (Rae et al. 2020, arXiv 1911.05507).

The story of a window: plan the timeline, then layer by layer recall the stored slots, compress what is evicted,
attend to stored, new and compressed slots together, and write the slots back. Acting does the same in place, one step
at a time (`ctrl.compressive.kv_cache`).

A layer has one of two kinds of position and one of two ways to join what it reads to its input: those for RL by
default, those of the paper on request (`ctrl.presets.paper_config`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrl.compressive.block_mask import (
    BY_AGE,
    BY_DISTANCE,
    Rows,
    age_row,
    ages,
    band_rows,
    exact_ages,
    lay_out,
    tier_band,
    visible,
)
from ctrl.compressive.clock import CLOCK_FEATURES, EpisodeClock
from ctrl.compressive.compressors import Compressor, make_compressor, usage_of
from ctrl.compressive.explain import Explained, explain_layer
from ctrl.compressive.kv_cache import CompressiveActing
from ctrl.compressive.layer import RESIDUALS, AgeAttention, ColumnFacts, MemoryAttention, MemoryLayer
from ctrl.compressive.novelty import Novelty
from ctrl.compressive.reconstruction import (
    RECONSTRUCTION_LOSSES,
    Compression,
    ReconstructionLoss,
    block_errors,
    questions,
    reconstruction_error,
)
from ctrl.compressive.relative import RelativeAttention
from ctrl.compressive.schedule import oldest_age, plan_window
from ctrl.compressive.tiers import MemorySpec, Tier, Tiers, tiers_by_layer
from ctrl.compressive.window import (
    Frame,
    LayerPass,
    LayerPlan,
    Memory,
    Ring,
    harmless,
    make_frame,
    sum_by_episode,
    take,
    to_new_centre,
)
from ctrl.core import Acting, MemoryCore, PlainActing, Unrolled, choose, require_not_negative, require_positive

LONGEST_TIME = "longest_time"
"""Name among the diagnostics of how many steps of its episode the furthest step of a window has behind it."""
_TRAINED_BY_TASK = {"reconstruction": False, "task": True}


class Position(NamedTuple):
    """How a slot's position counts."""

    rows: Rows
    attention: type[AgeAttention] | type[RelativeAttention]


POSITIONS = {"age": Position(BY_AGE, AgeAttention), "sinusoidal": Position(BY_DISTANCE, RelativeAttention)}


class CompressiveState(NamedTuple):
    """The state of a `CompressiveCore`."""

    clock: Tensor
    """[B] int64, steps of the current episode consumed so far."""
    slots: Tensor
    """[B, S, D] all slots of all layers and tiers, layer by layer, tier by tier, each tier a ring; 0 where empty."""
    usage: Tensor
    """[B, U] the attention that slots have received so far, in the same order, of the tiers whose slots the next tier's
    compressor ranks by it; most often there is none, and U = 0."""
    carried: Tensor
    """[B, S, F + 1] what compressors hand on beside content, in the same order: the logarithm of what F heads have kept
    of each slot so far, F = 0 without forgetting; and, with a clock, how many steps what the slot holds lies from the
    middle of those that it stands for. Without a clock, F numbers."""


class CompressiveCore(MemoryCore[CompressiveState]):
    """Attention over recent steps as they are, and over older ones compressed tier by tier.

    :param input_size: I, the size of an observation embedding
    :param layers: L
    :param width: D, features of a slot and of the output
    :param heads: H, attention heads; divides `width`
    :param memory: a list of tiers for all layers, or one list per layer; the default looks back
        64 + 8 * 8 + 8 * 64 + 8 * 512 = 4736 steps per layer
    :param feedforward: hidden units of the layers' feed-forward part, which a plain layer does not have; `2 * width` if
        None
    :param reconstruction: what the compressors learn from: "attention_reconstruction" (the paper's loss, the default
        where they have anything to learn), "auto_encoding" (a decoder rebuilds the evicted slots) or "none"; the
        measure of novelty of "surprise" and "most_missed" learns in any case, from a loss of its own
    :param compression_gradient: "reconstruction", or "task" to let the task loss train the compressors instead, through
        the slots that are formed and attended inside a window (the paper's gradient through time); that is without a
        reconstruction loss
    :param position: "age" (a learned bias on a slot's age in steps) or "sinusoidal" (Transformer-XL's encoding of its
        distance in slots)
    :param novelty_gain: keys and values of a slot of novelty n are 1 + n times this as large, in layers of which a
        compressor measures novelty; `Novelty.GAIN` = 4 if None
    :param residual: how a layer joins what it attends to with its input: "plain" (a sum, no feed-forward part),
        "pre_norm" (sums, with a feed-forward part), "gated" (GTrXL's gates in place of the sums) or "post_norm" (normed
        sums, as in Transformer-XL and the paper)
    :param forgetting: whether a quarter of the heads, but at least one of two or more, have a forget gate (Lin et al.
        2025, arXiv 2503.02130): a step can shut out all that is older
    :param clock: whether a quarter of the heads, but at least one, attend by the step of the episode too, and the
        outputs know it. The content of slots never holds it
    :raises ValueError: where options do not fit each other
    """

    MEMORY: MemorySpec = (Tier(64), Tier(8, rate=8), Tier(8, rate=8), Tier(8, rate=8))
    """What `memory` is where it is None."""

    def __init__(
        self,
        input_size: int,
        *,
        layers: int = 1,
        width: int = 64,
        heads: int = 4,
        memory: MemorySpec | None = None,
        feedforward: int | None = None,
        reconstruction: str | None = None,
        compression_gradient: str = "reconstruction",
        position: str = "age",
        novelty_gain: float | None = None,
        residual: str = "plain",
        forgetting: bool = True,
        clock: bool = True,
    ) -> None:
        require_positive(width=width, layers=layers, heads=heads)
        layer = choose("residual", residual, RESIDUALS)
        feedforward = _feedforward_size(layer, feedforward, width)
        super().__init__(input_size, width)
        _check_heads(heads, width)
        self.heads = heads
        self.tiers: list[Tiers] = tiers_by_layer(self.MEMORY if memory is None else memory, layers)
        self.trained_by_task = choose("compression_gradient", compression_gradient, _TRAINED_BY_TASK)
        _, attention = choose("position", position, POSITIONS)
        self.position = position
        self.embed = nn.Linear(input_size, width)
        known = {"forgetting": forgetting, "clock": clock}
        self.layers = nn.ModuleList(
            layer(attention(width, heads, layer.slot_norm(width), self.hidden_row(tiers), **known), width, feedforward)
            for tiers in self.tiers
        )
        self.forgetting_heads = cast(MemoryLayer, self.layers[0]).attention.forgetting_heads
        self.clock = EpisodeClock() if clock else None
        self.output_clock = nn.Linear(CLOCK_FEATURES, width, bias=False) if clock else None
        self._carried = self.forgetting_heads + int(clock)
        self.compressors = nn.ModuleList(
            nn.ModuleList(self._make_compressor(tiers, tier) for tier in range(1, len(tiers))) for tiers in self.tiers
        )
        self._measure_novelty(novelty_gain)
        parameters = list(self.compressors.parameters())
        if reconstruction is None:
            reconstruction = "attention_reconstruction" if parameters and not self.trained_by_task else "none"
        self.reconstruction: ReconstructionLoss | None = choose("reconstruction", reconstruction, RECONSTRUCTION_LOSSES)
        _check_learning(reconstruction, compression_gradient, self.tiers, parameters)
        self.decoders = nn.ModuleList(
            nn.ModuleList(compressor.decoder() for compressor in cast("list[Compressor]", compressors))
            for compressors in (self.compressors if reconstruction == "auto_encoding" else ())
        )
        self.norm = nn.Identity() if layer.ends_normed else nn.LayerNorm(width)
        self._sizes = [tier.slots for tiers in self.tiers for tier in tiers]
        self._usage_sizes = [
            tier.slots * ranked
            for number, tiers in enumerate(self.tiers)
            for tier, ranked in zip(tiers, self.ranks(number), strict=True)
        ]
        _initialise(self.embed)
        _initialise(self.layers)  # not the compressors: a registered one may start in a way of its own
        for memory_layer in self.layers:
            cast(MemoryLayer, memory_layer).attention.reset_parameters()
        if self.output_clock is not None:
            nn.init.zeros_(self.output_clock.weight)

    def initial_state(self, batch_size: int) -> CompressiveState:
        """Return the empty memory: clock 0, all slots 0."""
        require_positive(batch_size=batch_size)
        clock = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        slots = torch.zeros(batch_size, sum(self._sizes), self.output_size, device=self.device, dtype=self.dtype)
        usage = torch.zeros(batch_size, sum(self._usage_sizes), device=self.device, dtype=self.dtype)
        return CompressiveState(clock, slots, usage, slots.new_zeros(*slots.shape[:2], self._carried))

    def reset_state(self, state: CompressiveState, reset: Tensor) -> CompressiveState:
        """Set the clock to 0 where `reset` [B] is true: every slot is empty at clock 0, whatever it holds."""
        return state._replace(clock=torch.where(reset, 0, state.clock))

    def compression_parameters(self) -> list[nn.Parameter]:
        """Return those of compressors and decoders, unless the task loss trains them, and of measures of novelty."""
        trained: list[nn.Module] = [] if self.trained_by_task else [self.compressors, self.decoders]
        measures = [novelty for number in range(len(self.layers)) if (novelty := self.novelty_of(number)) is not None]
        return [parameter for part in (*trained, *measures) for parameter in part.parameters()]

    def adapt(self, diagnostics: Mapping[str, float]) -> dict[str, float]:
        """Let the clock stand still after the longest time that training has met, and biases on age after that age."""
        longest = diagnostics.get(LONGEST_TIME)
        if longest is None:
            return {}
        require_not_negative(longest_time=longest)
        if self.clock is not None:
            self.clock.settle(longest)
        for tiers, layer in zip(self.tiers, self.layers, strict=True):
            attention = cast(MemoryLayer, layer).attention
            if isinstance(attention, AgeAttention):
                oldest = torch.tensor(oldest_age(tiers, int(longest)))
                attention.settle(int(age_row(oldest, exact_ages(tiers))))
        return {}

    def remembered(self, state: CompressiveState) -> tuple[Tensor, ...]:
        """Return the slots, without what is known of them."""
        return (state.slots,)

    def acting(self, state: CompressiveState) -> Acting[CompressiveState]:
        """Return what keeps the state while B envs act, in place and with projected keys and values if possible."""
        return CompressiveActing(self, state) if self.acts_in_place else PlainActing(self, state)

    @property
    def acts_in_place(self) -> bool:
        """Whether `CompressiveActing` can act for this core; if not, each step is a window of its own."""
        return self.position == "age"

    def _step(self, inputs: Tensor, state: CompressiveState) -> tuple[Tensor, CompressiveState]:
        none = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        if torch.is_grad_enabled() or not self.acts_in_place:
            outputs, state, _ = self._run_window(inputs[:, None], state, self.plan(state, none[:, None]))
            return outputs[:, 0], state
        acting = self.acting(state)
        return acting.step(inputs, none), acting.state()

    def hidden_row(self, tiers: Tiers) -> int:
        """Return the row of a layer's table of positions that means "not visible"; the table has as many rows."""
        return POSITIONS[self.position].rows.hidden(tiers)

    def _make_compressor(self, tiers: Tiers, position: int) -> Compressor:
        return make_compressor(tiers[position].compressor, self.output_size, tiers[position].rate)

    def _compressor(self, number: int, position: int) -> Compressor:
        """Return what forms the slots of a layer's tier, 1 being the first that is compressed."""
        return cast(Compressor, cast(nn.ModuleList, self.compressors[number])[position - 1])

    def ranks(self, number: int) -> list[bool]:
        """Say for each tier of a layer whether it must know how much attention its slots receive."""
        return [*(compressor.uses_attention() for compressor in self.compressors_of(number)), False]

    def compressors_of(self, number: int) -> list[Compressor]:
        """Return what forms the slots of a layer's tiers, from the first that is compressed."""
        return list(cast("list[Compressor]", self.compressors[number]))

    def novelty_of(self, number: int) -> Novelty | None:
        """Return what measures how unusual a layer's inputs are, None if none of its compressors asks for that."""
        return cast(MemoryLayer, self.layers[number]).attention.novelty

    def _measure_novelty(self, gain: float | None) -> None:
        """Give the layers of which a compressor asks for it a measure of novelty; a ValueError if `gain` fits none."""
        if gain is not None:
            require_not_negative(novelty_gain=gain)
        asking = [
            number
            for number in range(len(self.layers))
            if any(compressor.uses_novelty() for compressor in self.compressors_of(number))
        ]
        if gain and not asking:
            raise ValueError(
                f"novelty_gain = {gain} needs a compressor that measures novelty, but memory has none; use compressor "
                "'surprise', or leave novelty_gain at None"
            )
        for number in asking:
            novelty = Novelty(self.output_size, Novelty.GAIN if gain is None else gain)
            cast(MemoryLayer, self.layers[number]).attention.novelty = novelty

    def plan(self, state: CompressiveState, reset: Tensor) -> dict[Tiers, LayerPlan]:
        """Work out when which slot exists in windows that begin with `state`, for all layers with the same tiers."""
        plans, rows = {}, POSITIONS[self.position].rows
        for tiers in dict.fromkeys(self.tiers):
            window = plan_window(tiers, state.clock, reset)
            layout = lay_out(tiers, window.length, window.clock.device)
            row = band_rows(tiers, window, layout, rows, self.hidden_row(tiers))
            times = end = None
            if self.clock is not None:
                times = self.clock(window.tiers[0].columns.number, self.dtype)
                end = self.clock.end.repeat(len(reset))
            plans[tiers] = LayerPlan(window, row, times, end, questions(window))
        return plans

    def check_plan(self, plan: dict[Tiers, LayerPlan], reset: Tensor) -> None:
        """Raise a ValueError unless `plan` has this core's tiers and just these resets."""
        if not isinstance(plan, dict) or plan.keys() != set(self.tiers):
            raise ValueError("plan must be what plan() of this core returned, with the tiers of its layers")
        episode = plan[self.tiers[0]].window.episode
        if not torch.equal(episode, reset.cumsum(dim=1)):
            raise ValueError(
                f"plan must be of the same windows, got one for {tuple(episode.shape)} and reset {tuple(reset.shape)}"
                + (" with other resets" if episode.shape == reset.shape else "")
            )
        end = plan[self.tiers[0]].end
        if self.clock is not None and end is not None and bool((end != self.clock.end).any()):
            raise ValueError("plan was made before `adapt` moved the core's clock; plan the windows again")

    def _unroll(
        self,
        inputs: Tensor,
        state: CompressiveState,
        reset: Tensor,
        plan: dict[Tiers, LayerPlan],
        diagnose: bool,
    ) -> Unrolled:
        outputs, state, passes = self._run_window(inputs, state, plan)
        losses: dict[str, Tensor] = {}
        if self.reconstruction is not None:
            losses = {place: self.reconstruction(*compressed) for place, compressed in self._compressions(passes)}
        losses |= self._novelty_losses(passes)
        total = torch.stack(list(losses.values())).sum() if losses else outputs.new_zeros(())
        diagnostics = {f"reconstruction_loss/{place}": loss.detach() for place, loss in losses.items()}
        diagnostics[LONGEST_TIME] = plan[self.tiers[0]].window.time.max().to(self.dtype)
        if diagnose:
            with torch.no_grad():
                for place, compressed in self._compressions(passes):
                    if bool(compressed[1].asked.any()):  # else it would seem lossless
                        diagnostics[f"reconstruction_error/{place}"] = reconstruction_error(*compressed)
                diagnostics.update(self._attention_statistics(passes))
        return Unrolled(outputs, state, total, diagnostics)

    @torch.no_grad()
    def explain(self, inputs: Tensor, state: CompressiveState, reset: Tensor) -> Explained:
        """Say what each step of a window looks at, and what is lost where slots are compressed.

        :param inputs: [B, T, I], and the other arguments as for `unroll`
        :return: attention by layer, head and tier with the age of each slot, and the reconstruction error by block
        :raises ValueError: as `unroll`
        """
        self.check_inputs(inputs, reset, tuple(inputs.shape[:2]))
        self.check_state(state, inputs.shape[0])
        outputs, _, passes = self._run_window(inputs, state, self.plan(state, reset))
        errors = {place: block_errors(*compressed) for place, compressed in self._compressions(passes)}
        layers = []
        for number, (tiers, (frame, _, attended)) in enumerate(zip(self.tiers, passes, strict=True)):
            by_tier = [
                errors.get(f"layer{number}/tier{at}", outputs.new_zeros(len(inputs), 0)) for at in range(len(tiers))
            ]
            layout = lay_out(tiers, inputs.shape[1], inputs.device)
            layers.append(explain_layer(frame.plan.window, layout, attended.weights, by_tier))
        return Explained(outputs, layers)

    def _run_window(
        self, inputs: Tensor, state: CompressiveState, plans: dict[Tiers, LayerPlan]
    ) -> tuple[Tensor, CompressiveState, list[LayerPass]]:
        frames = {tiers: make_frame(tiers, plan) for tiers, plan in plans.items()}
        rings = iter(state.slots.detach().split(self._sizes, dim=1))
        usages = iter(state.usage.detach().split(self._usage_sizes, dim=1))
        carried = iter(harmless(state.carried).split(self._sizes, dim=1))
        hidden = self.embed(inputs)  # [B, T, D]
        passes: list[LayerPass] = []
        kept: list[Ring] = []
        for number, tiers in enumerate(self.tiers):
            frame = frames[tiers]
            stored = [Ring(next(rings), next(usages), next(carried)) for _ in tiers]
            attention = cast(MemoryLayer, self.layers[number]).attention
            normed = attention.norm.without_weights(hidden)
            forgotten = sum_by_episode(attention.log_forget(normed), frame.plan.window.episode)  # [B, T, F]
            if self.clock is not None:
                forgotten = F.pad(forgotten, (0, 1))  # a raw slot's own time is where it stands
            memories = self._recall(number, hidden.detach(), normed.detach(), forgotten, stored, frame)
            last = forgotten[:, -1].detach()
            kept += [memory.write_back(pick, last) for memory, pick in zip(memories, frame.picks, strict=True)]
            decay = torch.cat([memory.carried for memory in memories], dim=1)[:, :, : self.forgetting_heads]
            times = _joined([memory.times for memory in memories])
            known = ColumnFacts(decay, _joined([memory.novelty for memory in memories]), times)
            rest = torch.cat([memory.normed for memory in memories], dim=1)
            hidden, attended = self.layers[number](hidden, normed, rest, tiers[0].slots, known, frame.band)
            passes.append(LayerPass(frame, memories, attended))
        plan = passes[0].frame.plan
        after = CompressiveState(plan.window.clock, *(torch.cat(parts, dim=1) for parts in zip(*kept, strict=True)))
        outputs = self.norm(hidden)
        if self.output_clock is not None and plan.times is not None:
            outputs = outputs + self.output_clock(plan.times[:, self.tiers[0][0].slots :])
        return outputs, after, passes

    def _recall(
        self, number: int, hidden: Tensor, normed: Tensor, forgotten: Tensor, rings: list[Ring], frame: Frame
    ) -> list[Memory]:
        """Collect, tier by tier, every slot of a layer that exists at some time of the window.

        :param normed: the window's steps `hidden` as attention norms them
        :param forgotten: [B, T, F + 1] what compressors hand on is counted from its beginning
        """
        attention = cast(MemoryLayer, self.layers[number]).attention
        memories: list[Memory] = []
        for position, (ring, pick, ranked) in enumerate(zip(rings, frame.picks, self.ranks(number), strict=True)):
            stored = take(ring.slots, pick.stored).masked_fill_(pick.not_stored, 0)
            before = take(ring.carried, pick.stored).masked_fill_(pick.not_stored, 0)
            if position == 0:
                blocks, formed, carried = hidden[:, :, None], hidden, -forgotten
                columns, known = attention.norm.without_weights(stored), [attention.novelty_of(normed)]
            else:
                blocks, formed, carried = self._compress(number, position, memories[-1], frame)
                columns, known = attention.norm.without_weights(torch.cat([stored, self._cut(formed)], dim=1)), []
            with torch.no_grad():
                known = [attention.novelty_of(columns), *known]
            carried = torch.cat([before, carried], dim=1)
            times = self._times_of(position, carried.detach(), frame)
            memory = Memory(stored, formed, blocks, ring.usage, carried, columns, _joined(known), times)
            if ranked:
                memory = memory._replace(usage=self._used(number, position, normed, memory, frame))
            memories.append(memory)
        return memories

    def _novelty_losses(self, passes: list[LayerPass]) -> dict[str, Tensor]:
        """Return what the measures of novelty learn from: all steps of the window, as the layer sees them."""
        losses = {}
        for number, (_, (raw, *_), _) in enumerate(passes):
            measure = self.novelty_of(number)
            if measure is not None and raw.novelty is not None:
                losses[f"layer{number}/novelty"] = measure.loss(raw.novelty[:, raw.stored.shape[1] :])
        return losses

    def _compress(self, number: int, position: int, below: Memory, frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
        """Return the blocks [B, E, m, D] that leave the tier below in the window, what they become and hand on."""
        compressor, pick, attention = self._compressor(number, position), frame.picks[position], None
        blocks = take(self._cut(below.slots()), pick.source).masked_fill_(pick.not_formed, 0)
        if compressor.uses_attention():
            received = take(below.usage[:, :, None], pick.source).masked_fill_(pick.not_formed, 0).flatten(0, 1)
            held = frame.plan.window.tiers[position - 1].rhythm.life(torch.arange(blocks.shape[2]))
            attention = received[:, :, 0] / held.to(received.device)
        flat, novelty = blocks.flatten(0, 1), None
        if compressor.uses_novelty() and below.novelty is not None:
            novelty = take(below.novelty.detach()[:, :, None], pick.source).flatten(0, 1)[:, :, 0]
        usage = usage_of(compressor, attention, novelty)
        formed = compressor(flat, usage).unflatten(0, blocks.shape[:2])
        facts = take(below.carried, pick.source).masked_fill(pick.not_formed, 0).flatten(0, 1)  # [B E, m, F + 1]
        if self.clock is not None:
            facts = facts + to_new_centre(frame.plan.window.tiers[position].rhythm, facts.shape[2]).to(facts)
        with_fixed = flat.detach(), None if usage is None else usage.detach()
        return blocks, formed, compressor.carry(facts, *with_fixed).unflatten(0, blocks.shape[:2])

    def _times_of(self, position: int, carried: Tensor, frame: Frame) -> Tensor | None:
        """Return [B, C, CLOCK_FEATURES] the time of what each slot of a tier holds."""
        if position == 0 or self.clock is None:
            return frame.plan.times
        tier = frame.plan.window.tiers[position]
        times: Tensor = self.clock(tier.rhythm.centre(tier.columns.number), self.dtype, carried[:, :, -1])
        return times

    @torch.no_grad()
    def _used(self, number: int, position: int, normed: Tensor, memory: Memory, frame: Frame) -> Tensor:
        """Return [B, C] the attention that a tier's slots have received when they leave it, or the window ends.

        See `MostUsedCompressor`. `memory.usage` is still the ring of the state.
        """
        tiers, length, pick = self.tiers[number], normed.shape[1], frame.picks[position]
        attention = cast(MemoryLayer, self.layers[number]).attention
        band = tier_band(tiers, frame.band, position, length)
        own = None if frame.plan.times is None else frame.plan.times[:, tiers[0].slots :]
        times = _joined([own, memory.times])
        novelty = None if memory.novelty is None else F.pad(memory.novelty, (length, 0))
        decay = memory.carried[:, :, : self.forgetting_heads]
        known = ColumnFacts(F.pad(decay, (0, 0, length, 0)), novelty, times)
        columns_normed = torch.cat([memory.normed, normed], dim=1) if position == 0 else memory.normed
        weights = attention(normed, columns_normed, 0, known, band.band).weights
        seen = visible(frame.plan.window, lay_out(tiers, length, normed.device))[..., band.part]
        shares = torch.where(seen, weights.mean(dim=0), 0).sum(dim=2).flatten(1)  # [B, N W]
        received = shares.new_zeros(len(shares), length + memory.columns())
        received.index_add_(1, band.band.columns.flatten(), shares)
        before = take(memory.usage[:, :, None], pick.stored).masked_fill_(pick.not_stored, 0)[:, :, 0]
        return received[:, length:] + F.pad(before, (0, memory.formed.shape[1]))

    def _cut(self, slots: Tensor) -> Tensor:
        """Keep the compressors' graph only if the task loss trains them."""
        return slots if self.trained_by_task else slots.detach()

    def _compressions(self, passes: list[LayerPass]) -> Iterator[tuple[str, tuple[MemoryAttention, Compression]]]:
        """Go through all that was compressed in a window, by layer and tier."""
        for number, (frame, memories, attended) in enumerate(passes):
            attention = cast(MemoryLayer, self.layers[number]).attention
            columns = attended.keys_values().split([memory.columns() for memory in memories], dim=1)
            for position in range(1, len(memories)):
                memory, pick = memories[position], frame.picks[position]
                old, formed = take(columns[position - 1], pick.source), ~pick.not_formed[:, :, 0, 0]
                decoder = cast(nn.ModuleList, self.decoders[number])[position - 1] if len(self.decoders) else None
                asked = frame.plan.asked[position - 1]
                compression = Compression(attended.queries, old, memory.blocks, memory.formed, formed, asked, decoder)
                yield f"layer{number}/tier{position}", (attention, compression)

    def _attention_statistics(self, passes: list[LayerPass]) -> dict[str, Tensor]:
        """Return the share of attention per tier and the mean attended age in steps, over all heads and steps."""
        statistics: dict[str, Tensor] = {}
        for number, ((plan, band, _), _, attended) in enumerate(passes):
            length = plan.window.length
            layout = lay_out(self.tiers[number], length, plan.window.clock.device)
            weights = band.join(attended.weights.mean(dim=0), length)  # [B, T, W]
            for position, share in enumerate(weights.split(layout.widths, dim=2)):
                statistics[f"attention_mass/layer{number}/tier{position}"] = share.sum(dim=2).mean()
            age = band.join(ages(plan.window, layout), length)
            statistics[f"attended_age/layer{number}"] = (weights * age).sum(dim=2).mean()
        return statistics


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """Join what is known of each tier's columns, [B, C]; None where it is not known."""
    known = [part for part in parts if part is not None]
    return torch.cat(known, dim=1) if known else None


def _check_heads(heads: int, width: int) -> None:
    if width % heads:
        fitting = [count for count in range(1, width + 1) if width % count == 0]
        nearest = [max(count for count in fitting if count < heads), *(count for count in fitting if count > heads)][:2]
        raise ValueError(
            f"heads must divide width, got heads = {heads} and width = {width}; use heads = "
            f"{' or '.join(map(str, nearest))}"
        )


def _feedforward_size(layer: type[MemoryLayer], asked: int | None, width: int) -> int:
    """Return the hidden units of the feed-forward part; a ValueError where there is no such part."""
    if asked is not None and not layer.has_feedforward:
        raise ValueError(
            f"residual='plain' has no feed-forward part, got feedforward = {asked}; use residual='pre_norm' or "
            "'gated', or leave feedforward at None"
        )
    require_positive(feedforward=2 * width if asked is None else asked)
    return 2 * width if asked is None else asked


def _check_learning(
    reconstruction: str, compression_gradient: str, layers: list[Tiers], parameters: list[nn.Parameter]
) -> None:
    """Raise a ValueError where the compressors of all layers' tiers can't learn what they are asked to."""
    by_task = compression_gradient == "task"
    if by_task and reconstruction != "none":
        raise ValueError(
            f"compression_gradient='task' lets the task loss alone train the compressors, but reconstruction is "
            f"{reconstruction!r}; use reconstruction='none' with it, or compression_gradient='reconstruction'"
        )
    if reconstruction != "none" and all(len(tiers) == 1 for tiers in layers):
        raise ValueError(
            f"reconstruction={reconstruction!r} needs a compressed tier, but memory has none; use "
            "reconstruction='none', or leave it at None"
        )
    if (by_task or reconstruction == "auto_encoding") and not parameters:
        asked = "compression_gradient='task'" if by_task else "reconstruction='auto_encoding'"
        instead = "compression_gradient='reconstruction'" if by_task else "reconstruction='attention_reconstruction'"
        names = ", ".join(sorted({repr(tier.compressor) for tiers in layers for tier in tiers[1:]})) or "none at all"
        raise ValueError(
            f"{asked} needs compressors with something to train, but memory has {names}; use compressor 'conv', or "
            f"{instead}"
        )


def _initialise(module: nn.Module) -> None:
    """Xavier weights and zero biases for every linear map (the torch default shrinks deep residual-free paths)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
