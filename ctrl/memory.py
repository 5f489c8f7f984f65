"""What a layer remembers: its tiers, from raw steps to ever coarser compressed slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ctrl.core import require_positive


@dataclass(frozen=True)
class Tier:
    """One level of a layer's memory.

    Tier 0 holds the last steps as they are (rate 1). Each slot of a later tier is the compression of `rate`
    consecutive slots of the tier before it.
    """

    slots: int
    """How many slots the tier holds."""
    rate: int = 1
    """How many slots of the tier before become one slot of this one; 1 for tier 0."""
    compressor: str = "conv"
    """The name of the compressor that forms this tier's slots; tier 0 has no use for it."""

    def __post_init__(self) -> None:
        require_positive(slots=self.slots, rate=self.rate)


Tiers = tuple[Tier, ...]
MemorySpec = Sequence[Tier] | Sequence[Sequence[Tier]]


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
    """Read `memory`: one list of tiers for all layers, or one such list for each layer.

    :raises ValueError: where a list is empty, its length is not `layers`, or the rates do not fit the tiers
    """
    if not isinstance(memory, Sequence):
        raise ValueError(f"memory must be a list of Tier or one list of Tier per layer, got {memory!r}")
    if len(memory) == 0:
        raise ValueError("memory must hold at least one Tier, got an empty list")
    if all(isinstance(tier, Tier) for tier in memory):
        result = [tuple(memory)] * layers
    elif any(isinstance(tiers, Tier) or not isinstance(tiers, Sequence) for tiers in memory):
        raise ValueError(f"memory must be a list of Tier or one list of Tier per layer, got {memory!r}")
    else:
        result = [tuple(tiers) for tiers in memory]  # type: ignore[arg-type]
    if len(result) != layers:
        raise ValueError(f"memory has tiers for {len(result)} layers, but layers is {layers}")
    for layer, tiers in enumerate(result):
        _check_tiers(layer, tiers)
    return result  # type: ignore[return-value]


def _check_tiers(layer: int, tiers: tuple[object, ...]) -> None:
    if not tiers or not all(isinstance(tier, Tier) for tier in tiers):
        raise ValueError(f"memory of layer {layer} must be a list of at least one Tier, got {tiers!r}")
    first, *rest = (tier for tier in tiers if isinstance(tier, Tier))
    if first.rate != 1:
        raise ValueError(f"tier 0 holds single steps, so its rate must be 1, got {first.rate}")
    previous = first
    for position, tier in enumerate(rest, start=1):
        if previous.slots < tier.rate:
            raise ValueError(
                f"tier {position} merges rate = {tier.rate} slots, "
                f"but tier {position - 1} has only slots = {previous.slots}; it needs at least as many"
            )
        previous = tier
