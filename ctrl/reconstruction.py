"""What the compressors learn from: losses that compare evicted slots with what they were compressed to.

Their gradients reach the compressors and nothing else; letting them into the network "prevents learning" (Rae et
al. 2020, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ctrl.layer import Attended, MemoryAttention
from ctrl.timeline import TierPlan, WindowPlan

QUESTIONS = 32
"""At most so many steps of a window ask, evenly spaced, so that the cost per step does not grow with the window."""


class Compression(NamedTuple):
    """What one tier of a layer compressed in a window."""

    plan: WindowPlan
    tier: TierPlan
    attended: Attended
    """What the layer's attention did."""
    old: Tensor
    """[B, E, m, 2 D] keys and values of the evicted slots, without a graph."""
    new: Tensor
    """[B, E, D] the slots that they were compressed to, with the compressor's graph."""


ReconstructionLoss = Callable[[MemoryAttention, Compression], Tensor]


def attention_reconstruction(attention: MemoryAttention, compression: Compression) -> Tensor:
    """Compare what the layer reads from the evicted slots with what it reads from their compression.

    The paper's algorithm 2, `||attn(h, old) - attn(h, compressed)||^2`, by content alone, with the queries, the old
    slots and the layer's weights held fixed. A step asks about all that its own episode evicts in the window. The
    paper sums the squares; this is their mean over questions and features, so that it does not depend on the window.
    """
    plan, tier, attended, old, new = compression
    length = plan.episode.shape[1]
    stride = -(-length // QUESTIONS)
    asking = slice(stride - 1, None, stride)
    formed = new.shape[1]
    exists, of_episode = tier.columns.exists[:, -formed:], tier.columns.episode[:, -formed:]
    same = exists[:, None, :] & (of_episode[:, None, :] == plan.episode[:, asking, None])  # [B, Q, E]
    queries = attended.queries[:, asking].detach()
    before = attention.content_attention(queries, old.flatten(1, 2), same.repeat_interleave(old.shape[2], dim=2))
    after = attention.content_attention(queries, attention.fixed_keys_values(new), same)
    asks = same.any(dim=2)
    error = (before - after).square().mean(dim=2)  # [B, Q]
    return (error * asks).sum() / asks.sum().clamp_min(1)


def no_reconstruction(attention: MemoryAttention, compression: Compression) -> Tensor:
    """Train nothing; the compressors stay as they start."""
    return compression.new.new_zeros(())


RECONSTRUCTION_LOSSES: dict[str, ReconstructionLoss] = {
    "attention_reconstruction": attention_reconstruction,
    "none": no_reconstruction,
}
