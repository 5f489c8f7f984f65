"""The step of the episode as features: sines and cosines of periods from 4 to 2,048 steps.

A slot's age is relative to the present step, so it does not say where in the episode a step is. Attention averages, so
it can't count steps either. Therefore the scores of some heads, and the core's outputs, depend on the time. The content
of slots does not hold it, since every slot would be unusual then.

The time of a compressed slot is the time of its content, not the centre of the steps that it stands for. So content is
found at the same time, however often it was compressed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PERIODS = (4, 6, 9, 14, 21, 32, 49, 74, 112, 169, 256, 388, 588, 891, 1351, 2048)
"""Periods in steps, an even number of them. They are whole numbers, so a time of any size has an exact phase."""
CLOCK_FEATURES = 2 * len(PERIODS)
TIME_KEYS = CLOCK_FEATURES // 2
"""Number of features in the scores by time: those of every second period."""
NEVER = 2**62
"""A time that no episode reaches."""


class EpisodeClock(nn.Module):
    """Clock features of a time. The clock stands still after the longest time that training has met.

    No weight has learned from the features of later times, or from their combinations. So in an episode longer than
    those of training an agent acts as at the end of the longest of them.
    """

    periods: Tensor
    """[P] int64, see `PERIODS`."""
    end: Tensor
    """[] int64, the time after which the clock stands still; `NEVER` until `settle` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("periods", torch.tensor(PERIODS), persistent=False)
        self.register_buffer("end", torch.tensor(NEVER))

    def forward(self, time: Tensor, dtype: torch.dtype, shift: Tensor | None = None) -> Tensor:
        """Return the clock features [.., CLOCK_FEATURES] of a time.

        :param time: [..] int64, steps since each episode's first
        :param shift: [..] steps to add to the time; any real numbers
        """
        exact = torch.promote_types(dtype, torch.float32)
        until = torch.minimum(time, self.end)
        phase = until[..., None].remainder(self.periods).to(exact)
        if shift is not None:
            shift = torch.minimum(shift.to(exact) + (time - until), (self.end - until).to(exact))
            phase = phase + torch.fmod(shift[..., None], self.periods)  # exact, as the remainder of whole numbers is
        angles = (phase / self.periods).mul_(2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)

    def settle(self, longest: float) -> None:
        """Record the longest time of an update; the clock goes on up to the longest of all updates."""
        extend(self.end, int(longest))


class TimeQueries(nn.Module):
    """Queries by time of some heads: scores depend on the sum of the step's time t and the slot's time s.

    For each of a few frequencies w a head has two numbers, both 0 at first. Its score gains the sum over w of

        a cos w(t + s) + b sin w(t + s)

    So heads find mirror images, and an agent can answer in reverse. A term in t - s would repeat the age, which
    attention has anyway. A free map of both times would have many more numbers. They move at random in tasks that don't
    need them, and that spoils recall (docs/research-log.md).

    :param heads: J
    """

    SCALE = 2.0
    """Factor from parameters to a and b, so that an optimizer's steps soon single out one step."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, TIME_KEYS))  # a of all frequencies, then b

    def matrix(self) -> Tensor:
        """Return [J K, K], K = `TIME_KEYS`: the map from (sin wt, cos wt) of a step's time to time queries.

        They are (b cos wt - a sin wt, a cos wt + b sin wt), to be multiplied by (sin ws, cos ws).
        """
        a, b = self.SCALE * self.weight.unflatten(1, (2, -1)).movedim(1, 0)  # [J, K / 2] each
        parts = torch.stack([-a, b, b, a], dim=1).diag_embed().unflatten(1, (2, 2))  # [J, 2, 2, K / 2, K / 2]
        matrix: Tensor = parts.transpose(2, 3).reshape(-1, TIME_KEYS)
        return matrix

    def forward(self, features: Tensor) -> Tensor:
        """Return time queries [.., J TIME_KEYS] from the clock features of steps [.., CLOCK_FEATURES]."""
        return F.linear(time_keys(features), self.matrix())


def extend(furthest: Tensor, met: int) -> None:
    """Extend a buffer to the furthest value that training has met so far; before the first it is `NEVER`."""
    furthest.copy_(torch.where(furthest == NEVER, met, furthest.clamp_min(met)))


def time_keys(features: Tensor) -> Tensor:
    """Return time keys [.., TIME_KEYS] from clock features [.., CLOCK_FEATURES]."""
    return features[..., ::2]
