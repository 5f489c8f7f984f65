"""The step of the episode as features: sines and cosines of periods from 4 to 2,048 steps.

Age says how long ago a slot is. It can't say where in the episode a step is, and attention averages, so it can't count
either. Queries, keys and the policy's heads may know the time. Slots do not hold it: they would all be unusual then.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PERIODS = (4, 6, 9, 14, 21, 32, 49, 74, 112, 169, 256, 388, 588, 891, 1351, 2048)
"""In steps. They are whole numbers, so a time of any size has an exact phase."""
CLOCK_FEATURES = 2 * len(PERIODS)


def clock_features(time: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [.., CLOCK_FEATURES] for the steps `time` [..], int64, counted from each episode's first."""
    periods = torch.tensor(PERIODS, device=time.device)
    angles = time[..., None].remainder(periods).to(dtype) * (2 * math.pi / periods.to(dtype))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
