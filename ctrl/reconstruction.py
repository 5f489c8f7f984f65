"""What the compressors learn from: losses that compare evicted slots with what they were compressed to.

Their gradients reach the compressors and nothing else; letting them into the network "prevents learning" (Rae et
al. 2020, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ctrl.layer import MemoryAttention
from ctrl.timeline import WindowPlan

QUESTIONS = 32
"""At most so many steps of a window ask, evenly spaced, so that the cost per step does not grow with the window."""


class Compression(NamedTuple):
    """What one tier of a layer compressed in a window."""

    queries: Tensor
    """[B, T, D] of the layer's attention."""
    old: Tensor
    """[B, E, m, 2 D] keys and values of the evicted slots, without a graph."""
    new: Tensor
    """[B, E, D] the slots that they were compressed to, with the compressor's graph."""
    asked: Tensor
    """[B, Q, E] bool, about which of them each asking step asks; see `questions`."""


ReconstructionLoss = Callable[[MemoryAttention, Compression], Tensor]


def questions(plan: WindowPlan) -> list[Tensor]:
    """Return, tier by tier, which steps ask about what: [B, Q, E] bool, about all that their own episode evicts."""
    episode = plan.episode[:, _asking(plan.length), None]
    asked = []
    for tier in plan.tiers[1:]:
        exists, of_episode = (part[:, tier.rhythm.slots :] for part in (tier.columns.exists, tier.columns.episode))
        asked.append(exists[:, None] & (of_episode[:, None] == episode))
    return asked


def _asking(length: int) -> slice:
    stride = -(-length // QUESTIONS)
    return slice(stride - 1, None, stride)


def attention_reconstruction(attention: MemoryAttention, compression: Compression) -> Tensor:
    """Compare what the layer reads from the evicted slots with what it reads from their compression.

    The paper's algorithm 2, `||attn(h, old) - attn(h, compressed)||^2`, by content alone, with the queries, the old
    slots and the layer's weights held fixed. The paper sums the squares; this is their mean over questions and
    features, so that it does not depend on the window.
    """
    queries, old, new, asked = compression
    queries = queries[:, _asking(queries.shape[1])].detach()
    before = attention.content_attention(queries, old.flatten(1, 2), asked.repeat_interleave(old.shape[2], dim=2))
    after = attention.content_attention(queries, attention.fixed_keys_values(new), asked)
    asks = asked.any(dim=2)
    error = (before - after).square().mean(dim=2)  # [B, Q]
    return (error * asks).sum() / asks.sum().clamp_min(1)


def no_reconstruction(attention: MemoryAttention, compression: Compression) -> Tensor:
    """Train nothing; the compressors stay as they start."""
    return compression.new.new_zeros(())


RECONSTRUCTION_LOSSES: dict[str, ReconstructionLoss] = {
    "attention_reconstruction": attention_reconstruction,
    "none": no_reconstruction,
}
