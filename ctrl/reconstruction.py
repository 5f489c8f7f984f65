"""What the compressors learn from: losses that compare evicted slots with what they were compressed to.

Their gradients reach the compressors and nothing else; letting them into the network "prevents learning" (Rae et
al. 2020, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ctrl.layer import MemoryAttention
from ctrl.timeline import Formed

ReconstructionLoss = Callable[[MemoryAttention, Tensor, Tensor, Tensor, Formed, Tensor], Tensor]


def attention_reconstruction(
    attention: MemoryAttention, queries: Tensor, blocks: Tensor, slots: Tensor, formed: Formed, episode: Tensor
) -> Tensor:
    """Compare what the layer reads from the evicted slots with what it reads from their compression.

    The paper's algorithm 2, `||attn(h, old) - attn(h, compressed)||^2`, by content alone, with the queries, the old
    slots and the layer's weights held fixed. Each step of the window asks about all that its own episode evicts in
    the window. The paper sums the squares; this is their mean over steps and features, so that it does not depend
    on the window.

    :param queries: [B, H, T, d]
    :param blocks: [B, E, m, D] the evicted slots
    :param slots: [B, E, D] what they were compressed to, with the compressor's graph
    :param formed: which of them exist, and in which episode
    :param episode: [B, T] the steps' episodes
    """
    same = formed.exists[:, None, :] & (formed.episode[:, None, :] == episode[:, :, None])  # [B, T, E]
    rate = blocks.shape[2]
    old = attention.content_attention(queries, blocks.detach().flatten(1, 2), same.repeat_interleave(rate, dim=2))
    new = attention.content_attention(queries, slots, same)
    asks = same.any(dim=2)
    error = (old.detach() - new).square().mean(dim=2)  # [B, T]
    return (error * asks).sum() / asks.sum().clamp_min(1)


def no_reconstruction(
    attention: MemoryAttention, queries: Tensor, blocks: Tensor, slots: Tensor, formed: Formed, episode: Tensor
) -> Tensor:
    """Train nothing; the compressors stay as they start."""
    return slots.new_zeros(())


RECONSTRUCTION_LOSSES: dict[str, ReconstructionLoss] = {
    "attention_reconstruction": attention_reconstruction,
    "none": no_reconstruction,
}
