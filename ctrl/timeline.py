"""The memory timeline: which slot exists when, as a closed form of each env's own episode clock.

At step t of an episode tier i of a layer has formed `created_i` slots, of which `evicted_i` have left it:

    created_0     = t + 1
    evicted_i     = m_(i+1) * max(0, ceil((created_i - n_i) / m_(i+1)))        (m = 1 for the last tier)
    created_(i+1) = evicted_i / m_(i+1)

with n_i slots and rates m_i. Unfolded, slot k of tier i is formed at exactly

    t = a_i + k * rho_i,        a_i = sum of n_j * rho_j over j < i,        rho_i = m_1 * ... * m_i

A step sees slot k exactly when evicted_i <= k < created_i. The slot stands for the steps
[k * rho_i, (k + 1) * rho_i) and is kept at position k mod n_i of the tier's ring. Nothing here depends on what the
slots hold, so a whole window's masks, ages and moves are known before its first layer runs (`plan_window`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ctrl.memory import Tier, spans


class Counts(NamedTuple):
    """How far one tier has come; any shape, int64."""

    created: Tensor
    """Slots ever formed in this episode."""
    evicted: Tensor
    """Slots that have left the tier."""


class Formed(NamedTuple):
    """The slots that a tier forms in a window of T steps.

    They are at least rho steps apart, across resets too. So column c of E = ceil(T / rho) is the one that is formed
    within the steps [c * rho, (c + 1) * rho), if any, and its place does not depend on what happened before.
    """

    exists: Tensor
    """[B, E] bool"""
    step: Tensor
    """[B, E] the step of the window at which the slot is formed."""
    index: Tensor
    """[B, E] its number k within its episode."""
    episode: Tensor
    """[B, E] its episode's number within the window."""
    source: Tensor
    """[B, E, m] what it is compressed from: indices into the tier below, as in `TierPlan`. Tier 0: the step itself."""


class TierPlan(NamedTuple):
    """One tier's part of a window. S = n + E: the stored slots in ring order, then those formed in the window."""

    stored: Tensor
    """[B, n] bool, the stored slots that hold something real before the window."""
    formed: Formed
    visible: Tensor
    """[B, T, S] bool, true where step t may attend to slot s."""
    age: Tensor
    """[B, T, S] int64, steps from the slot's centre (rounded down) to step t; meaningless where not visible."""
    ring: Tensor
    """[B, n] indices into S: what each ring position holds after the window."""
    kept: Tensor
    """[B, n] bool, the ring positions that hold something real after the window."""


class WindowPlan(NamedTuple):
    """Everything about a window that does not depend on what is remembered."""

    clock: Tensor
    """[B] int64, steps of the current episode consumed after the window."""
    episode: Tensor
    """[B, T] int64, how many resets the env has seen since the window began."""
    tiers: list[TierPlan]


class _Rhythm(NamedTuple):
    """When one tier forms slots."""

    slots: int  # n
    span: int  # rho
    first: int  # a, the time at which slot 0 is formed
    rate: int  # m

    def time_formed(self, index: Tensor) -> Tensor:
        return self.first + index * self.span

    def created(self, time: Tensor) -> Tensor:
        return (torch.div(time - self.first, self.span, rounding_mode="floor") + 1).clamp_min(0)

    def newest_in_ring(self, created: Tensor) -> Tensor:
        """Return [B, n]: the newest slot k < created with k mod n equal to the position; negative where none is."""
        newest = created[:, None] - 1
        return newest - (newest - torch.arange(self.slots, device=created.device)).remainder(self.slots)


def count_slots(tiers: Sequence[Tier], clock: Tensor) -> list[Counts]:
    """Return each tier's counts once `clock` steps of the episode are consumed.

    :param tiers: a layer's tiers
    :param clock: any shape, int64; 0 before the episode's first step
    """
    rhythms = _rhythms(tiers)
    created = [rhythm.created(clock - 1) for rhythm in rhythms]
    merged = [above * rhythm.rate for above, rhythm in zip(created[1:], rhythms[1:], strict=True)]
    merged.append((created[-1] - rhythms[-1].slots).clamp_min(0))
    return [Counts(*counts) for counts in zip(created, merged, strict=True)]


def plan_window(tiers: Sequence[Tier], clock: Tensor, reset: Tensor) -> WindowPlan:
    """Plan a window of T steps.

    :param tiers: a layer's tiers
    :param clock: [B] int64, steps of the current episode consumed before the window
    :param reset: [B, T] bool, true where a step is the first of an episode
    """
    steps = torch.arange(reset.shape[1], device=reset.device)
    begun = torch.where(reset, steps, -1).cummax(dim=1).values  # [B, T] where the episode began; -1: before the window
    time = torch.where(begun < 0, clock[:, None] + steps, steps - begun)
    episode = reset.cumsum(dim=1)
    rhythms = _rhythms(tiers)
    before, after = count_slots(tiers, clock), count_slots(tiers, time + 1)
    plans = []
    for position, rhythm in enumerate(rhythms):
        below = rhythms[max(position - 1, 0)]
        formed = _plan_formed(rhythm, below, time, episode)
        plans.append(_plan_tier(rhythm, before[position], after[position], formed, time, episode))
    return WindowPlan(time[:, -1] + 1, episode, plans)


def _rhythms(tiers: Sequence[Tier]) -> list[_Rhythm]:
    rhythms, first = [], 0
    for tier, span in zip(tiers, spans(tiers), strict=True):
        rhythms.append(_Rhythm(tier.slots, span, first, tier.rate))
        first += tier.slots * span
    return rhythms


def _plan_formed(rhythm: _Rhythm, below: _Rhythm, time: Tensor, episode: Tensor) -> Formed:
    since_first = time - rhythm.first  # [B, T]
    forms = (since_first >= 0) & (since_first.remainder(rhythm.span) == 0)
    columns = F.pad(forms, (0, -forms.shape[1] % rhythm.span)).unflatten(1, (-1, rhythm.span))  # [B, E, rho]
    starts = torch.arange(columns.shape[1], device=time.device) * rhythm.span
    step = starts + columns.to(torch.uint8).argmax(dim=2)
    exists = columns.any(dim=2)
    index = torch.div(since_first.gather(1, step), rhythm.span, rounding_mode="floor")
    merged = index[:, :, None] * rhythm.rate + torch.arange(rhythm.rate, device=time.device)  # [B, E, m]
    source = _place(below, merged, step[:, :, None], time.gather(1, step)[:, :, None])
    return Formed(exists, step, index, episode.gather(1, step), torch.where(exists[:, :, None], source, 0))


def _plan_tier(
    rhythm: _Rhythm, before: Counts, after: Counts, formed: Formed, time: Tensor, episode: Tensor
) -> TierPlan:
    ring_before = rhythm.newest_in_ring(before.created)
    stored = (ring_before >= before.evicted[:, None]) & (ring_before >= 0)
    index = torch.cat([ring_before, formed.index], dim=1)[:, None, :]  # [B, 1, S]
    of_episode = torch.cat([torch.zeros_like(ring_before), formed.episode], dim=1)[:, None, :]
    exists = torch.cat([stored, formed.exists], dim=1)[:, None, :]
    visible = exists & (of_episode == episode[:, :, None])
    visible &= (after.evicted[:, :, None] <= index) & (index < after.created[:, :, None])
    age = time[:, :, None] - index * rhythm.span - rhythm.span // 2

    ring_after = rhythm.newest_in_ring(after.created[:, -1])
    kept = (ring_after >= after.evicted[:, -1:]) & (ring_after >= 0)
    ring = _place(rhythm, ring_after, time.shape[1] - 1, time[:, -1:])
    return TierPlan(stored, formed, visible, age, torch.where(kept, ring, 0), kept)


def _place(rhythm: _Rhythm, index: Tensor, step: Tensor | int, time: Tensor) -> Tensor:
    """Find slots among the S of a window: formed in it, or stored before it.

    :param index: the slots' numbers k, already formed at `step`
    :param step: a step of the window; broadcasts with `index`
    :param time: the episode's time at that step
    """
    formed_at = step - (time - rhythm.time_formed(index))
    column = torch.div(formed_at, rhythm.span, rounding_mode="floor")
    return torch.where(formed_at >= 0, rhythm.slots + column, index.remainder(rhythm.slots))
