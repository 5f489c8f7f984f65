"""Rates that layers choose for themselves, by how much their own compression loses.

A layer whose attention output from compressed slots is nearly that from the evicted slots can afford a higher rate, and
so a longer reach with the same slots. A layer that loses much needs a lower rate. Between two rollouts each layer's
first compressed tier may move to its next higher or lower choice: half, once or twice the rate that it was built with.
It moves up when a running mean of its reconstruction error falls below `LOW`, and down when it rises above `HIGH`. The
paper leaves rates that differ by layer open (section 6); this rule is not from the paper.

The state's shape does not change: it holds as many slots as before, which stand for other spans. It records the rates
with which it was written, and a core with other rates reads it by `resample`. So all laws hold at all times, and states
may be kept over a change.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ctrl.compressive.compressors import Compressor, make_compressor
from ctrl.compressive.core import CompressiveCore, CompressiveState
from ctrl.compressive.kv_cache import CompressiveActing, ranked_parts
from ctrl.compressive.schedule import EMPTY, ring_centres
from ctrl.compressive.tiers import Tier, Tiers
from ctrl.compressive.window import LayerPass, LayerPlan
from ctrl.core import Acting, PlainActing

LOW, HIGH = 0.1, 0.3
"""Reconstruction errors, as a share of the attention output, between which a rate stays as it is."""
START = (LOW + HIGH) / 2
"""Initial value of the running mean, also after a change of the rate."""
DECAY = 0.9
"""Share of the running mean that each update keeps."""


def rate_choices(tiers: Tiers) -> tuple[int, ...]:
    """Return the rates that a layer's first compressed tier may have, ascending; none if it has no such tier."""
    if len(tiers) == 1:
        return ()
    rate = tiers[1].rate
    return tuple(choice for choice in (rate // 2, rate, 2 * rate) if 1 <= choice <= tiers[0].slots)


def with_rate(tiers: Tiers, rate: int) -> Tiers:
    """Return the tiers with another rate for the first compressed one."""
    return (tiers[0], replace(tiers[1], rate=rate), *tiers[2:])


def next_rate(rate: int, error: float, choices: Sequence[int]) -> int:
    """Return the next rate for a running mean of a layer's reconstruction error."""
    at = choices.index(rate)
    if error < LOW:
        return choices[min(at + 1, len(choices) - 1)]
    return choices[max(at - 1, 0)] if error > HIGH else rate


def resample(old: Tiers, new: Tiers, clock: Tensor, slots: Tensor, shift: int | None = None) -> Tensor:
    """Convert a layer's slots that were written with the tiers `old` to the tiers `new`.

    Each new slot becomes a copy of the old one with the closest centre; dropped content can't come back.

    :param clock: [B] steps of the current episode consumed so far
    :param slots: [B, S, D]
    :param shift: index of the feature that is a number of steps from a slot's own centre, if any
    :return: [B, S, D], 0 where there is none
    """
    written, wanted = ring_centres(old, clock), ring_centres(new, clock)
    closest = (wanted[:, :, None] - written[:, None]).abs().argmin(dim=2, keepdim=True)
    copied = slots.gather(1, closest.expand(-1, -1, slots.shape[2]))
    if shift is not None:
        copied[:, :, shift] += written.gather(1, closest[:, :, 0]) - wanted
        copied[:, : new[0].slots, shift] = 0  # the time of a tier-0 slot is its own step, whatever it is a copy of
    return torch.where(wanted[:, :, None] != EMPTY, copied, 0)


class CompressorOfRates(Compressor):
    """A compressor for each of several rates; the size of the blocks selects it."""

    def __init__(self, name: str, width: int, rates: Sequence[int]) -> None:
        super().__init__(width, max(rates))
        self.by_rate = nn.ModuleDict({str(rate): make_compressor(name, width, rate) for rate in rates})

    def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """[N, m, D] -> [N, D]."""
        slots: Tensor = self.by_rate[str(blocks.shape[1])](blocks, importance)
        return slots

    def carry(self, facts: Tensor, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
        """Hand on carried numbers by the compressor of the blocks' rate."""
        carried: Tensor = cast(Compressor, self.by_rate[str(blocks.shape[1])]).carry(facts, blocks, importance)
        return carried

    def uses_attention(self) -> bool:
        """Return True if the compressor of any rate does."""
        return any(cast(Compressor, compressor).uses_attention() for compressor in self.by_rate.values())

    def uses_novelty(self) -> bool:
        """Return True if the compressor of any rate does."""
        return any(cast(Compressor, compressor).uses_novelty() for compressor in self.by_rate.values())


class AdaptiveState(NamedTuple):
    """The state of an `AdaptiveCore`: that of a `CompressiveCore`, and the rates with which it was written."""

    clock: Tensor
    """[B] int64, as in `CompressiveState`."""
    slots: Tensor
    """[B, S, D], as in `CompressiveState`."""
    importance: Tensor
    """[B, U], as in `CompressiveState`."""
    carried: Tensor
    """[B, S, F + 1], as in `CompressiveState`."""
    rates: Tensor
    """[B, L] int64, of each layer's first compressed tier; 1 where a layer has none."""


class AdaptiveCore(CompressiveCore):
    """A `CompressiveCore`, with the same options, whose layers choose the rate of their first compressed tier.

    The default of `memory` is another one, `MEMORY`: a `CompressiveCore`'s has the highest rate that its tier 0 allows,
    and such a rate can only fall. Call `adapt` with the diagnostics of an unroll between two rollouts; `MemoryPPO` does
    so. Each choice of a rate has a compressor of its own. A decoder is made for one rate, so
    `reconstruction="auto_encoding"` is refused.
    """

    MEMORY = (Tier(32), Tier(32, rate=4, compressor="conv"))
    """Default of `memory`: the rate may rise to 8 and fall to 2, and a compressor that mixes loses little."""

    __signature__ = inspect.signature(CompressiveCore)

    rates: Tensor
    """[L] the present rates; a buffer, so they are saved and loaded with the weights."""
    errors: Tensor
    """[L] running means of the reconstruction errors; a buffer, too."""

    def __init__(self, input_size: int, **options: Any) -> None:
        if options.get("reconstruction") == "auto_encoding":
            raise ValueError(
                "reconstruction='auto_encoding' does not fit core 'adaptive', since a decoder is made for one rate; "
                "use 'attention_reconstruction' or 'none', or core 'compressive'"
            )
        self._choices: list[tuple[int, ...]] = []
        self._masked_bucket = 0
        super().__init__(input_size, **options)
        _check_choices(self._choices)
        self.register_buffer("rates", torch.tensor([_rate(tiers) for tiers in self.tiers]))
        self.register_buffer("errors", torch.full((len(self.tiers),), START))

    def masked_bucket(self, tiers: Tiers) -> int:
        """Return the same masked bucket for all layers, beyond the furthest reach that any of them may choose."""
        if not self._choices:
            self._choices = [rate_choices(own) for own in self.tiers]
            widest = [
                with_rate(own, rates[-1]) if rates else own
                for own, rates in zip(self.tiers, self._choices, strict=True)
            ]
            self._masked_bucket = max(super(AdaptiveCore, self).masked_bucket(own) for own in widest)
        return self._masked_bucket

    def initial_state(self, batch_size: int) -> Any:
        """Return the empty memory, written with the present rates."""
        return self._with_rates(super().initial_state(batch_size))

    def check_state(self, state: Any, batch_size: int) -> None:
        """Raise a ValueError as for any core, and where the state was written with a rate that no layer can choose."""
        super().check_state(state, batch_size)
        for number, choices in enumerate(self._choices):
            found = set(state.rates[:, number].tolist())
            if found - set(choices or (1,)):
                raise ValueError(f"state.rates of layer {number} must be of {choices or (1,)}, got {sorted(found)}")

    def acting(self, state: Any) -> Acting[Any]:
        """Return an `Acting`, which keeps the state while B envs act."""
        return AdaptiveActing(self, state) if self.acts_in_place else PlainActing(self, state)

    def adapt(self, diagnostics: Mapping[str, float]) -> dict[str, float]:
        """Settle clock and age biases, and let each layer change its rate by its error; return the rates by layer."""
        super().adapt(diagnostics)
        for number, choices in enumerate(self._choices):
            error = diagnostics.get(f"reconstruction_error/layer{number}/tier1")
            if not choices or error is None:
                continue
            mean = DECAY * float(self.errors[number]) + (1 - DECAY) * float(error)
            rate = next_rate(int(self.rates[number]), mean, choices)
            self.errors[number] = mean if rate == int(self.rates[number]) else START
            self.rates[number] = rate
        self._follow_rates()
        return {
            f"rate/layer{number}": float(self.rates[number]) for number, choices in enumerate(self._choices) if choices
        }

    def idle_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of compressors for other rates than the present ones."""
        idle: list[nn.Parameter] = []
        for tiers, compressors in zip(self.tiers, self.compressors, strict=True):
            for compressor in cast(nn.ModuleList, compressors):
                if isinstance(compressor, CompressorOfRates):
                    others = [part for rate, part in compressor.by_rate.items() if rate != str(_rate(tiers))]
                    idle += [parameter for part in others for parameter in part.parameters()]
        return idle

    def now(self, state: Any) -> CompressiveState:
        """Convert a state to the present rates."""
        if torch.equal(state.rates, self._present_rates(len(state.rates))):
            return CompressiveState(*state[:4])
        layers, importances = [], []
        sizes = [sum(tier.slots for tier in tiers) for tiers in self.tiers]
        everything = torch.cat([state.slots, state.carried], dim=2)
        importance, used = state.importance, 0
        for number, (tiers, part) in enumerate(zip(self.tiers, everything.split(sizes, dim=1), strict=True)):
            ranked = ranked_parts(tiers, self.ranks(number))
            features = torch.cat([part, part.new_zeros(*part.shape[:2], 1)], dim=2)
            for where in ranked:
                size = where.stop - where.start
                features[:, where, -1] = importance[:, used : used + size]
                used += size
            features = self._layer_now(number, state, features)
            layers.append(features[:, :, :-1])
            importances += [features[:, where, -1] for where in ranked]
        joined = torch.cat(layers, dim=1)
        slots, carried = joined.split([self.output_size, self._carried], dim=2)
        importances = [slots.new_zeros(len(slots), 0), *importances]
        return CompressiveState(state.clock, slots, torch.cat(importances, dim=1), carried)

    def _layer_now(self, number: int, state: Any, features: Tensor) -> Tensor:
        tiers, written = self.tiers[number], state.rates[:, number]
        for rate in set(written.tolist()) - {_rate(tiers)}:
            shift = None if self.clock is None else features.shape[2] - 2  # the last one is importance
            read = resample(with_rate(tiers, rate), tiers, state.clock, features, shift)
            features = torch.where((written == rate)[:, None, None], read, features)
        return features

    def _make_compressor(self, tiers: Tiers, tier: int) -> Compressor:
        if tier == 1:
            return CompressorOfRates(tiers[1].compressor, self.output_size, rate_choices(tiers))
        return super()._make_compressor(tiers, tier)

    def _with_rates(self, state: CompressiveState) -> AdaptiveState:
        return AdaptiveState(*state, self._present_rates(len(state.clock)))

    def _present_rates(self, batch_size: int) -> Tensor:
        """Return the present rates for each env, [B, L]."""
        return torch.tensor([[_rate(tiers) for tiers in self.tiers]], device=self.device).repeat(batch_size, 1)

    def _run_window(
        self, inputs: Tensor, state: Any, plans: dict[Tiers, LayerPlan]
    ) -> tuple[Tensor, Any, list[LayerPass]]:
        outputs, after, passes = super()._run_window(inputs, self.now(state), plans)
        return outputs, self._with_rates(after), passes

    def _follow_rates(self) -> None:
        self.tiers = [
            with_rate(tiers, int(rate)) if choices else tiers
            for tiers, rate, choices in zip(self.tiers, self.rates, self._choices, strict=True)
        ]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._follow_rates()


def _check_choices(by_layer: list[tuple[int, ...]]) -> None:
    """Raise a ValueError where no layer has two rates to choose from."""
    if all(len(choices) < 2 for choices in by_layer):
        raise ValueError(
            "memory must give a layer of core 'adaptive' two rates to choose from: half, once and twice that of its "
            f"first compressed tier, up to the slots of tier 0; got {by_layer} by layer; use core 'compressive', or "
            "leave memory at its default"
        )


def _rate(tiers: Tiers) -> int:
    return tiers[1].rate if len(tiers) > 1 else 1


class AdaptiveActing(CompressiveActing):
    """An `AdaptiveCore` acting in B envs; it follows a change of the core's rates at the next step."""

    core: AdaptiveCore

    def _take_over(self, state: Any) -> None:
        self.core.check_state(state, len(state[0]))
        super()._take_over(cast(CompressiveState, self.core._with_rates(self.core.now(state))))
        self._rates = self.core._present_rates(len(state.clock))

    def _make_state(self, *leaves: Tensor) -> CompressiveState:
        rates = self._rates[: len(leaves[0])].clone()
        return cast(CompressiveState, AdaptiveState._make([*leaves, rates]))

    def _step(self, inputs: Tensor, reset: Tensor) -> Tensor:
        if self._tiers != self.core.tiers:
            self._take_over(self.state())
        return super()._step(inputs, reset)
