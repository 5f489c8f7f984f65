"""Tiers, their reach, and the choice of tiers for a horizon."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ctrl
from ctrl.compressive.schedule import count_slots
from ctrl.compressive.tiers import always_seen, reach, spans


def oldest_seen(tiers: list[ctrl.Tier], steps: int) -> int:
    """Return how many steps back the last tier sees at least, once it is full, over `steps` phases of the clock."""
    clock = torch.arange(reach(tiers) + spans(tiers)[-1], reach(tiers) + spans(tiers)[-1] + steps)
    evicted = count_slots(tiers, clock)[-1].evicted
    return int((clock - 1 - evicted * spans(tiers)[-1]).min())


@pytest.mark.parametrize(
    "tiers",
    [
        [ctrl.Tier(5)],
        [ctrl.Tier(5), ctrl.Tier(3, 4)],
        [ctrl.Tier(7), ctrl.Tier(6, 3), ctrl.Tier(2, 5)],
        [ctrl.Tier(4), ctrl.Tier(4, 2), ctrl.Tier(3, 3), ctrl.Tier(5, 2)],
    ],
)
def test_what_is_always_seen_is_what_the_timeline_says(tiers: list[ctrl.Tier]) -> None:
    assert oldest_seen(tiers, 10 * spans(tiers)[-1]) == always_seen(tiers)


@pytest.mark.parametrize("slots", [26, 61, 128])
@pytest.mark.parametrize("steps", [1, 25, 26, 130, 1_000, 7_000])
def test_the_horizon_is_seen_at_all_times_with_no_more_slots(steps: int, slots: int) -> None:
    tiers = ctrl.memory_for_horizon(steps, slots=slots)
    assert oldest_seen(tiers, 2 * spans(tiers)[-1]) >= steps
    assert sum(tier.slots for tier in tiers) <= slots
    ctrl.make_core("compressive", 3, memory=tiers)


def test_a_million_steps_under_200_slots(capsys: pytest.CaptureFixture[str]) -> None:
    tiers = ctrl.memory_for_horizon(10**6, slots=199, compressor="mean")
    assert len(tiers) >= 3 and sum(tier.slots for tier in tiers) < 200
    assert capsys.readouterr().out == (
        "memory_for_horizon(1,000,000): Tier(33), Tier(33, rate=8), Tier(33, rate=8), Tier(33, rate=8), "
        "Tier(33, rate=8), Tier(33, rate=8); reach 1,235,817 steps, at least 1,203,049 at any time, with 198 slots per "
        "layer\n"
    )


def test_short_horizons_need_no_compression_and_long_ones_few_tiers() -> None:
    assert ctrl.memory_for_horizon(127, slots=128) == [ctrl.Tier(128)]
    assert ctrl.memory_for_horizon(128, slots=128) == [ctrl.Tier(64), ctrl.Tier(64, 2)]
    assert ctrl.memory_for_horizon(250, compressor="max") == [ctrl.Tier(64), ctrl.Tier(64, 3, "max")]


@pytest.mark.parametrize(
    ("steps", "slots", "words"),
    [
        (0, 128, "steps must be a whole number of at least 1, got 0"),
        (10, 0, "slots must be a whole number of at least 1, got 0"),
        (10**6, 8, "steps must be at most 22 for slots = 8, got 1,000,000"),
    ],
)
def test_horizons_that_cannot_be_are_refused(steps: int, slots: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ctrl.memory_for_horizon(steps, slots=slots)


def with_another_cue(tiers: list[ctrl.Tier], core: Any, state: Any, inputs: Tensor, reset: Tensor) -> Tensor:
    """Return the outputs of a one-layer core after a change of the oldest slot that the first step can see."""
    oldest = count_slots(tiers, state.clock + 1)[-1].evicted % tiers[-1].slots
    slots = state.slots.clone()
    slots[torch.arange(len(slots)), sum(tier.slots for tier in tiers[:-1]) + oldest] = torch.randn(slots.shape[2])
    changed: Tensor = core.unroll(inputs, state._replace(slots=slots), reset).outputs
    return changed


def test_a_cue_is_seen_a_million_steps_later() -> None:
    """The window is at the end of a long episode; the oldest slots still hold the episode's first steps."""
    tiers = ctrl.memory_for_horizon(10**6, slots=199)
    torch.manual_seed(0)
    core = ctrl.make_core("compressive", 3, layers=1, width=8, heads=2, memory=tiers)
    empty = core.initial_state(2)
    slots = torch.randn(empty.slots.shape)
    state = empty._replace(clock=torch.tensor([10**6, 999_983]), slots=slots)
    inputs, reset = torch.randn(2, 17, 3), torch.zeros(2, 17, dtype=torch.bool)
    unrolled = core.unroll(inputs, state, reset)
    assert (
        (with_another_cue(tiers, core, state, inputs, reset) - unrolled.outputs)[:, 0].abs().amax(dim=1) > 1e-6
    ).all()
    layers = core.explain(inputs, state, reset).layers  # type: ignore[operator]
    assert int(layers[0][-1].age.max()) > 10**6 - 8**5
    acting = core.acting(state)
    for t in range(17):
        stepped, state = core.step(inputs[:, t], state, reset[:, t])
        torch.testing.assert_close(stepped, unrolled.outputs[:, t], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(acting.step(inputs[:, t], reset[:, t]), stepped, rtol=1e-4, atol=1e-5)
