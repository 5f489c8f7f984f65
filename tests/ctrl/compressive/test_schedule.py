"""Closed form of the timeline, compared with a simulation that moves slots between Python lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrl.compressive.attention.block_mask import (
    BY_DISTANCE,
    COPIES,
    BlockLayout,
    ages,
    find_buckets,
    lay_out,
    masked_bucket,
)
from ctrl.compressive.schedule import WindowPlan, count_slots, oldest_age, plan_window
from ctrl.compressive.tiers import Tier, reach, spans, tiers_by_layer


@st.composite
def tier_lists(draw: st.DrawFn) -> tuple[Tier, ...]:
    tiers = [Tier(draw(st.integers(1, 6)))]
    for _ in range(draw(st.integers(0, 3))):
        rate = draw(st.integers(1, tiers[-1].slots))
        tiers.append(Tier(draw(st.integers(1, 5)), rate=rate))
    return tuple(tiers)


class ListTimeline:
    """One env's tiers as lists of (first step, last step) spans, oldest first: a simulation of the text of DESIGN 3."""

    def __init__(self, tiers: tuple[Tier, ...]) -> None:
        self.tiers = tiers
        self.lists: list[list[tuple[int, int]]] = [[] for _ in tiers]
        self.created = [0] * len(tiers)

    def step(self, time: int) -> None:
        self._insert(0, (time, time))

    def _insert(self, level: int, span: tuple[int, int]) -> None:
        slots = self.lists[level]
        slots.append(span)
        self.created[level] += 1
        last = level + 1 == len(self.tiers)
        rate = 1 if last else self.tiers[level + 1].rate
        if len(slots) > self.tiers[level].slots:
            block = [slots.pop(0) for _ in range(rate)]
            if not last:
                self._insert(level + 1, (block[0][0], block[-1][1]))


@settings(max_examples=200, deadline=None)
@given(tiers=tier_lists(), length=st.integers(1, 150))
def test_counts_equal_lists(tiers: tuple[Tier, ...], length: int) -> None:
    simulation = ListTimeline(tiers)
    for time in range(length):
        simulation.step(time)
        counts = count_slots(tiers, torch.tensor(time + 1))
        assert [int(count.created) for count in counts] == simulation.created
        resident = [int(count.created - count.evicted) for count in counts]
        assert resident == [len(slots) for slots in simulation.lists]


@settings(max_examples=200, deadline=None)
@given(data=st.data(), tiers=tier_lists(), length=st.integers(1, 80))
def test_window_shows_exactly_the_slots_of_the_lists(data: st.DataObject, tiers: tuple[Tier, ...], length: int) -> None:
    """Every step sees exactly the spans that the lists hold at that step, for any clocks and resets.

    Their ages and distances are right, too: a slot's distance is the number of newer slots in all tiers.
    """
    batch = 3
    clocks = data.draw(st.lists(st.integers(0, 90), min_size=batch, max_size=batch))
    resets = [data.draw(st.lists(st.booleans(), min_size=length, max_size=length)) for _ in range(batch)]
    plan = plan_window(tiers, torch.tensor(clocks), torch.tensor(resets))
    seen = Seen(tiers, plan)
    for env in range(batch):
        simulation, time = ListTimeline(tiers), 0
        for time in range(clocks[env]):
            simulation.step(time)
        time = clocks[env]
        for step in range(length):
            if resets[env][step]:
                simulation, time = ListTimeline(tiers), 0
            simulation.step(time)
            joined = [(level, slot) for level in reversed(range(len(tiers))) for slot in simulation.lists[level]]
            for level, span in enumerate(spans(tiers)):
                expected = [
                    (time - first - span // 2, len(joined) - 1 - joined.index((level, (first, last))))
                    for first, last in simulation.lists[level]
                ]
                assert sorted(seen.ages_and_distances(env, step, level), reverse=True) == expected
            time += 1
        assert int(plan.clock[env]) == time
        for tier, slots in zip(plan.tiers, simulation.lists, strict=True):
            assert int(tier.kept[env].sum()) == len(slots)


class Seen:
    """Slots that each step of a planned window sees, with their ages and distances."""

    def __init__(self, tiers: tuple[Tier, ...], plan: WindowPlan) -> None:
        self.layout: BlockLayout = lay_out(tiers, plan.length, plan.clock.device)
        self.age = ages(plan, self.layout)
        self.visible = find_buckets(tiers, plan, self.layout) // COPIES != masked_bucket(tiers)
        self.distance = find_buckets(tiers, plan, self.layout, BY_DISTANCE) // COPIES
        assert torch.equal(self.distance != sum(tier.slots for tier in tiers), self.visible)

    def ages_and_distances(self, env: int, step: int, level: int) -> list[tuple[int, int]]:
        """Return the ages and distances of the slots of one tier that one step sees."""
        block, row = divmod(step, self.age.shape[2])
        parts = (self.age, self.distance, self.visible)
        age, distance, visible = (part[env, block, row].split(self.layout.widths)[level] for part in parts)
        return list(zip(age[visible].tolist(), distance[visible].tolist(), strict=True))


@settings(max_examples=100, deadline=None)
@given(tiers=tier_lists(), length=st.integers(1, 150))
def test_the_oldest_age_is_that_of_the_lists(tiers: tuple[Tier, ...], length: int) -> None:
    simulation, oldest = ListTimeline(tiers), 0
    for time in range(length):
        simulation.step(time)
        for slots in simulation.lists:
            oldest = max([oldest, *(time - (first + (last - first + 1) // 2) for first, last in slots)])
        assert oldest_age(tiers, time) == oldest


def test_counts_at_a_million_steps() -> None:
    tiers = (Tier(32), Tier(32, rate=4), Tier(32, rate=8))
    counts = count_slots(tiers, torch.tensor(1_000_001))
    assert [(int(created - evicted)) for created, evicted in counts] == [29, 25, 32]
    assert int(counts[0].created) == 1_000_001


def test_a_rate_below_the_slot_count_keeps_the_step_itself_visible() -> None:
    tiers = (Tier(1), Tier(2, rate=1))
    plan = plan_window(tiers, torch.tensor([5]), torch.zeros(1, 4, dtype=torch.bool))
    assert [Seen(tiers, plan).ages_and_distances(0, step, 0) for step in range(4)] == [[(0, 0)]] * 4


def test_reach_and_spans() -> None:
    tiers = (Tier(64), Tier(64, rate=4), Tier(10, rate=2))
    assert spans(tiers) == [1, 4, 8]
    assert reach(tiers) == 64 + 64 * 4 + 10 * 8


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        ([], "empty"),
        ([Tier(3), Tier(8, rate=4)], "rate = 4.*slots = 3"),
        ([Tier(8, rate=2)], "rate must be 1, got 2"),
        ([[Tier(8)], [Tier(8)], [Tier(8)]], "3 layers, but layers is 2"),
        ([Tier(8), [Tier(8)]], "one list of Tier per layer, got"),
        ([[Tier(8)], []], "layer 1"),
        ([["raw"], [Tier(8)]], "layer 0"),
        (Tier(8), "must be a list of Tier"),
        ([8, 8], "must be a list of Tier"),
        ("16,8x8", "must be a list of Tier.*got '16,8x8'"),
        ([Tier(64), *[Tier(64, 64)] * 10], r"memory of layer 0 must reach fewer than 2\*\*60 steps.*got 7.5e\+19; use"),
    ],
)
def test_tiers_that_do_not_fit_are_refused(memory: list, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiers_by_layer(memory, layers=2)


@pytest.mark.parametrize("options", [{"slots": 0}, {"slots": 2.5}, {"slots": 4, "rate": 0}, {"slots": True}])
def test_tier_sizes_are_checked(options: dict) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Tier(**options)
