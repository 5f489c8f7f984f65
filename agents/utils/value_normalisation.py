"""Value normalisation: the value head learns in units of its own, so the scale of rewards does not matter.

PopArt: van Hasselt et al. 2016, *Learning values across many orders of magnitude*, https://arxiv.org/abs/1602.07714.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

DECAY = 0.9
"""Factor by which each update reduces the weight of the earlier ones in the statistics."""
SMALLEST_SCALE = 1e-4
"""Lower limit of the scale, relative to the returns' root mean square. A smaller spread may be float32 rounding."""


class ValueNormalisation(nn.Module):
    """Running mean and scale of returns: a value is mean + scale * output of the value head.

    Mean and standard deviation come from the first and second moments of returns, exponentially weighted by update and
    debiased as in Adam, so the first update counts fully. When they change, `update` rescales the head's weights so
    that its values stay the same ("preserving outputs precisely").

    The initial scale is 0, so every value is exactly 0 and nothing depends on the rewards' scale. The scale stays 0 as
    long as all returns are 0. Until then the head has no effect on values, and the first other returns leave its
    weights unchanged.

    :param scale: initial scale; 1, without any updates, for a head whose outputs are the values
    """

    mean: Tensor
    """Scalar, mean of the returns."""
    scale: Tensor
    """Scalar, standard deviation of the returns, or 1e-4 of their root mean square where that is more."""
    updates: Tensor
    """Scalar, number of updates so far."""

    def __init__(self, scale: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("updates", torch.tensor(0))

    def forward(self, outputs: Tensor) -> Tensor:
        """Return the values that the head's outputs stand for."""
        return torch.addcmul(self.mean, self.scale, outputs)

    def normalised(self, values: Tensor) -> Tensor:
        """Return the outputs that stand for `values`; while the scale is 0, `values` as they are."""
        return self.rescaled(values - self.mean)

    def rescaled(self, differences: Tensor) -> Tensor:
        """Return differences of values, such as advantages, in units of the head's outputs."""
        return differences / torch.where(self.scale > 0, self.scale, 1.0)

    @torch.no_grad()
    def update(self, returns: Tensor, head: nn.Linear) -> None:
        """Update mean and scale from returns [K], K at least 1, and rescale `head` so that its values stay the same.

        :raises ValueError: where `returns` is empty
        """
        if not len(returns):
            raise ValueError("returns must not be empty")
        mean, scale = self.mean.item(), self.scale.item()
        self._count(returns.cpu().double())  # not every device has float64
        new_mean, new_scale = self.mean.item(), self.scale.item()
        if scale > 0 and new_scale > 0:
            head.weight.mul_(scale / new_scale)
            head.bias.mul_(scale / new_scale).add_((mean - new_mean) / new_scale)

    def _count(self, returns: Tensor) -> None:
        """Move mean and variance towards those of `returns`.

        E[x^2] - E[x]^2 would lose the variance to rounding, so it is not used.
        """
        self.updates.add_(1)
        share = (1 - DECAY) / (1 - DECAY ** self.updates.item())
        old_mean, old_variance = self.mean.item(), self.scale.item() ** 2
        apart = returns.mean().item() - old_mean
        mean = old_mean + share * apart
        variance = (1 - share) * (old_variance + share * apart**2) + share * returns.var(correction=0).item()
        self.mean.fill_(mean)
        self.scale.fill_(max(math.sqrt(variance), SMALLEST_SCALE * math.sqrt(mean**2 + variance)))
