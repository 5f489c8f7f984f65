"""The Compressive Transformer as a memory core (Rae et al. 2020, arXiv 1911.05507).

The story of a window: plan the timeline, then layer by layer recall the stored slots, compress what is evicted,
attend to stored, new and compressed slots together, and write the slots back. Acting does the same in place, one step
at a time (`ctrl.acting`).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ctrl.acting import CompressiveActing
from ctrl.band import Band, ages, band_rows, lay_out
from ctrl.compressors import make_compressor
from ctrl.core import MemoryCore, Unrolled, choose, require_positive
from ctrl.layer import Attended, MemoryLayer
from ctrl.memory import MemorySpec, Tier, Tiers, reach, tiers_by_layer
from ctrl.reconstruction import RECONSTRUCTION_LOSSES, Compression, questions
from ctrl.timeline import TierPlan, WindowPlan, plan_window


class CompressiveState(NamedTuple):
    """The state of a `CompressiveCore`."""

    clock: Tensor
    """[B] int64, steps of the current episode consumed so far."""
    slots: Tensor
    """[B, S, D] all slots of all layers and tiers, layer by layer, tier by tier, each tier a ring; 0 where empty."""


class CompressiveCore(MemoryCore[CompressiveState]):
    """Attention over recent steps as they are, and over older ones compressed tier by tier.

    :param input_size: I, the size of an observation embedding
    :param layers: L
    :param width: D, features of a slot and of the output
    :param heads: H, attention heads; divides `width`
    :param memory: a list of tiers for all layers, or one list per layer; the default looks back
        32 + 32 * 4 = 160 steps per layer
    :param feedforward: features of the layers' hidden feed-forward units; `2 * width` if None
    :param reconstruction: "attention_reconstruction" (the paper's loss) or "none"
    :raises ValueError: where options do not fit each other
    """

    def __init__(
        self,
        input_size: int,
        *,
        layers: int = 2,
        width: int = 64,
        heads: int = 4,
        memory: MemorySpec = (Tier(32), Tier(32, rate=4)),
        feedforward: int | None = None,
        reconstruction: str = "attention_reconstruction",
    ) -> None:
        require_positive(width=width, layers=layers, heads=heads)
        feedforward = 2 * width if feedforward is None else feedforward
        require_positive(feedforward=feedforward)
        super().__init__(input_size, width)
        if width % heads:
            raise ValueError(f"heads must divide width, got heads = {heads} and width = {width}")
        self.heads = heads
        self.tiers: list[Tiers] = tiers_by_layer(memory, layers)
        self.reconstruction = choose("reconstruction", reconstruction, RECONSTRUCTION_LOSSES)
        self.embed = nn.Linear(input_size, width)
        self.layers = nn.ModuleList(MemoryLayer(width, heads, feedforward, reach(tiers)) for tiers in self.tiers)
        self.compressors = nn.ModuleList(
            nn.ModuleList(make_compressor(tier.compressor, width, tier.rate) for tier in tiers[1:])
            for tiers in self.tiers
        )
        self.norm = nn.LayerNorm(width)
        self._sizes = [tier.slots for tiers in self.tiers for tier in tiers]
        _initialise(self.embed)
        _initialise(self.layers)  # not the compressors: a registered one may start in a way of its own

    def initial_state(self, batch_size: int) -> CompressiveState:
        """Return the empty memory: clock 0, all slots 0."""
        require_positive(batch_size=batch_size)
        clock = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        slots = torch.zeros(batch_size, sum(self._sizes), self.output_size, device=self.device, dtype=self.dtype)
        return CompressiveState(clock, slots)

    def reset_state(self, state: CompressiveState, reset: Tensor) -> CompressiveState:
        """Set the clock to 0 where `reset` [B] is true: every slot is empty at clock 0, whatever it holds."""
        return state._replace(clock=torch.where(reset, 0, state.clock))

    def compression_parameters(self) -> list[nn.Parameter]:
        """Return the compressors' parameters."""
        return list(self.compressors.parameters())

    def acting(self, state: CompressiveState) -> CompressiveActing:
        """Return what keeps the state in place, with projected keys and values, while B envs act."""
        return CompressiveActing(self, state)

    def _step(self, inputs: Tensor, state: CompressiveState) -> tuple[Tensor, CompressiveState]:
        none = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
        if torch.is_grad_enabled():
            outputs, state, _ = self._run_window(inputs[:, None], state, self.plan(state, none[:, None]))
            return outputs[:, 0], state
        acting = CompressiveActing(self, state)
        return acting.step(inputs, none), acting.state()

    def _compressor(self, number: int, position: int) -> nn.Module:
        """Return what forms the slots of a layer's tier, 1 being the first that is compressed."""
        return cast(nn.ModuleList, self.compressors[number])[position - 1]

    def plan(self, state: CompressiveState, reset: Tensor) -> dict[Tiers, LayerPlan]:
        """Work out when which slot exists in windows that begin with `state`, for all layers with the same tiers."""
        plans = {}
        for tiers in dict.fromkeys(self.tiers):
            window = plan_window(tiers, state.clock, reset)
            layout = lay_out(tiers, window.length, window.clock.device)
            plans[tiers] = LayerPlan(window, band_rows(tiers, window, layout), questions(window))
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

    def _unroll(
        self,
        inputs: Tensor,
        state: CompressiveState,
        reset: Tensor,
        plan: dict[Tiers, LayerPlan],
        diagnose: bool,
    ) -> Unrolled:
        outputs, state, passes = self._run_window(inputs, state, plan)
        losses = self._reconstruction_losses(passes)
        total = torch.stack(list(losses.values())).sum() if losses else outputs.new_zeros(())
        diagnostics = {f"reconstruction_loss/{place}": loss.detach() for place, loss in losses.items()}
        if diagnose:
            diagnostics.update(self._attention_statistics(passes))
        return Unrolled(outputs, state, total, diagnostics)

    def _run_window(
        self, inputs: Tensor, state: CompressiveState, plans: dict[Tiers, LayerPlan]
    ) -> tuple[Tensor, CompressiveState, list[_LayerPass]]:
        bands = {tiers: _band(tiers, plan) for tiers, plan in plans.items()}
        picks = {tiers: _picks(plan.window.tiers) for tiers, plan in plans.items()}
        rings = iter(state.slots.detach().split(self._sizes, dim=1))
        hidden = self.embed(inputs)  # [B, T, D]
        passes: list[_LayerPass] = []
        kept: list[Tensor] = []
        for number, tiers in enumerate(self.tiers):
            plan = plans[tiers]
            memories = self._recall(number, hidden.detach(), [next(rings) for _ in tiers], picks[tiers])
            kept += [memory.write_back(pick) for memory, pick in zip(memories, picks[tiers], strict=True)]
            own = slice(tiers[0].slots, tiers[0].slots + hidden.shape[1])
            hidden, attended = self.layers[number](hidden, _attendable(hidden, memories), own, bands[tiers])
            passes.append(_LayerPass(plan, bands[tiers], picks[tiers], memories, attended))
        clock = passes[0].plan.window.clock
        return self.norm(hidden), CompressiveState(clock, torch.cat(kept, dim=1)), passes

    def _recall(self, number: int, hidden: Tensor, rings: list[Tensor], picks: list[_Pick]) -> list[_Memory]:
        """Collect, tier by tier, every slot of a layer that exists at some time of the window."""
        memories: list[_Memory] = []
        for position, (ring, pick) in enumerate(zip(rings, picks, strict=True)):
            stored = _take(ring, pick.stored).masked_fill_(pick.not_stored, 0)
            if position == 0:
                memories.append(_Memory(stored, hidden))
                continue
            blocks = _take(memories[-1].slots(), pick.source).masked_fill_(pick.not_formed, 0)  # [B, E, m, D]
            formed = self._compressor(number, position)(blocks.flatten(0, 1)).unflatten(0, blocks.shape[:2])
            memories.append(_Memory(stored, formed))
        return memories

    def _reconstruction_losses(self, passes: list[_LayerPass]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for number, (plan, _, picks, memories, attended) in enumerate(passes):
            columns = attended.keys_values.detach().split([memory.columns() for memory in memories], dim=1)
            for position in range(1, len(memories)):
                old = _take(columns[position - 1], picks[position].source)
                new, asked = memories[position].formed, plan.asked[position - 1]
                compression = Compression(attended.queries, old, new, asked)
                loss = self.reconstruction(self.layers[number].attention, compression)
                losses[f"layer{number}/tier{position}"] = loss
        return losses

    def _attention_statistics(self, passes: list[_LayerPass]) -> dict[str, Tensor]:
        """Return the share of attention per tier and the mean attended age in steps, over all heads and steps."""
        statistics: dict[str, Tensor] = {}
        for number, (plan, band, _, _, attended) in enumerate(passes):
            length = plan.window.length
            layout = lay_out(self.tiers[number], length, plan.window.clock.device)
            weights = band.join(attended.weights.mean(dim=0), length)  # [B, T, W]
            for position, share in enumerate(weights.split(layout.widths, dim=2)):
                statistics[f"attention_mass/layer{number}/tier{position}"] = share.sum(dim=2).mean()
            age = band.join(ages(plan.window, layout), length)
            statistics[f"attended_age/layer{number}"] = (weights * age).sum(dim=2).mean()
        return statistics


class LayerPlan(NamedTuple):
    """What is known of windows before their layers run, for layers with the same tiers."""

    window: WindowPlan
    row: Tensor
    """[B, N, Q, W] int16, see `Band`."""
    asked: list[Tensor]
    """By tier from 1 on, what the reconstruction loss compares; see `questions`."""


class _Memory(NamedTuple):
    """One tier's slots during a window, C = n + E columns."""

    stored: Tensor  # [B, n, D] from the state, oldest first; 0 where there is none
    formed: Tensor  # [B, E, D] formed in the window; a tier above 0 has the compressor's graph here

    def columns(self) -> int:
        return self.stored.shape[1] + self.formed.shape[1]

    def slots(self) -> Tensor:
        """[B, C, D], without a graph."""
        return torch.cat([self.stored, self.formed.detach()], dim=1)

    def write_back(self, pick: _Pick) -> Tensor:
        """Return the tier's ring [B, n, D] after the window."""
        return _take(self.slots(), pick.ring).masked_fill_(pick.not_kept, 0)


class _LayerPass(NamedTuple):
    """What happened in one layer during a window."""

    plan: LayerPlan
    band: Band
    picks: list[_Pick]
    memories: list[_Memory]
    attended: Attended


def _band(tiers: Tiers, plan: LayerPlan) -> Band:
    return Band(lay_out(tiers, plan.window.length, plan.row.device).columns, plan.row.long())


def _attendable(hidden: Tensor, memories: list[_Memory]) -> Tensor:
    """Join all columns [B, C, D]; only the window's own steps carry a graph."""
    raw, *compressed = memories
    return torch.cat([raw.stored, hidden, *(memory.slots() for memory in compressed)], dim=1)


class _Pick(NamedTuple):
    """Where the slots of a tier are taken from, numbered through all envs; the same for layers with the same tiers."""

    stored: Tensor  # [B, n] of the state's rings
    source: Tensor  # [B, E, m] of the columns of the tier below
    ring: Tensor  # [B, n] of the tier's columns
    not_stored: Tensor  # [B, n, 1] bool, likewise the others: what is taken there does not exist
    not_formed: Tensor  # [B, E, 1, 1]
    not_kept: Tensor  # [B, n, 1]


def _picks(tiers: list[TierPlan]) -> list[_Pick]:
    picks = []
    below = tiers[0].columns.exists
    for tier in tiers:
        slots, exists = tier.rhythm.slots, tier.columns.exists
        envs = torch.arange(len(exists), device=exists.device)[:, None]
        missing = ~exists[:, :, None]
        picks.append(
            _Pick(
                tier.stored + envs * slots,
                tier.source + envs[:, :, None] * below.shape[1],
                tier.ring + envs * exists.shape[1],
                missing[:, :slots],
                missing[:, slots:, None],
                ~tier.kept[:, :, None],
            )
        )
        below = exists
    return picks


def _take(slots: Tensor, index: Tensor) -> Tensor:
    """Pick slots: [B, S, F] at [B, ...], numbered through all envs -> [B, ..., F]."""
    features = slots.shape[2]
    picked: Tensor = slots.reshape(-1, features).index_select(0, index.flatten()).view(*index.shape, features)
    return picked


def _initialise(module: nn.Module) -> None:
    """Xavier weights and zero biases for every linear map (the torch default shrinks deep residual-free paths)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def transformer_xl(
    input_size: int,
    *,
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    slots: int = 64,
    feedforward: int | None = None,
) -> CompressiveCore:
    """Build a Transformer-XL: the compressive core with raw memory only.

    :param slots: how many steps each layer looks back; the other options are those of `CompressiveCore`
    """
    memory = [Tier(slots)]
    return CompressiveCore(input_size, layers=layers, width=width, heads=heads, memory=memory, feedforward=feedforward)
