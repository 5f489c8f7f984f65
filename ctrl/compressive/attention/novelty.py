"""Measure of how unusual a layer's inputs are: the error of a linear map that learns to rebuild the usual ones.

Frequent inputs can be rebuilt from earlier ones; inputs that were hardly ever seen cannot. A memory must drop most
slots long before training shows which ones will be needed. So it keeps the unusual ones, and attends to them first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrl.core import require_not_negative

if TYPE_CHECKING:
    from ctrl.compressive.compressors import Compressor


class Novelty(nn.Module):
    """The error of a linear denoising autoencoder of a layer's inputs, each normed.

    Gaussian noise is added in closed form, as a penalty on the map (Bishop 1995, Neural Computation 7(1)), and only for
    learning.

    For inputs of second moments S and noise of variance r, the best map is S (S + r)⁻¹. Its error for an input x is
    r (S + r)⁻¹ x: next to nothing along directions in which inputs often lie, and x itself along those which the inputs
    fill with far less than r on average. So the error ranks inputs much as their ridge leverage scores xᵀ (S + r)⁻¹ x
    do (Alaoui & Mahoney 2015, arXiv 1411.0306), by which a few columns are picked that stand for many.

    :param width: D
    :param gain: how much more a slot counts in `emphasis` for each unit of novelty
    """

    NOISE = 0.5
    """r, as a share of the variance 1 of a normed input's features."""
    GAIN = 4.0
    """Default of `gain`, chosen by few trials (docs/research-log.md)."""

    def __init__(self, width: int, gain: float = GAIN) -> None:
        super().__init__()
        self.gain = gain
        self.rebuild = nn.Parameter(torch.zeros(width, width))

    def forward(self, slots: Tensor) -> Tensor:
        """Return [..] the mean squared error of the map for slots [.., D]; a gradient reaches the map only.

        It is 1 at first, and less where a slot's features hardly differ.
        """
        normed = F.layer_norm(slots.detach(), slots.shape[-1:])
        # Slots of another episode may overflow.
        return self.of_normed(normed.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))

    def of_normed(self, normed: Tensor) -> Tensor:
        """Return the same for slots that are already normed, without weights."""
        flat = normed.detach().reshape(-1, normed.shape[-1])
        left = torch.addmm(flat, flat, self.rebuild, alpha=-1)
        return left.square().mean(dim=1).view(normed.shape[:-1])

    def loss(self, novelty: Tensor) -> Tensor:
        """Return the loss of the map: the mean `novelty` of its inputs, plus the expected contribution of the noise."""
        return novelty.mean() + self.NOISE * self.rebuild.square().sum() / len(self.rebuild)

    def emphasis(self, novelty: Tensor) -> Tensor | None:
        """Return the factor [..] of keys and values, 1 + gain * novelty [..]; None where all are 1.

        Unusual slots have larger keys and values, so one rare slot among many is attended to from the beginning. No
        gradient reaches the measure.
        """
        return 1 + self.gain * novelty.detach() if self.gain else None


def measures_of_novelty(compressors: list[list[Compressor]], width: int, gain: float | None) -> list[Novelty | None]:
    """Make a measure of novelty for each layer with a compressor that uses it, of slots [.., D = `width`].

    :param gain: `Novelty.GAIN` if None
    :raises ValueError: where `gain` is negative or not finite, or positive although no layer measures novelty
    """
    if gain is not None:
        require_not_negative(novelty_gain=gain)
    asking = [any(compressor.uses_novelty() for compressor in own) for own in compressors]
    if gain and not any(asking):
        raise ValueError(
            f"novelty_gain = {gain} needs a compressor that measures novelty, but memory has none; use compressor "
            "'surprise', or leave novelty_gain at None"
        )
    return [Novelty(width, Novelty.GAIN if gain is None else gain) if asks else None for asks in asking]
