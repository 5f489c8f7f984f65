"""Tiers of a layer's memory: single steps first, then ever coarser compressed slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ctrl.compressive.compressors import compressor_factory
from ctrl.core import require_positive


@dataclass(frozen=True)
class Tier:
    """One level of a layer's memory.

    Tier 0 holds the last steps as they are (rate 1). Each slot of a later tier is the compression of `rate`
    consecutive slots of the tier before it.
    """

    slots: int
    """Number of slots."""
    rate: int = 1
    """Number of slots of the tier before that become one slot of this one; 1 for tier 0."""
    compressor: str = "surprise"
    """Name of the compressor that forms this tier's slots; unused in tier 0."""

    def __post_init__(self) -> None:
        require_positive(slots=self.slots, rate=self.rate)


Tiers = tuple[Tier, ...]
MemorySpec = Sequence[Tier] | Sequence[Sequence[Tier]]

FURTHEST = 2**60
"""Limit of a layer's reach in steps. Steps are counted in int64; below this there is room to add and to double."""


def spans(tiers: Sequence[Tier]) -> list[int]:
    """Return the steps that one slot of each tier stands for: rho_0 = 1, rho_i = m_i * rho_(i-1)."""
    result = [1]
    for tier in tiers[1:]:
        result.append(result[-1] * tier.rate)
    return result


def reach(tiers: Sequence[Tier]) -> int:
    """Return how many steps back a layer with these tiers can see: the sum of n_i * rho_i."""
    return sum(tier.slots * span for tier, span in zip(tiers, spans(tiers), strict=True))


def tiers_by_layer(memory: MemorySpec, layers: int) -> list[Tiers]:
    """Return the tiers of each layer from `memory`: one list of tiers for all layers, or one list per layer.

    :raises ValueError: where a list is empty, the number of lists is not `layers`, the rates do not fit the tiers, or a
        layer would reach `FURTHEST` steps
    """
    if not _is_list(memory):
        raise ValueError(f"memory must be a list of Tier or one list of Tier per layer, got {memory!r}")
    if len(memory) == 0:
        raise ValueError("memory must hold at least one Tier, got an empty list")
    if all(isinstance(tier, Tier) for tier in memory):
        result = [tuple(memory)] * layers
    elif not all(_is_list(tiers) for tiers in memory):
        raise ValueError(f"memory must be a list of Tier or one list of Tier per layer, got {memory!r}")
    else:
        result = [tuple(tiers) for tiers in memory]  # type: ignore[arg-type]
    if len(result) != layers:
        raise ValueError(
            f"memory has tiers for {len(result)} layers, but layers is {layers}; use layers = {len(result)}"
        )
    for layer, tiers in enumerate(result):
        _check_tiers(layer, tiers)
    return result  # type: ignore[return-value]


def _is_list(given: object) -> bool:
    return isinstance(given, Sequence) and not isinstance(given, str)


def _check_tiers(layer: int, tiers: tuple[object, ...]) -> None:
    if not tiers or not all(isinstance(tier, Tier) for tier in tiers):
        raise ValueError(f"memory of layer {layer} must be a list of at least one Tier, got {tiers!r}")
    first, *rest = (tier for tier in tiers if isinstance(tier, Tier))
    if first.rate != 1:
        raise ValueError(f"tier 0 holds single steps, so its rate must be 1, got {first.rate}")
    for tier in (first, *rest):
        compressor_factory(tier.compressor)
    previous = first
    for position, tier in enumerate(rest, start=1):
        if previous.slots < tier.rate:
            raise ValueError(
                f"tier {position} merges rate = {tier.rate} slots, "
                f"but tier {position - 1} has only slots = {previous.slots}; it needs at least as many: use "
                f"rate = {previous.slots}, or slots = {tier.rate} for tier {position - 1}"
            )
        previous = tier
    if reach((first, *rest)) >= FURTHEST:
        raise ValueError(
            f"memory of layer {layer} must reach fewer than 2**60 steps, since steps are counted in int64, got "
            f"{reach((first, *rest)):.1e}; use fewer tiers or lower rates"
        )


def memory_for_horizon(steps: int, *, slots: int = 128, compressor: str = "surprise") -> list[Tier]:
    """Choose tiers that let a layer see at least `steps` steps back, and print them with their reach.

    All tiers have the same size and the same rate. There are as few tiers as a rate of at most 8 allows, since content
    that is compressed fewer times is kept better. Only if that is not enough, rates rise up to the size of a tier.

        core = ctrl.make_core("compressive", 24, memory=ctrl.memory_for_horizon(10_000))

    :param steps: how far back a step must still be seen, at any time
    :param slots: of all tiers together, at most
    :param compressor: of all tiers but the first
    :raises ValueError: where a number is not a positive whole one, or no choice of tiers with so many slots reaches far
        enough
    """
    require_positive(steps=steps, slots=slots)
    tiers = next((tiers for tiers in _candidates(slots, compressor) if always_seen(tiers) >= steps), None)
    if tiers is None:
        furthest = max(always_seen(tiers) for tiers in _candidates(slots, compressor))
        raise ValueError(f"steps must be at most {furthest:,} for slots = {slots}, got {steps:,}; give it more slots")
    listed = ", ".join(f"Tier({tier.slots}" + (f", rate={tier.rate})" if at else ")") for at, tier in enumerate(tiers))
    print(
        f"memory_for_horizon({steps:,}): {listed}; reach {reach(tiers):,} steps, at least {always_seen(tiers):,} "
        f"at any time, with {sum(tier.slots for tier in tiers)} slots per layer"
    )
    return tiers


def always_seen(tiers: Sequence[Tier]) -> int:
    """Return how many steps back a layer sees at any time: its reach, less the span of a slot that is dropped whole."""
    return reach(tiers) - spans(tiers)[-1]


def _candidates(slots: int, compressor: str) -> Iterator[list[Tier]]:
    """Yield memories of up to `slots` slots, the best first."""
    counts = range(2, slots + 1)
    yield [Tier(slots)]
    for low, high in ((2, 8), (9, slots)):
        for count in counts:
            size = slots // count
            for rate in range(low, min(high, size) + 1):
                if rate ** (count - 1) < 2**40:  # steps are counted in int64
                    yield [Tier(size), *[Tier(size, rate, compressor)] * (count - 1)]
