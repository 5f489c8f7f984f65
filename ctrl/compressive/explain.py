"""Explanation of a window: the attention of its steps, and the losses of its compressions, for inspection and tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ctrl.compressive.attention.block_mask import BlockLayout, ages, lay_out, visible
from ctrl.compressive.schedule import WindowPlan
from ctrl.compressive.tiers import Tiers
from ctrl.compressive.window import LayerPass


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


class Spread(NamedTuple):
    """Map from the values of blocks' columns to all columns of one tier in order."""

    layout: BlockLayout
    part: slice
    """The part of a block's columns that is the tier's."""
    first: int
    """Index of the tier's first column."""
    columns: int
    """C, the number of the tier's columns."""

    def __call__(self, blocks: Tensor, missing: float, length: int) -> Tensor:
        """[.., N, Q, W] -> [.., T, C], with `missing` where a block does not attend."""
        *leading, _, size, _ = blocks.shape
        whole = blocks.new_full((*leading, len(self.layout.columns) * size, self.columns), missing)
        for number, (columns, real) in enumerate(zip(self.layout.columns, self.layout.real, strict=True)):
            kept = real[self.part]
            target = columns[self.part][kept] - self.first
            steps = slice(number * size, (number + 1) * size)
            whole[..., steps, :].index_copy_(-1, target, blocks[..., number, :, self.part][..., kept])
        return whole[..., :length, :]


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
        count = tier.columns.step.shape[1]
        spread = Spread(layout, slice(start, start + width), first, count)
        attention = spread(weights.transpose(0, 1), 0.0, plan.length)
        age = spread(seen_age, -1, plan.length)
        explained.append(ExplainedTier(tier.schedule.span, attention, age, tier.columns.step, error))
        start, first = start + width, first + count
    return explained


def attention_statistics(layers: list[Tiers], passes: list[LayerPass]) -> dict[str, Tensor]:
    """Return the share of attention per tier and the mean attended age in steps, over all heads and steps."""
    statistics: dict[str, Tensor] = {}
    for layer, ((plan, mask, _), _, attended) in enumerate(passes):
        length = plan.window.length
        layout = lay_out(layers[layer], length, plan.window.clock.device)
        weights = mask.join(attended.weights.mean(dim=0), length)  # [B, T, W]
        for tier, share in enumerate(weights.split(layout.widths, dim=2)):
            statistics[f"attention_mass/layer{layer}/tier{tier}"] = share.sum(dim=2).mean()
        age = mask.join(ages(plan.window, layout), length)
        statistics[f"attended_age/layer{layer}"] = (weights * age).sum(dim=2).mean()
    return statistics
