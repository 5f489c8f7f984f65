"""`graph_step`, the step that exporters trace: the same as `step`, for every core."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_laws import INPUTS, OPTIONS, build

import ctrl
from ctrl import MemoryCore, Tier
from ctrl.compressive.attention.block_mask import age_bucket, exact_ages, masked_bucket
from ctrl.compressive.graph_step import first_ages
from ctrl.compressive.tiers import reach

BATCH, STEPS = 4, 40


def assert_same_steps(core: MemoryCore[Any], steps: int, atol: float) -> None:
    """Take steps in both ways, each with its own state; episodes are staggered, and the first state is full of NaN."""
    torch.manual_seed(3)
    clean = core.initial_state(BATCH)
    states = [core.make_state(leaf.fill_(torch.nan) if leaf.is_floating_point() else leaf + 9 for leaf in clean)] * 2
    for t in range(steps):
        inputs, reset = torch.randn(BATCH, INPUTS).to(core.dtype), torch.rand(BATCH) < 0.03
        reset |= torch.tensor(t == 0)
        with torch.no_grad():
            expected, states[0] = core.step(inputs, states[0], reset)
            found, states[1] = core.graph_step(inputs, states[1], reset)
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)
        core.check_state(states[1], BATCH)
        for name, one, other in zip(core.state_fields, *states, strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", OPTIONS)
def test_graph_steps_equal_steps(name: str) -> None:
    """In float64, where rounding can't hide a mistake."""
    core = build(name).double()
    core.adapt({"longest_time": 21.0})
    assert_same_steps(core, STEPS, atol=1e-9)


def test_graph_steps_of_the_default_memory_equal_steps() -> None:
    torch.manual_seed(0)
    assert_same_steps(ctrl.make_core("compressive", INPUTS, width=16), 100, atol=2e-5)


def test_a_state_before_a_reset_does_not_matter() -> None:
    core = build("compressive, most missed")
    inputs, reset = torch.randn(BATCH, INPUTS), torch.tensor([True, False, True, True])
    wild = core.initial_state(BATCH)
    wild = core.make_state(leaf.fill_(torch.inf) if leaf.is_floating_point() else leaf + 30 for leaf in wild)
    clean = core.initial_state(BATCH)
    with torch.no_grad():
        (one, after), (other, after_clean) = (core.graph_step(inputs, state, reset) for state in (wild, clean))
    assert torch.equal(one[reset], other[reset])
    assert all(torch.equal(leaf[reset], clean_leaf[reset]) for leaf, clean_leaf in zip(after, after_clean, strict=True))


@pytest.mark.parametrize(
    "tiers",
    [(Tier(3),), (Tier(64), Tier(8, 8), Tier(8, 8), Tier(8, 8)), (Tier(70), Tier(2, 50), Tier(2, 2), Tier(900, 2))],
    ids=str,
)
def test_buckets_by_their_first_ages_are_those_of_all_ages(tiers: tuple[Tier, ...]) -> None:
    exact, firsts = exact_ages(tiers), torch.tensor(first_ages(tiers), dtype=torch.int64)
    ages = torch.arange(reach(tiers) + 1)
    buckets = ages.clamp_max(exact - 1) + (ages[:, None] >= firsts).sum(dim=1)
    assert torch.equal(buckets, age_bucket(ages, exact)) and int(buckets.max()) < masked_bucket(tiers)


def test_buckets_of_ages_that_floats_round_are_the_same() -> None:
    tiers = (Tier(4), Tier(4, 2), *[Tier(4, 4)] * 16)
    firsts = first_ages(tiers)
    for first in [first for first in firsts if first > 2**24]:
        one, before = age_bucket(torch.tensor([first, first - 1]), exact_ages(tiers)).tolist()
        assert (one, before) == (one, one - 1) and firsts[one - exact_ages(tiers)] == first
