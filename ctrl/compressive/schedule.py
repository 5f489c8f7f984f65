"""Schedule of the memory: the steps at which each slot exists, as a closed form of each env's own episode clock.

At step t of an episode tier i of a layer has formed `created_i` slots, of which `evicted_i` have left it:

    created_0     = t + 1
    evicted_i     = m_(i+1) * max(0, ceil((created_i - n_i) / m_(i+1)))        (m = 1 for the last tier)
    created_(i+1) = evicted_i / m_(i+1)

with n_i slots and rates m_i. Unfolded, slot k of tier i is formed at exactly

    t = a_i + k * rho_i,        a_i = sum of n_j * rho_j over j < i,        rho_i = m_1 * ... * m_i

A step sees slot k exactly when evicted_i <= k < created_i. So slot k leaves at t = a_(i+1) + floor(k / m_(i+1)) *
rho_(i+1), or n_i * rho_i steps after it was formed where there is no next tier. The slot stands for the steps
[k * rho_i, (k + 1) * rho_i) and is kept at position k mod n_i of the tier's ring. Nothing here depends on the content
of slots, so the schedule of a whole window is known before its first layer runs (`plan_window`).

In a window of T steps each slot has a column, its place on the attention's key axis. Column c of a tier holds the slot
that is formed within the steps [(c - n) * rho, (c - n + 1) * rho) of the window, where negative steps are those before
it. There is at most one such slot, since a tier forms slots at least rho steps apart, across resets too. This has three
consequences. The first n columns are the stored slots, and the E = ceil(T / rho) others are formed in the window. No
column depends on anything before a reset. A step sees only the n + 1 columns up to its own, so a block of
steps attends to few of them (`attention.block_mask`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ctrl.compressive.tiers import Tier, spans

Steps = TypeVar("Steps", Tensor, npt.NDArray[np.int64])
"""Whole numbers of any shape: in torch for windows, in numpy for acting."""
EMPTY = -(2**62)
"""Centre of a slot that does not exist: so old that no step sees it."""


class Counts(NamedTuple):
    """Numbers of slots that one tier has formed and evicted; any shape, int64."""

    created: Tensor
    """Slots formed so far in this episode."""
    evicted: Tensor
    """Slots that have left the tier so far."""


class TierSchedule(NamedTuple):
    """Closed-form schedule of one tier: when it forms slots, and where they go."""

    slots: int
    """n, the number of slots."""
    rate: int
    """m, the slots of the tier below that become one."""
    span: int
    """rho, the steps that a slot stands for, and the steps from one new slot to the next."""
    first: int
    """a, the time at which slot 0 is formed."""
    block: int
    """Number of slots that leave together: the next tier's m; 1 for the last tier."""

    def count_columns(self, length: int) -> int:
        """Count the tier's columns in a window of `length` steps: n + E."""
        return self.slots + -(-length // min(self.span, length))

    def forms(self, time: Steps) -> Any:
        """Return bool, true where the tier forms a slot at `time`."""
        since_first = time - self.first
        return (since_first >= 0) & (since_first % self.span == 0)

    def newest(self, time: Steps) -> Steps:
        """Return the number k of the newest slot formed by `time`; negative where there is none."""
        return (time - self.first) // self.span

    def created(self, time: Tensor) -> Tensor:
        """Count the slots formed by `time`."""
        return (self.newest(time) + 1).clamp_min(0)

    def column(self, slot: Tensor, step: Tensor | int, time: Tensor) -> Tensor:
        """Return the columns of slots k = `slot`, all formed by `step` of the window, at `time` of the episode."""
        formed = step - (time - self.first - slot * self.span)
        return self.slots + formed // self.span

    def centre(self, slot: Steps) -> Steps:
        """Return the episode step in the middle of the steps that slots k = `slot` stand for, rounded up."""
        return slot * self.span + self.span // 2

    def block_centres(self) -> Tensor:
        """Return [m] the offset in steps of each block slot's centre from the centre of the slot that they become."""
        below = self.span // self.rate
        return torch.arange(self.rate) * below + below // 2 - self.span // 2

    def lifetime(self, slot: Tensor) -> Tensor:
        """Return for how many steps the tier holds slots k = `slot`; the slots of a block leave together."""
        return (self.slots - slot % self.block) * self.span

    def newest_in_ring(self, created: Tensor) -> Tensor:
        """Return [B, n] the newest slot k < created with k mod n equal to the position; negative where none is."""
        newest = created[:, None] - 1
        return newest - (newest - torch.arange(self.slots, device=created.device)) % self.slots


class TierPlan(NamedTuple):
    """One tier's slots during a window, in C = n + E columns; the first n are stored, the window forms the others."""

    schedule: TierSchedule
    exists: Tensor
    """[B, C] bool, true where the column holds a slot; where not, the next four are meaningless."""
    step: Tensor
    """[B, C] the step of the window at which the slot is formed; negative if before the window."""
    slot: Tensor
    """[B, C] the slot's number k within its episode."""
    episode: Tensor
    """[B, C] its episode, counted as in `WindowPlan`."""
    gone: Tensor
    """[B, C] the first step of the window that no longer sees the slot: evicted, or its episode is over."""
    stored: Tensor
    """[B, n] ring positions of the first n columns."""
    source: Tensor
    """[B, E, m] the columns of the tier below that are compressed into each of the last E columns."""
    ring: Tensor
    """[B, n] the column whose slot each ring position holds after the window."""
    kept: Tensor
    """[B, n] bool, true for ring positions that hold a slot after the window."""


class WindowPlan(NamedTuple):
    """Schedule of a window for one list of tiers: everything that does not depend on the content of slots."""

    time: Tensor
    """[B, T] int64, each step's index in its episode, from 0."""
    episode: Tensor
    """[B, T] int64, each step's episode: how many resets the env has seen since the window began."""
    tiers: list[TierPlan]

    @property
    def length(self) -> int:
        """T, the steps of the window."""
        return self.time.shape[1]

    @property
    def clock(self) -> Tensor:
        """[B] int64, steps of the current episode consumed by the end of the window."""
        return self.time[:, -1] + 1


def tier_schedules(tiers: Sequence[Tier]) -> list[TierSchedule]:
    """Return the schedule of each tier of a layer."""
    result, first = [], 0
    blocks = [*(tier.rate for tier in tiers[1:]), 1]
    for tier, span, block in zip(tiers, spans(tiers), blocks, strict=True):
        result.append(TierSchedule(tier.slots, tier.rate, span, first, block))
        first += tier.slots * span
    return result


def count_slots(tiers: Sequence[Tier], clock: Tensor) -> list[Counts]:
    """Return each tier's counts after `clock` steps of the episode.

    :param tiers: a layer's tiers
    :param clock: any shape, int64; 0 before the episode's first step
    """
    schedules = tier_schedules(tiers)
    created = [schedule.created(clock - 1) for schedule in schedules]
    evicted = [above * schedule.rate for above, schedule in zip(created[1:], schedules[1:], strict=True)]
    evicted.append((created[-1] - tiers[-1].slots).clamp_min(0))
    return [Counts(*counts) for counts in zip(created, evicted, strict=True)]


def ring_centres(tiers: Sequence[Tier], clock: Tensor) -> Tensor:
    """Return the centre of the slot at each position of a layer's rings, as a step of the episode.

    :param tiers: the layer's tiers
    :param clock: [B] steps of the current episode consumed so far
    :return: [B, S] the step in the middle of those that each slot stands for, rounded up; `EMPTY` where there is none
    """
    centres = []
    for schedule, counts in zip(tier_schedules(tiers), count_slots(tiers, clock), strict=True):
        slot = schedule.newest_in_ring(counts.created)
        kept = slot >= counts.evicted[:, None]
        centres.append(torch.where(kept, schedule.centre(slot), EMPTY))
    return torch.cat(centres, dim=1)


def oldest_age(tiers: Sequence[Tier], longest_time: int) -> int:
    """Return the age of the oldest slot that any step up to `longest_time` of an episode sees."""
    schedules = [schedule for schedule in tier_schedules(tiers) if schedule.first <= longest_time]
    # Slot 0 is the first of each tier, and no other lives longer.
    lasts = [min(longest_time, schedule.first + schedule.slots * schedule.span - 1) for schedule in schedules]
    return max(last - schedule.span // 2 for last, schedule in zip(lasts, schedules, strict=True))


def plan_window(tiers: Sequence[Tier], clock: Tensor, reset: Tensor) -> WindowPlan:
    """Plan a window of T steps.

    :param tiers: a layer's tiers
    :param clock: [B] int64, steps of the current episode consumed before the window
    :param reset: [B, T] bool, true where a step is the first of an episode
    """
    length = reset.shape[1]
    steps = torch.arange(length, device=reset.device)  # [T]
    begun = torch.where(reset, steps, -1).cummax(dim=1).values  # [B, T] the episode's first step; -1: before the window
    time = torch.where(begun < 0, clock[:, None] + steps, steps - begun)  # [B, T]
    episode = reset.cumsum(dim=1)  # [B, T]
    next_reset = torch.where(reset, steps, length).flip(1).cummin(dim=1).values.flip(1)  # [B, T] at or after each step
    next_reset = F.pad(next_reset, (0, 1), value=length)  # [B, T + 1], T where there is none
    schedules = tier_schedules(tiers)
    before, after = count_slots(tiers, clock), count_slots(tiers, time[:, -1] + 1)
    plans = []
    for tier, schedule in enumerate(schedules):
        old = _stored_columns(schedule, clock, before[tier].evicted, next_reset[:, :1])  # [B, n] each
        new = _formed_columns(schedule, time, episode, next_reset)  # [B, E] each
        exists, step, slot, of_episode, gone = (
            torch.cat(parts, dim=1) for parts in zip(old, new, strict=True)
        )  # [B, C]
        stored = old[2] % schedule.slots  # [B, n]
        source = _source_columns(schedule, schedules[max(tier - 1, 0)], time, new)  # [B, E, m]
        in_ring = schedule.newest_in_ring(after[tier].created)  # [B, n]
        kept = in_ring >= after[tier].evicted[:, None]  # [B, n]
        ring = torch.where(kept, schedule.column(in_ring, length - 1, time[:, -1:]), 0)  # [B, n]
        plans.append(TierPlan(schedule, exists, step, slot, of_episode, gone, stored, source, ring, kept))
    return WindowPlan(time, episode, plans)


def _stored_columns(
    schedule: TierSchedule, clock: Tensor, evicted: Tensor, next_reset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return exists, step, slot, episode and gone of the stored slots [B, n], as if their episode had no beginning.

    `exists` is false for slots that the episode never formed.
    """
    starts = torch.arange(-schedule.slots, 0, device=clock.device) * schedule.span  # [n]
    step = starts + (schedule.first - clock[:, None]) % schedule.span  # [B, n]
    slot = schedule.newest(clock[:, None] + step)
    exists = slot >= evicted[:, None]  # evicted is never negative, so no negative number exists
    gone = torch.minimum(step + schedule.lifetime(slot), next_reset)
    return exists, step, slot, torch.zeros_like(slot), gone


def _formed_columns(
    schedule: TierSchedule, time: Tensor, episode: Tensor, next_reset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return exists, step, slot, episode and gone of the slots [B, E] that the window forms."""
    forms = schedule.forms(time)  # [B, T]
    span = min(schedule.span, forms.shape[1])  # a window shorter than rho has a single column
    by_column = F.pad(forms, (0, -forms.shape[1] % span)).unflatten(1, (-1, span))  # [B, E, rho]
    starts = torch.arange(by_column.shape[1], device=forms.device) * schedule.span  # [E]
    step = starts + by_column.to(torch.uint8).argmax(dim=2)  # [B, E]
    slot = schedule.newest(time.gather(1, step))
    gone = torch.minimum(step + schedule.lifetime(slot), next_reset.gather(1, step + 1))
    return by_column.any(dim=2), step, slot, episode.gather(1, step), gone


def _source_columns(schedule: TierSchedule, below: TierSchedule, time: Tensor, formed: tuple[Tensor, ...]) -> Tensor:
    """Return [B, E, m] the columns of the tier below that become the slots `formed`; 0 where there is no slot."""
    exists, step, slot, *_ = formed
    merged = slot[:, :, None] * schedule.rate + torch.arange(schedule.rate, device=time.device)  # [B, E, m]
    source = below.column(merged, step[:, :, None], time.gather(1, step)[:, :, None])
    return torch.where(exists[:, :, None], source, 0)
