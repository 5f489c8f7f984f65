"""Reconstruction losses, which train the compressors: they compare evicted slots with their compression.

Their gradients reach the compressors and nothing else. Letting them into the rest of the network "prevents learning"
(Rae et al. 2020, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ctrl.compressive.attention.memory_attention import MemoryAttention
from ctrl.compressive.schedule import WindowPlan
from ctrl.compressive.tiers import Tiers

QUERY_STEPS = 32
"""Largest number of query steps in a window, evenly spaced, so that the cost per step does not grow with the window."""


class Compression(NamedTuple):
    """Compressions of one tier of a layer in a window: E blocks of m slots each."""

    queries: Tensor
    """[B, T, D] content queries of the layer's attention."""
    old: Tensor
    """[B, E, m, 2 D] keys and values of the evicted slots, without a graph."""
    blocks: Tensor
    """[B, E, m, D] the evicted slots themselves, without a graph; 0 where `formed` is false."""
    new: Tensor
    """[B, E, D] the slots that they were compressed to, with the compressor's graph."""
    formed: Tensor
    """[B, E] bool, true where there is such a block."""
    query_mask: Tensor
    """[B, Q, E] bool, true where the query step may attend to the block; see `query_masks`."""
    decoder: nn.Module | None
    """Maps slots [N, D] back to blocks [N, m, D]; the core has one for the loss `auto_encoding`."""


ReconstructionLoss = Callable[[MemoryAttention, Compression], Tensor]


def query_masks(plan: WindowPlan) -> list[Tensor]:
    """Return query masks, tier by tier from 1 on: [B, Q, E] bool, true for blocks of the query step's own episode."""
    episode = plan.episode[:, _query_steps(plan.length), None]
    masks = []
    for tier in plan.tiers[1:]:
        exists, of_episode = (part[:, tier.schedule.slots :] for part in (tier.exists, tier.episode))
        masks.append(exists[:, None] & (of_episode[:, None] == episode))
    return masks


def _query_steps(length: int) -> slice:
    stride = -(-length // QUERY_STEPS)
    return slice(stride - 1, None, stride)


def attention_reconstruction(attention: MemoryAttention, compression: Compression) -> Tensor:
    """Compare the attention output from the evicted slots with that from their compression.

    This is the paper's algorithm 2, `||attn(h, old) - attn(h, compressed)||^2`, by content alone, with the queries, the
    old slots and the layer's weights held fixed. The paper sums the squares. This is their mean over query steps and
    features, so it does not depend on the window's length.
    """
    before, after = _attention_outputs(attention, compression)
    return _mean_over_query_steps((before - after).square(), compression)


def reconstruction_error(attention: MemoryAttention, compression: Compression) -> Tensor:
    """Return `attention_reconstruction` as a share of the attention output: 0 if nothing is lost, 1 if all is.

    It does not depend on the scale of the layer, nor on the loss that trains the compressors.
    """
    before, after = _attention_outputs(attention, compression)
    power = _mean_over_query_steps(before.square(), compression)
    return _mean_over_query_steps((before - after).square(), compression) / power.clamp_min(1e-12)


def block_errors(attention: MemoryAttention, compression: Compression) -> Tensor:
    """Return [B, E] the `reconstruction_error` of each block, with attention to that block alone.

    It is NaN where no block was formed.
    """
    _, old, _, new, formed, query_mask, _ = compression
    queries = compression.queries[:, None, _query_steps(compression.queries.shape[1])]  # [B, 1, Q, D]
    queries = queries.expand(-1, new.shape[1], -1, -1).flatten(0, 1)  # [B E, Q, D]
    everything = query_mask.new_ones(len(queries), queries.shape[1], old.shape[2])
    before = attention.content_attention(queries, old.flatten(0, 1), everything)
    # A softmax over one slot gives it all the weight, so the attention output is the slot's value.
    after = attention.fixed_keys_values(new).chunk(2, dim=2)[1].flatten(0, 1)[:, None]  # [B E, 1, D]
    asking = query_mask.transpose(1, 2).flatten(0, 1)  # [B E, Q]
    error, power = (((part**2).mean(dim=2) * asking).sum(dim=1) for part in (before - after, before))
    errors: Tensor = (error / power.clamp_min(1e-12)).view_as(formed)
    return errors.masked_fill(~formed, torch.nan)


def auto_encoding(attention: MemoryAttention, compression: Compression) -> Tensor:
    """Compare the evicted slots with a decoder's reconstruction of them: the mean square of the difference.

    This is the paper's lossless objective. Decoder and compressor learn together; attention has no part in it.
    """
    _, _, blocks, new, formed, _, decoder = compression
    decoded = cast(nn.Module, decoder)(new.flatten(0, 1)).view_as(blocks)
    error: Tensor = (decoded - blocks).square().mean(dim=(2, 3)) * formed  # [B, E]
    return error.sum() / formed.sum().clamp_min(1)


RECONSTRUCTION_LOSSES: dict[str, ReconstructionLoss | None] = {
    "attention_reconstruction": attention_reconstruction,
    "auto_encoding": auto_encoding,
    "none": None,
}


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


def _attention_outputs(attention: MemoryAttention, compression: Compression) -> tuple[Tensor, Tensor]:
    """Return [B, Q, D] the attention output of the query steps from the evicted slots, and from their compression."""
    queries, old, query_mask = compression.queries, compression.old, compression.query_mask
    queries = queries[:, _query_steps(queries.shape[1])].detach()
    before = attention.content_attention(queries, old.flatten(1, 2), query_mask.repeat_interleave(old.shape[2], dim=2))
    return before, attention.content_attention(queries, attention.fixed_keys_values(compression.new), query_mask)


def _mean_over_query_steps(squares: Tensor, compression: Compression) -> Tensor:
    """[B, Q, D] -> the mean over features and over the query steps that may attend to any block."""
    asking = compression.query_mask.any(dim=2)
    return (squares.mean(dim=2) * asking).sum() / asking.sum().clamp_min(1)
