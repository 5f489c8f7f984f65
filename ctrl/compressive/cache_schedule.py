"""Schedule of single steps in B envs: which slots are formed at a step, and where they go.

It follows from each env's clock alone (see `ctrl.compressive.schedule`). It runs in numpy on the host, once for all
layers with the same tiers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ctrl.compressive.attention.block_mask import age_bucket, exact_ages, masked_bucket
from ctrl.compressive.schedule import EMPTY, TierSchedule, ring_centres, tier_schedules
from ctrl.compressive.tiers import Tiers, reach

Integers = npt.NDArray[np.int64]

TABLE = 2**16
"""Limit of the reach up to which the buckets of all ages are kept in a table."""


class Merge(NamedTuple):
    """Slots that one tier forms in a step, in K of the envs."""

    tier: int
    source: Tensor
    """[K m] positions of the slots to compress, numbered through all envs."""
    held: Tensor
    """[m] for how many steps the tier below has held each slot of a block."""
    to_new_centre: Tensor
    """[m] what to add to the time that each slot carries, so that it counts from the new slot's centre."""


class Moves(NamedTuple):
    """Changes of a layer's rings in one step: first all blocks are read, then all new slots are written."""

    merges: list[Merge]
    target: Tensor
    """[K + B] positions of the new slots: those of the merges in their order, then the step's own."""
    head_target: Tensor
    """[2 (K + B) H] the same for their keys, and then their values, in the rings of each head."""
    buckets: Tensor
    """[B S] the bucket of each position, or its age where `CacheSchedule.bucket_of_age` is not None."""
    centres: Tensor
    """[K + B] the step of the episode in the centre of each new slot."""


class CacheSchedule:
    """Positions of a layer's slots in the rings of B envs, each with S positions, tier by tier.

    :param tiers: the layer's tiers
    :param heads: H
    :param clock: [B] steps of the current episode consumed so far
    :param expand_biases: whether layers keep their biases by age, which saves time from the second step on
    """

    def __init__(self, tiers: Tiers, heads: int, clock: Tensor, *, expand_biases: bool) -> None:
        self._schedules = tier_schedules(tiers)
        self._oldest = reach(tiers)
        self._exact = exact_ages(tiers)
        self._masked = masked_bucket(tiers)
        self.bucket_of_age: Tensor | None = None
        """[E] the bucket of each age, and last the masked one. Layers use it to expand their biases to one for each
        age. None where there are too many ages for that, or it would not pay."""
        if expand_biases and self._oldest < TABLE:
            self.bucket_of_age = F.pad(
                age_bucket(torch.arange(self._oldest + 1), self._exact), (0, 1), value=self._masked
            ).to(clock.device)
        sizes = [tier.slots for tier in tiers]
        self._offsets = np.cumsum([0, *sizes[:-1]]).tolist()
        self._size = sum(sizes)
        self._base = np.arange(len(clock)) * self._size
        parts, rings = np.arange(2)[:, None, None], np.arange(heads)  # [2, 1, 1], [H]
        self._head = (parts * len(clock) * heads + rings) * self._size  # [2, 1, H]
        self._heads = heads
        self.centre: Integers = ring_centres(tiers, clock).cpu().numpy()
        """[B, S] the step of the episode in the centre of each slot, rounded up; `EMPTY` where there is none."""
        self._flat_centre = self.centre.reshape(-1)  # a view

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """[B, S] bool, true where a position holds a slot."""
        return np.not_equal(self.centre, EMPTY)

    def forget(self, envs: Integers) -> None:
        """Empty the rings of some envs."""
        self.centre[envs] = EMPTY

    def advance(self, time: Integers, device: torch.device) -> Moves:
        """Advance by the step at `time` [B] of each env's episode, and return its moves."""
        flat = self._flat_centre
        merges, targets = [], []
        for tier in range(len(self._schedules) - 1, 0, -1):  # last first: a new slot may take a merged slot's position
            schedule, below = self._schedules[tier], self._schedules[tier - 1]
            due = np.flatnonzero(schedule.forms(time))
            if not len(due):
                continue
            slot = schedule.newest(time[due])
            merged = (slot[:, None] * schedule.rate + np.arange(schedule.rate)) % below.slots
            source = (self._base[due, None] + self._offsets[tier - 1] + merged).reshape(-1)
            target = self._base[due] + self._offsets[tier] + slot % schedule.slots
            flat[source] = EMPTY
            flat[target] = schedule.centre(slot)
            merges.append(Merge(tier, torch.from_numpy(source).to(device), *_block_facts(schedule, below, device)))
            targets.append(target)
        targets.append(self._base + time % self._schedules[0].slots)
        flat[targets[-1]] = time
        target = np.concatenate(targets) if merges else targets[0]
        parts = (target, self._by_head(target), self._places_in_table(time), flat[target])
        return Moves(merges, *(torch.from_numpy(part).to(device) for part in parts))

    def _by_head(self, target: Integers) -> Integers:
        """Return positions in the rings of each head, for keys and then values [2, B, H, S]: [N] -> [2 N H]."""
        env = target // self._size
        positions: Integers = (self._head + (target + env * ((self._heads - 1) * self._size))[:, None]).reshape(-1)
        return positions

    def _places_in_table(self, time: Integers) -> Integers:
        """Return [B S] the bucket of each position's bias, or its age if `bucket_of_age` maps ages to buckets."""
        # Empty positions get the age after the oldest.
        age: Integers = np.minimum(time[:, None] - self.centre, self._oldest + 1).reshape(-1)
        if self.bucket_of_age is not None:
            return age
        return np.where(age > self._oldest, self._masked, age_bucket(torch.from_numpy(age), self._exact).numpy())


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # the cached tensors may be made while acting and used elsewhere later
def _block_facts(schedule: TierSchedule, below: TierSchedule, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return [m] `Merge.held` and [m] `Merge.to_new_centre` of a tier's blocks."""
    return below.lifetime(torch.arange(schedule.rate)).to(device), schedule.block_centres().to(device)
