"""Values in the rewards' units from a head that learns in units of its own: the scale of rewards then matters nowhere.

PopArt: van Hasselt et al. 2016, *Learning values across many orders of magnitude*, https://arxiv.org/abs/1602.07714.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

DECAY = 0.9
"""What the statistics of earlier updates keep of their weight with each update."""
SMALLEST_SCALE = 1e-4
"""Of the returns' root mean square. A spread below it is float32's rounding as much as anything else."""


class ValueNormalisation(nn.Module):
    """Running mean and scale of returns: a value is mean + scale * what the value head says.

    Mean and standard deviation come from the first and second moments of returns, exponentially weighted by update and
    debiased as in Adam, so the first update counts fully. As they change, `update` changes the head's weights so that
    its values stay what they were ("preserving outputs precisely").

    At first the scale is 0, so every value is exactly 0 and nothing depends on the rewards' scale. It stays 0 as long
    as all returns are 0. The head has no say until then, and the first other returns leave it as it is.

    :param scale: at first; a head that is to say values as they are has 1 and no updates
    """

    mean: Tensor
    """Scalar, of the returns."""
    scale: Tensor
    """Scalar, their standard deviation, or 1e-4 of their root mean square where that is more."""
    updates: Tensor
    """Scalar, how many have been counted."""

    def __init__(self, scale: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("updates", torch.tensor(0))

    def forward(self, outputs: Tensor) -> Tensor:
        """Return the values that the head's outputs stand for."""
        return torch.addcmul(self.mean, self.scale, outputs)

    def normalised(self, values: Tensor) -> Tensor:
        """Return the outputs that stand for `values`; 0 as long as all returns have been 0."""
        return self.rescaled(values - self.mean)

    def rescaled(self, differences: Tensor) -> Tensor:
        """Return differences of values, such as advantages, as differences of outputs."""
        return differences / torch.where(self.scale > 0, self.scale, 1.0)

    @torch.no_grad()
    def update(self, returns: Tensor, head: nn.Linear) -> None:
        """Count the returns [K] of an update, K at least 1, and keep what `head` says of any observation.

        :raises ValueError: where there are none
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
        """Move mean and variance towards those of `returns`; as E[x^2] - E[x]^2 the variance would be rounding."""
        self.updates.add_(1)
        share = (1 - DECAY) / (1 - DECAY ** self.updates.item())
        old_mean, old_variance = self.mean.item(), self.scale.item() ** 2
        apart = returns.mean().item() - old_mean
        mean = old_mean + share * apart
        variance = (1 - share) * (old_variance + share * apart**2) + share * returns.var(correction=0).item()
        self.mean.fill_(mean)
        self.scale.fill_(max(math.sqrt(variance), SMALLEST_SCALE * math.sqrt(mean**2 + variance)))
