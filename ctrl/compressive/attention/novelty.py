"""How unusual a layer's inputs are: what a linear map that learns to rebuild the usual ones leaves of them.

What happens often can be rebuilt from what happened before; what was hardly ever seen cannot. So a memory that must
drop most slots long before anybody has learned which will be asked for does well to keep these, and to look at them
first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Novelty(nn.Module):
    """The error of a linear denoising autoencoder of a layer's inputs, each normed.

    Gaussian noise is added in closed form, as a penalty on the map (Bishop 1995, Neural Computation 7(1)), and only for
    learning.

    With inputs of second moments S and noise of variance r, the best map is S (S + r)⁻¹, and what it leaves of an input
    x is r (S + r)⁻¹ x: next to nothing along directions in which inputs often lie, and x itself along those which the
    inputs fill with far less than r on average. So the error ranks inputs much as their ridge leverage scores
    xᵀ (S + r)⁻¹ x do (Alaoui & Mahoney 2015, arXiv 1411.0306), by which a few columns are picked that stand for many.

    :param width: D
    :param gain: how much more a slot counts in `emphasis` for each unit of novelty
    """

    NOISE = 0.5
    """r, as a share of the variance 1 of a normed input's features."""
    GAIN = 4.0
    """By few trials (docs/research-log.md): with none a rare cue is found later, and twice as much brought little."""

    def __init__(self, width: int, gain: float = GAIN) -> None:
        super().__init__()
        self.gain = gain
        self.rebuild = nn.Parameter(torch.zeros(width, width))

    def forward(self, slots: Tensor) -> Tensor:
        """Return [..] the mean square of what the map leaves of slots [.., D]; a gradient reaches the map only.

        At first 1, and less where a slot's features hardly differ.
        """
        normed = F.layer_norm(slots.detach(), slots.shape[-1:])
        return self.of_normed(normed.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0))  # another episode's may overflow

    def of_normed(self, normed: Tensor) -> Tensor:
        """Return the same for slots that are normed already, without weights."""
        flat = normed.detach().reshape(-1, normed.shape[-1])
        left = torch.addmm(flat, flat, self.rebuild, alpha=-1)
        return left.square().mean(dim=1).view(normed.shape[:-1])

    def loss(self, novelty: Tensor) -> Tensor:
        """Return what the map learns from: the mean of its inputs' `novelty`, and what the noise would add to it."""
        return novelty.mean() + self.NOISE * self.rebuild.square().sum() / len(self.rebuild)

    def emphasis(self, novelty: Tensor) -> Tensor | None:
        """Return [..] 1 + gain * novelty [..], how many times as large keys and values are; None where all are 1.

        So the keys and values of what is unusual are larger, and one rare slot among many is read from the beginning.
        No gradient reaches the measure.
        """
        return 1 + self.gain * novelty.detach() if self.gain else None
