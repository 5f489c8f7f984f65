"""The step of the episode: its features by hand, who knows it, and that no slot holds it."""

from __future__ import annotations

import math

import pytest
import torch

from ctrl import Tier
from ctrl.band import age_row, exact_ages
from ctrl.clock import CLOCK_FEATURES, PERIODS, clock_features
from ctrl.compressive import CompressiveCore


def make_core(**options: object) -> CompressiveCore:
    torch.manual_seed(0)
    return CompressiveCore(3, **{"width": 16, "heads": 4, "memory": [Tier(4), Tier(4, 2, "max")], **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("time", [0, 1, 77, 2047, 10**12 + 5])
def test_features_by_hand(time: int) -> None:
    """Phases are exact at any time: whole periods are left out before anything is rounded."""
    phases = [2 * math.pi * (time % period) / period for period in PERIODS]
    expected = torch.tensor([*map(math.sin, phases), *map(math.cos, phases)])
    torch.testing.assert_close(clock_features(torch.tensor([time]), torch.float32)[0], expected, rtol=0, atol=1e-6)


def test_all_steps_of_two_thousand_are_told_apart() -> None:
    features = clock_features(torch.arange(2000), torch.float64)
    assert features.shape == (2000, CLOCK_FEATURES)
    distances = torch.cdist(features, features) + 10 * torch.eye(2000, dtype=torch.float64)
    assert distances.min() > 0.5


def test_at_first_the_time_has_no_effect() -> None:
    with_clock, without = make_core(), make_core(clock=False)
    without.load_state_dict({name: value for name, value in with_clock.state_dict().items() if "clock" not in name})
    inputs, reset = torch.randn(2, 9, 3), torch.zeros(2, 9, dtype=torch.bool)
    found, expected = (core.unroll(inputs, core.initial_state(2), reset).outputs for core in (with_clock, without))
    torch.testing.assert_close(found, expected)


def test_no_slot_holds_the_time() -> None:
    core = make_core()
    inputs, reset = torch.ones(1, 9, 3), torch.zeros(1, 9, dtype=torch.bool)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if "clock" in name:
                parameter.normal_()
    unrolled = core.unroll(inputs, core.initial_state(1), reset)
    assert len(unrolled.outputs[0].unique(dim=0)) == 9
    kept = unrolled.state.slots[0, unrolled.state.slots[0].any(dim=1)]
    torch.testing.assert_close(kept, kept[:1].expand_as(kept))


@pytest.mark.parametrize(("heads", "knowing"), [(1, [0]), (2, [0]), (3, [0, 1]), (4, [1, 2]), (8, [2, 3, 4, 5])])
def test_half_of_the_heads_know_the_time(heads: int, knowing: list[int]) -> None:
    """Equal inputs of any time have equal weights to the other heads."""
    core = make_core(heads=heads, width=24, memory=[Tier(5)], forgetting=False)
    attention = core.layers[0].attention
    with torch.no_grad():
        attention.key_clock.weight.normal_()  # type: ignore[union-attr, operator]
    inputs, reset = torch.ones(1, 5, 3), torch.zeros(1, 5, dtype=torch.bool)
    weights = core.explain(inputs, core.initial_state(1), reset).layers[0][0].attention[0, :, -1]
    spread = weights[:, -5:].amax(dim=1) - weights[:, -5:].amin(dim=1)
    assert [head for head in range(heads) if spread[head] > 1e-4] == knowing


@pytest.mark.parametrize("slots", [1, 32, 33, 64, 65, 300])
def test_all_ages_of_raw_slots_have_a_row_each(slots: int) -> None:
    tiers = (Tier(slots), Tier(3, 1))
    exact = exact_ages(tiers)
    assert exact >= slots and exact.bit_count() == 1
    rows = age_row(torch.arange(4 * exact), exact)
    assert rows[:exact].tolist() == list(range(exact))
    octaves = rows[exact:].unique(return_counts=True)
    assert octaves[0].tolist() == list(range(exact, exact + 8))
    assert octaves[1].tolist() == [exact // 4] * 4 + [exact // 2] * 4
