"""Rates that layers choose: the rule, and memories that are read with other rates than they were written with."""

from __future__ import annotations

import pytest
import torch

from ctrl.adaptive import HIGH, LOW, CompressorOfRates, next_rate, rate_choices, resample, with_rate
from ctrl.memory import Tier, reach
from ctrl.timeline import EMPTY, ring_centres

TIERS = (Tier(9), Tier(5, 4, "max"), Tier(3, 2, "mean"))
CLOCK = torch.tensor([0, 1, 9, 10, 14, 40, 77, 1_000_003])


def test_choices_are_half_once_and_twice_the_rate_as_far_as_the_tier_below_allows() -> None:
    assert rate_choices(TIERS) == (2, 4, 8)
    assert rate_choices((Tier(7), Tier(5, 4))) == (2, 4)
    assert rate_choices((Tier(7), Tier(5, 1))) == (1, 2)
    assert rate_choices((Tier(7), Tier(5, 7))) == (3, 7)
    assert rate_choices((Tier(7),)) == ()
    assert with_rate(TIERS, 8) == (Tier(9), Tier(5, 8, "max"), Tier(3, 2, "mean"))


def test_the_rate_follows_the_error() -> None:
    middle = (LOW + HIGH) / 2
    assert [next_rate(4, error, (2, 4, 8)) for error in (0.0, LOW, middle, HIGH, 1.0)] == [8, 4, 4, 4, 2]
    assert [next_rate(rate, 0.0, (2, 4, 8)) for rate in (2, 4, 8)] == [4, 8, 8]
    assert [next_rate(rate, 1.0, (2, 4, 8)) for rate in (2, 4, 8)] == [2, 2, 4]


def test_a_memory_that_is_read_as_it_was_written_is_the_same() -> None:
    slots = torch.randn(len(CLOCK), 17, 3)
    kept = ring_centres(TIERS, CLOCK) != EMPTY
    read = resample(TIERS, TIERS, CLOCK, slots)
    assert torch.equal(read, torch.where(kept[:, :, None], slots, 0))


@pytest.mark.parametrize("rate", [2, 8])
def test_each_slot_becomes_the_one_whose_centre_is_closest(rate: int) -> None:
    new = with_rate(TIERS, rate)
    centres = ring_centres(TIERS, CLOCK)
    slots = centres[:, :, None].double()  # each slot says where it stands
    read, wanted = resample(TIERS, new, CLOCK, slots)[:, :, 0], ring_centres(new, CLOCK)
    for env in range(len(CLOCK)):
        written = centres[env][centres[env] != EMPTY]
        for position in range(17):
            if wanted[env, position] == EMPTY:
                assert read[env, position] == 0
            else:
                best = (written - wanted[env, position]).abs().min()
                assert (read[env, position] - wanted[env, position]).abs() == best


def test_a_higher_rate_reaches_further_once_it_is_lived_in() -> None:
    assert reach(with_rate(TIERS, 8)) > reach(TIERS) > reach(with_rate(TIERS, 2))


def test_the_block_says_which_compressor_is_asked() -> None:
    compressor = CompressorOfRates("conv", 6, (2, 4))
    for rate in (2, 4):
        blocks = torch.randn(5, rate, 6)
        torch.testing.assert_close(compressor(blocks), blocks.mean(dim=1))
        own = compressor.by_rate[str(rate)].weight
        (gradient,) = torch.autograd.grad(compressor(blocks).sum(), own)  # type: ignore[arg-type]
        assert gradient.shape == (rate * 6, 6) and gradient.any()
