"""Explanation of a window: the attention of its steps, and the losses of its compressions, for inspection and tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ctrl.compressive.attention.block_mask import BlockLayout, ages, lay_out, visible
from ctrl.compressive.schedule import WindowPlan
from ctrl.compressive.tiers import Tiers
from ctrl.compressive.window import LayerPass

if TYPE_CHECKING:
    from ctrl.compressive.core import CompressiveState


class ExplainedTier(NamedTuple):
    """One tier of a layer during a window of T steps, with its C slots, the stored ones first, oldest first."""

    span: int
    """Steps that a slot stands for."""
    attention: Tensor
    """[B, H, T, C] each head's attention weights; over all tiers of the layer they sum to 1 at each step."""
    age: Tensor
    """[B, T, C] int64, steps from a slot's centre to the step that attends; -1 where not visible."""
    formed: Tensor
    """[B, C] int64, the step of the window at which the slot was formed; negative if before it. Meaningless for a slot
    that no step sees."""
    error: Tensor
    """[B, E] of the slots formed in the window, the last E of C: the reconstruction error of the block that became the
    slot, as a share of the attention output from that block. 0 is lossless. NaN where no slot was formed. Tier 0 has
    none, E = 0."""


class Explained(NamedTuple):
    """Result of `CompressiveCore.explain`, without a graph."""

    outputs: Tensor
    """[B, T, O] as those of `unroll`."""
    layers: list[list[ExplainedTier]]
    """By layer and tier."""
    state: CompressiveState
    """The state after the window, as that of `unroll`."""


def explain_layer(plan: WindowPlan, layout: BlockLayout, weights: Tensor, errors: list[Tensor]) -> list[ExplainedTier]:
    """Explain one layer.

    :param plan: schedule of the windows
    :param layout: their blocks
    :param weights: [H, B, N, Q, W] attention weights
    :param errors: [B, E] block errors by tier, from tier 0 on
    """
    seen_age = torch.where(visible(plan, layout), ages(plan, layout).long(), -1)
    explained, start, first = [], 0, 0
    for tier, width, error in zip(plan.tiers, layout.widths, errors, strict=True):
        count, part = tier.step.shape[1], slice(start, start + width)
        columns = layout.columns[:, part] - first  # [N, W_i]
        real = layout.real[:, part]
        attention = _by_column(weights.transpose(0, 1)[..., part], 0.0, columns, real, count)  # [B, H, N Q, C]
        age = _by_column(seen_age[..., part], -1, columns, real, count)  # [B, N Q, C]
        attention, age = attention[..., : plan.length, :], age[..., : plan.length, :]
        explained.append(ExplainedTier(tier.schedule.span, attention, age, tier.step, error))
        start, first = start + width, first + count
    return explained


def _by_column(blocks: Tensor, missing: float, columns: Tensor, real: Tensor, count: int) -> Tensor:
    """Spread one tier's values by block over all its columns, with `missing` where a block does not attend.

    :param blocks: [.., N, Q, W] the values
    :param columns: [N, W] the column of each, counted within the tier
    :param real: [N, W] bool, false where there is no such column
    :param count: C
    :return: [.., N Q, C]
    """
    *leading, number, size, _ = blocks.shape
    whole = blocks.new_full((*leading, number, size, count), missing)
    for block in range(number):
        kept = real[block]
        whole[..., block, :, :].index_copy_(-1, columns[block, kept], blocks[..., block, :, kept])
    return whole.flatten(-3, -2)


def attention_statistics(layers: list[Tiers], passes: list[LayerPass]) -> dict[str, Tensor]:
    """Return the share of attention per tier and the mean attended age in steps, over all heads and steps."""
    statistics: dict[str, Tensor] = {}
    for layer, (indices, _, attended) in enumerate(passes):
        plan, mask, length = indices.schedule, indices.mask, indices.schedule.length
        layout = lay_out(layers[layer], length, plan.time.device)
        weights = mask.join(attended.weights.mean(dim=0), length)  # [B, T, W]
        for tier, share in enumerate(weights.split(layout.widths, dim=2)):
            statistics[f"attention_mass/layer{layer}/tier{tier}"] = share.sum(dim=2).mean()
        age = mask.join(ages(plan, layout), length)
        statistics[f"attended_age/layer{layer}"] = (weights * age).sum(dim=2).mean()
    return statistics
