"""Steps of a window whose inputs are not finite, and that a reset ends: they must reach nothing after it (law 2)."""

from __future__ import annotations

import torch
from torch import Tensor


def stale_steps(inputs: Tensor, reset: Tensor) -> Tensor | None:
    """Return [B, T] bool, true where inputs are not finite and a reset follows in the window; None if there are none.

    Their product with a gradient of 0 would be NaN, so they would reach all weights.
    """
    if bool(inputs.detach().sum().isfinite()):  # a fraction of the time of looking at each number
        return None
    later = reset.flip(1).cumsum(dim=1).flip(1) - reset.long()  # resets after each step
    stale = ~inputs.detach().isfinite().all(dim=2) & (later > 0)
    return stale if bool(stale.any()) else None


def spoil(outputs: Tensor, stale: Tensor, reset: Tensor) -> Tensor:
    """Replace outputs [B, T, O] by NaN from each stale step [B, T] up to the next reset, without a gradient there."""
    before = stale.cumsum(dim=1)  # stale steps so far
    at_reset = torch.where(reset, before - stale.long(), 0).cummax(dim=1).values  # those of earlier episodes
    return torch.where((before > at_reset)[:, :, None], torch.nan, outputs)
