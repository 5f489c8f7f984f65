"""The Compressive Transformer as a memory core (Rae et al. 2020, arXiv 1911.05507).

A window goes through these stages: plan the schedule of slots; then in each layer recall the stored slots, compress the
evicted ones, attend to stored, new and compressed slots together, and write the slots back. Acting does the same in
place, one step at a time (`ctrl.compressive.layer_step`; `kv_cache` adds what a longer run of steps keeps).

There are two kinds of relative position and four ways to join attention's output to a layer's input. The defaults are
those for RL; `ctrl.presets.paper_config` chooses those of the paper.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ctrl.compressive.attention.block_mask import age_bucket, exact_ages, find_buckets, lay_out
from ctrl.compressive.attention.clock import CLOCK_FEATURES, EpisodeClock
from ctrl.compressive.attention.memory_attention import AgeAttention, MemoryAttention, check_heads
from ctrl.compressive.attention.novelty import Novelty, measures_of_novelty
from ctrl.compressive.attention.relative import RelativeAttention
from ctrl.compressive.compressors import Compressor, make_compressor
from ctrl.compressive.explain import Explained, attention_statistics, explain_layer
from ctrl.compressive.graph_step import graph_step
from ctrl.compressive.kv_cache import CompressiveActing
from ctrl.compressive.layer import RESIDUALS, MemoryLayer, feedforward_size, initialise
from ctrl.compressive.layer_step import MemoryInPlace
from ctrl.compressive.layer_window import LayerWindow
from ctrl.compressive.reconstruction import (
    RECONSTRUCTION_LOSSES,
    Compression,
    ReconstructionLoss,
    block_errors,
    check_learning,
    query_masks,
    reconstruction_error,
)
from ctrl.compressive.schedule import oldest_age, plan_window
from ctrl.compressive.tiers import MemorySpec, Tier, Tiers, tiers_by_layer
from ctrl.compressive.window import LayerPass, LayerPlan, Ring, harmless, pick_slots, window_indices
from ctrl.core import Acting, MemoryCore, PlainActing, Unrolled, choose, require_not_negative, require_positive

POSITIONS: dict[str, type[AgeAttention] | type[RelativeAttention]] = {
    "age": AgeAttention,
    "sinusoidal": RelativeAttention,
}
"""Attention classes by the name of their kind of relative position."""
LONGEST_TIME = "longest_time"
"""Name of the diagnostic that reports a window's largest step of an episode, counted from 0."""
_TRAINED_BY_TASK = {"reconstruction": False, "task": True}


class CompressiveState(NamedTuple):
    """The state of a `CompressiveCore`."""

    clock: Tensor
    """[B] int64, steps of the current episode consumed so far."""
    slots: Tensor
    """[B, S, D] slots of all layers and tiers, layer by layer, tier by tier; each tier is a ring. 0 where empty."""
    importance: Tensor
    """[B, U] the attention that slots have received so far, in the same order, only of tiers whose slots the next
    tier's compressor ranks by attention. Mostly there are none, and U = 0."""
    carried: Tensor
    """[B, S, R] numbers that compressors hand on beside content, in the same order. The first F are the logarithms of
    how much each of F forgetting heads has kept of the slot; F = 0 without forgetting. With a clock there is one more,
    R = F + 1: the time of the slot's content, in steps from the centre of the steps that the slot stands for."""


torch.serialization.add_safe_globals([CompressiveState])  # so that `torch.load` takes a saved state


class CompressiveCore(MemoryCore[CompressiveState]):
    """Compressive Transformer: attention to recent steps as they are and to older ones compressed tier by tier.

    :param input_size: I, the size of an observation embedding
    :param layers: L, number of layers
    :param width: D, features of a slot and of the output
    :param heads: H, attention heads; divides `width`
    :param memory: a list of tiers for all layers, or one list per layer; the default looks back
        64 + 8 * 8 + 8 * 64 + 8 * 512 = 4736 steps per layer
    :param feedforward: hidden units of the layers' feed-forward part; `2 * width` if None. A plain layer has no such
        part
    :param reconstruction: the loss that trains the compressors: "attention_reconstruction" (the paper's, the default
        where they have parameters), "auto_encoding" (a decoder rebuilds the evicted slots) or "none". The measure of
        novelty of "surprise" and "most_missed" learns in any case, from a loss of its own
    :param compression_gradient: "reconstruction", or "task": then the task loss trains the compressors instead, through
        the slots that are formed and attended inside a window (the paper's gradient through time), and there is no
        reconstruction loss
    :param position: "age" (a learned bias on a slot's age in steps) or "sinusoidal" (Transformer-XL's encoding of its
        distance in slots)
    :param novelty_gain: g: keys and values of a slot of novelty n are 1 + g * n times as large, in layers with a
        compressor that measures novelty; `Novelty.GAIN` = 4 if None. Unless it is 0, a quarter of four or more heads
        with positions by age begins with unusual slots, see `AgeAttention`
    :param residual: how a layer joins its attention output to its input: "plain" (a sum, no feed-forward part),
        "pre_norm" (sums, with a feed-forward part), "gated" (GTrXL's gates in place of the sums) or "post_norm" (normed
        sums, as in Transformer-XL and the paper)
    :param forgetting: if true, a quarter of the heads, but at least one of two or more, have a forget gate (Lin et al.
        2025, arXiv 2503.02130), so a step can shut out all older slots
    :param clock: if true, a quarter of the heads, but at least one, attend by the step of the episode too, and the
        outputs depend on it. The content of slots never does
    :raises ValueError: where options do not fit each other
    """

    MEMORY: MemorySpec = (Tier(64), Tier(8, rate=8), Tier(8, rate=8), Tier(8, rate=8))
    """Default of `memory`."""

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
        super().__init__(input_size, width)
        check_heads(heads, width)
        layer, attention = choose("residual", residual, RESIDUALS), choose("position", position, POSITIONS)
        feedforward = feedforward_size(residual, feedforward, width)
        self.heads = heads
        self.position = position
        self.tiers: list[Tiers] = tiers_by_layer(self.MEMORY if memory is None else memory, layers)
        self.trained_by_task = choose("compression_gradient", compression_gradient, _TRAINED_BY_TASK)
        compressors = [[make_compressor(tier.compressor, width, tier.rate) for tier in own[1:]] for own in self.tiers]
        measures = measures_of_novelty(compressors, width, novelty_gain)
        self.embed = nn.Linear(input_size, width)
        self.layers = nn.ModuleList()
        for tiers, novelty in zip(self.tiers, measures, strict=True):
            options = {"novelty": novelty, "forgetting": forgetting, "clock": clock}
            attends = attention(width, heads, layer.slot_norm(width), attention.BUCKETS.masked(tiers), **options)
            self.layers.append(layer(attends, width, feedforward))
        self.forgetting_heads = self._attention(0).forgetting_heads
        self.clock = EpisodeClock() if clock else None
        self.output_clock = nn.Linear(CLOCK_FEATURES, width, bias=False) if clock else None
        self.compressors = nn.ModuleList(map(nn.ModuleList, compressors))
        self._choose_loss(reconstruction, compression_gradient)
        self.norm = nn.Identity() if layer.ends_normed else nn.LayerNorm(width)
        self._sizes = [tier.slots for tiers in self.tiers for tier in tiers]
        ranked = [rank for layer in range(layers) for rank in self.ranks(layer)]
        self._importance_sizes = [size * rank for size, rank in zip(self._sizes, ranked, strict=True)]
        self._initialise()

    def _choose_loss(self, reconstruction: str | None, compression_gradient: str) -> None:
        """Choose the loss that trains the compressors, and make the decoders that it needs."""
        parameters = list(self.compressors.parameters())
        if reconstruction is None:
            reconstruction = "attention_reconstruction" if parameters and not self.trained_by_task else "none"
        self.reconstruction: ReconstructionLoss | None = choose("reconstruction", reconstruction, RECONSTRUCTION_LOSSES)
        check_learning(reconstruction, compression_gradient, self.tiers, parameters)
        decoding = range(len(self.layers)) if reconstruction == "auto_encoding" else ()
        self.decoders = nn.ModuleList(
            nn.ModuleList(compressor.decoder() for compressor in self.compressors_of(layer)) for layer in decoding
        )

    def _initialise(self) -> None:
        """Initialise the weights, but not those of compressors: a registered one may start in its own way."""
        initialise(self.embed)
        initialise(self.layers)
        for layer in range(len(self.layers)):
            self._attention(layer).reset_parameters()
        if self.output_clock is not None:
            nn.init.zeros_(self.output_clock.weight)

    def initial_state(self, batch_size: int) -> CompressiveState:
        """Return the empty memory: clock 0, all slots 0."""
        require_positive(batch_size=batch_size)
        clock = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        slots = torch.zeros(batch_size, sum(self._sizes), self.output_size, device=self.device, dtype=self.dtype)
        importance = torch.zeros(batch_size, sum(self._importance_sizes), device=self.device, dtype=self.dtype)
        carried = slots.new_zeros(*slots.shape[:2], self.forgetting_heads + int(self.clock is not None))
        return CompressiveState(clock, slots, importance, carried)

    def reset_state(self, state: CompressiveState, reset: Tensor) -> CompressiveState:
        """Set the clock to 0 where `reset` [B] is true: every slot is empty at clock 0, whatever it holds."""
        return state._replace(clock=torch.where(reset, 0, state.clock))

    def compression_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of novelty measures; also of compressors and decoders, unless the task trains them."""
        trained: list[nn.Module] = [] if self.trained_by_task else [self.compressors, self.decoders]
        measures = [novelty for layer in range(len(self.layers)) if (novelty := self.novelty_of(layer)) is not None]
        return [parameter for part in (*trained, *measures) for parameter in part.parameters()]

    def adapt(self, diagnostics: Mapping[str, float]) -> dict[str, float]:
        """Stop the clock at the longest episode time that training has met, and age biases at the oldest such age."""
        longest = diagnostics.get(LONGEST_TIME)
        if longest is None:
            return {}
        require_not_negative(longest_time=longest)
        if self.clock is not None:
            self.clock.settle(longest)
        for layer, tiers in enumerate(self.tiers):
            attention = self._attention(layer)
            if isinstance(attention, AgeAttention):
                oldest = torch.tensor(oldest_age(tiers, int(longest)))
                attention.settle(int(age_bucket(oldest, exact_ages(tiers))))
        return {}

    def structure(self) -> tuple[Any, ...]:
        """Return the tiers, and the options of attention and layers that no weight's shape shows."""
        gains = [
            None if (novelty := self.novelty_of(layer)) is None else novelty.gain for layer in range(len(self.layers))
        ]
        return (
            self.tiers,
            self.heads,
            self.position,
            self.forgetting_heads,
            gains,
            [type(layer) for layer in self.layers],
        )

    def check_settings(self) -> None:
        """Raise a ValueError where the longest time or the oldest age of training is negative."""
        for name, buffer in self.named_buffers():
            if not buffer.is_floating_point() and bool((buffer < 0).any()):
                raise ValueError(f"{name} must be at least 0, got {buffer.tolist()}")

    def remembered(self, state: CompressiveState) -> tuple[Tensor, ...]:
        """Return the slots alone, without importance and carried numbers."""
        return (state.slots,)

    def acting(self, state: CompressiveState) -> Acting[CompressiveState]:
        """Return an `Acting` for B envs: in place, with cached keys and values, if `acts_in_place`."""
        return CompressiveActing(self, state) if self.acts_in_place else PlainActing(self, state)

    @property
    def acts_in_place(self) -> bool:
        """True if `CompressiveActing` can act for this core; if not, each step is a window of its own."""
        return self.position == "age"

    def _step(self, inputs: Tensor, state: CompressiveState) -> tuple[Tensor, CompressiveState]:
        if torch.is_grad_enabled() or not self.acts_in_place:
            none = torch.zeros(len(inputs), 1, dtype=torch.bool, device=inputs.device)
            outputs, state, _ = self._run_window(inputs[:, None], state, self.plan(state, none))
            return outputs[:, 0], state
        memory = MemoryInPlace(self, state)  # half the time of a window of one step
        with torch.inference_mode():
            outputs = memory.step(inputs)
        return outputs.clone(), memory.state()

    def graph_step(self, inputs: Tensor, state: CompressiveState, reset: Tensor) -> tuple[Tensor, CompressiveState]:
        """Do what `step` does as a fixed graph of tensor operations, see `ctrl.compressive.graph_step`."""
        return graph_step(self, inputs, self.reset_state(state, reset))

    def ranks(self, layer: int) -> list[bool]:
        """Return, for each tier of a layer, True if its slots are ranked by the attention that they receive."""
        return [*(compressor.uses_attention() for compressor in self.compressors_of(layer)), False]

    def compressors_of(self, layer: int) -> list[Compressor]:
        """Return the compressors of a layer's tiers, from tier 1 on."""
        return list(cast("list[Compressor]", self.compressors[layer]))

    def novelty_of(self, layer: int) -> Novelty | None:
        """Return the measure of novelty of a layer; None if none of its compressors uses it."""
        return self._attention(layer).novelty

    def _attention(self, layer: int) -> MemoryAttention:
        return cast(MemoryLayer, self.layers[layer]).attention

    def plan(self, state: CompressiveState, reset: Tensor) -> dict[Tiers, LayerPlan]:
        """Plan windows that begin with `state`: the schedule of all slots, once for all layers with the same tiers."""
        plans, kind = {}, POSITIONS[self.position].BUCKETS
        for tiers in dict.fromkeys(self.tiers):
            window = plan_window(tiers, state.clock, reset)
            buckets = find_buckets(tiers, window, lay_out(tiers, window.length, reset.device), kind)
            times = end = None
            if self.clock is not None:
                times = self.clock(window.tiers[0].slot, self.dtype)
                end = self.clock.end.repeat(len(reset))
            plans[tiers] = LayerPlan(window, buckets, times, end, query_masks(window))
        return plans

    def check_plan(self, plan: dict[Tiers, LayerPlan], reset: Tensor) -> None:
        """Raise a ValueError unless `plan` has this core's tiers, exactly these resets and the clock's present end."""
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
        if self.clock is not None or self.position == "age":  # else `adapt` has no use for it
            diagnostics[LONGEST_TIME] = plan[self.tiers[0]].window.time.max().to(self.dtype)
        if diagnose:
            with torch.no_grad():
                for place, compressed in self._compressions(passes):
                    if bool(compressed[1].query_mask.any()):  # without queries it would be 0, as if lossless
                        diagnostics[f"reconstruction_error/{place}"] = reconstruction_error(*compressed)
                diagnostics.update(attention_statistics(self.tiers, passes))
        return Unrolled(outputs, state, total, diagnostics)

    @torch.no_grad()
    def explain(self, inputs: Tensor, state: CompressiveState, reset: Tensor) -> Explained:
        """Report the attention of each step of a window, and the reconstruction error of each compressed block.

        :param inputs: [B, T, I], and the other arguments as for `unroll`
        :return: attention by layer, head and tier with the age of each slot, and the reconstruction error by block
        :raises ValueError: as `unroll`
        """
        self.check_inputs(inputs, reset, tuple(inputs.shape[:2]))
        self.check_state(state, inputs.shape[0])
        outputs, after, passes = self._run_window(inputs, state, self.plan(state, reset))
        errors = {place: block_errors(*compressed) for place, compressed in self._compressions(passes)}
        none = outputs.new_zeros(len(inputs), 0)  # tier 0 forms no blocks
        layers = []
        for layer, (tiers, (indices, _, attended)) in enumerate(zip(self.tiers, passes, strict=True)):
            by_tier = [errors.get(f"layer{layer}/tier{tier}", none) for tier in range(len(tiers))]
            layout = lay_out(tiers, inputs.shape[1], inputs.device)
            layers.append(explain_layer(indices.schedule, layout, attended.weights, by_tier))
        return Explained(outputs, layers, after)

    def _run_window(
        self, inputs: Tensor, state: CompressiveState, plans: dict[Tiers, LayerPlan]
    ) -> tuple[Tensor, CompressiveState, list[LayerPass]]:
        """Take a window's way: embed, run through the layers, normalise, and join the memory to the next state."""
        indices = {tiers: window_indices(tiers, plan) for tiers, plan in plans.items()}
        rings, passes, kept = self._rings(state), list[LayerPass](), list[Ring]()
        hidden = self.embed(inputs)  # [B, T, D]
        for layer, tiers in enumerate(self.tiers):
            hidden, passed, after = LayerWindow(self, layer, indices[tiers]).run(hidden, rings[layer])  # [B, T, D]
            passes.append(passed)
            kept += after
        outputs = self.norm(hidden)  # [B, T, D]
        tiers = self.tiers[0]
        schedule, times = plans[tiers].window, plans[tiers].times
        if self.output_clock is not None and times is not None:
            outputs = outputs + self.output_clock(times[:, tiers[0].slots :])  # of the window's own steps
        leaves = (torch.cat(parts, dim=1) for parts in zip(*kept, strict=True))  # [B, S, ..] each
        return outputs, CompressiveState(schedule.clock, *leaves), passes

    def _rings(self, state: CompressiveState) -> list[list[Ring]]:
        """Split a state into its rings, by layer and tier."""
        slots = iter(state.slots.detach().split(self._sizes, dim=1))
        importance = iter(state.importance.detach().split(self._importance_sizes, dim=1))
        carried = iter(harmless(state.carried).split(self._sizes, dim=1))
        return [[Ring(next(slots), next(importance), next(carried)) for _ in tiers] for tiers in self.tiers]

    def _novelty_losses(self, passes: list[LayerPass]) -> dict[str, Tensor]:
        """Return the losses of the measures of novelty, over the layers' inputs at all steps of the window."""
        losses = {}
        for layer, (_, (raw, *_), _) in enumerate(passes):
            measure = self.novelty_of(layer)
            if measure is not None and raw.novelty is not None:
                losses[f"layer{layer}/novelty"] = measure.loss(raw.novelty[:, raw.stored.shape[1] :])
        return losses

    def cut_graph(self, slots: Tensor) -> Tensor:
        """Keep the compressors' graph only if the task loss trains them."""
        return slots if self.trained_by_task else slots.detach()

    def _compressions(self, passes: list[LayerPass]) -> Iterator[tuple[str, tuple[MemoryAttention, Compression]]]:
        """Yield all compressions of a window with their names, by layer and tier."""
        for layer, (indices, memories, attended) in enumerate(passes):
            with torch.no_grad():
                columns = attended.keys_values.joined().split([memory.columns() for memory in memories], dim=1)
            for tier in range(1, len(memories)):
                memory, gather = memories[tier], indices.blocks[tier]
                compression = Compression(
                    attended.queries,
                    old=pick_slots(columns[tier - 1], gather.at),
                    blocks=memory.blocks,
                    new=memory.formed,
                    formed=~gather.missing[:, :, 0, 0],
                    query_mask=indices.query_masks[tier - 1],
                    decoder=cast(nn.ModuleList, self.decoders[layer])[tier - 1] if len(self.decoders) else None,
                )
                yield f"layer{layer}/tier{tier}", (self._attention(layer), compression)
