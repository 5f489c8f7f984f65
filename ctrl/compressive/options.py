"""Options of the compressive core: kinds of position, and checks of options that must fit each other."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from ctrl.compressive.attention.block_mask import BY_AGE, BY_DISTANCE, Buckets
from ctrl.compressive.attention.memory_attention import AgeAttention
from ctrl.compressive.attention.relative import RelativeAttention
from ctrl.compressive.layer import MemoryLayer
from ctrl.compressive.tiers import Tiers
from ctrl.core import require_positive


class Position(NamedTuple):
    """A kind of relative position: its buckets, and the attention that uses them."""

    buckets: Buckets
    attention: type[AgeAttention] | type[RelativeAttention]


POSITIONS = {"age": Position(BY_AGE, AgeAttention), "sinusoidal": Position(BY_DISTANCE, RelativeAttention)}


def check_heads(heads: int, width: int) -> None:
    """Raise a ValueError unless `heads` divides `width`."""
    if width % heads:
        fitting = [count for count in range(1, width + 1) if width % count == 0]
        nearest = [max(count for count in fitting if count < heads), *(count for count in fitting if count > heads)][:2]
        raise ValueError(
            f"heads must divide width, got heads = {heads} and width = {width}; use heads = "
            f"{' or '.join(map(str, nearest))}"
        )


def feedforward_size(layer: type[MemoryLayer], asked: int | None, width: int) -> int:
    """Return the hidden units of the feed-forward part; raise a ValueError where the layer has no such part."""
    if asked is not None and not layer.has_feedforward:
        raise ValueError(
            f"residual='plain' has no feed-forward part, got feedforward = {asked}; use residual='pre_norm' or "
            "'gated', or leave feedforward at None"
        )
    require_positive(feedforward=2 * width if asked is None else asked)
    return 2 * width if asked is None else asked


def check_learning(
    reconstruction: str, compression_gradient: str, layers: list[Tiers], parameters: list[nn.Parameter]
) -> None:
    """Raise a ValueError where the options for training the compressors contradict each other or the memory."""
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
