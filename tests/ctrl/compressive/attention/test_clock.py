"""Tests of the clock: its features by hand, the heads that know it, and the content of slots, which doesn't."""

from __future__ import annotations

import math

import pytest
import torch

from ctrl import Tier
from ctrl.compressive.attention.block_mask import age_bucket, exact_ages
from ctrl.compressive.attention.clock import CLOCK_FEATURES, NEVER, PERIODS, EpisodeClock, TimeQueries, time_keys
from ctrl.compressive.attention.memory_attention import MemoryAttention
from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.schedule import ring_centres


def make_core(**options: object) -> CompressiveCore:
    torch.manual_seed(0)
    return CompressiveCore(3, **{"width": 16, "heads": 4, "memory": [Tier(4), Tier(4, 2, "max")], **options})  # type: ignore[arg-type]


def attention_of(core: CompressiveCore) -> MemoryAttention:
    attention = core.layers[0].attention
    assert isinstance(attention, MemoryAttention)
    return attention


@pytest.mark.parametrize("time", [0, 1, 77, 2047, 10**12 + 5])
def test_features_by_hand(time: int) -> None:
    """Phases are exact at any time: whole periods are removed before anything is rounded."""
    found = EpisodeClock()(torch.tensor([time]), torch.float32)[0]
    torch.testing.assert_close(found, by_hand(time), rtol=0, atol=1e-6)


def by_hand(time: float) -> torch.Tensor:
    phases = [2 * math.pi * (time % period) / period for period in PERIODS]
    return torch.tensor([*map(math.sin, phases), *map(math.cos, phases)])


@pytest.mark.parametrize("time", [3, 250, 251, 300, 9_000, 10**12 + 5])
@pytest.mark.parametrize("shift", [None, 0.0, -2.75, 6.5, -240.0])
def test_the_clock_stands_still_after_the_longest_time_of_training(time: int, shift: float | None) -> None:
    clock, given = EpisodeClock(), None if shift is None else torch.tensor([shift])
    for longest, end in ((None, NEVER), (17, 17), (250, 250), (40, 250)):
        if longest is not None:
            clock.settle(longest)
        assert int(clock.end) == end
        found = clock(torch.tensor([time]), torch.float32, given)[0]
        torch.testing.assert_close(found, by_hand(min(time + (shift or 0), end)), rtol=0, atol=5e-5)


def test_an_update_tells_the_clock_how_long_its_episodes_were() -> None:
    core, inputs, reset = make_core(), torch.randn(2, 9, 3), torch.zeros(2, 9, dtype=torch.bool)
    assert core.clock is not None
    state = core.unroll(inputs, core.initial_state(2), reset).state
    reset[0, 5] = reset[1, 4] = True
    diagnostics = core.unroll(inputs, state, reset).diagnostics
    assert int(diagnostics["longest_time"]) == 13
    assert int(core.clock.end) == NEVER
    core.adapt({name: float(value) for name, value in diagnostics.items()})
    assert int(core.clock.end) == 13
    core.adapt({})
    assert int(core.clock.end) == 13
    again = make_core()
    again.load_state_dict(core.state_dict())
    assert again.clock is not None and int(again.clock.end) == 13


def test_a_plan_does_not_outlive_the_clock_that_it_was_made_by() -> None:
    core, inputs, reset = make_core(), torch.randn(2, 9, 3), torch.zeros(2, 9, dtype=torch.bool)
    state = core.initial_state(2)
    plan = core.plan(state, reset)
    core.unroll(inputs, state, reset, plan=plan)
    core.adapt({"longest_time": 5.0})
    with pytest.raises(ValueError, match="plan was made before `adapt` moved the core's clock"):
        core.unroll(inputs, state, reset, plan=plan)


@pytest.mark.parametrize("longest", [math.nan, math.inf, -1.0, "7"])
def test_a_longest_time_that_no_episode_has_is_refused(longest: float) -> None:
    core = make_core()
    with pytest.raises(ValueError, match="longest_time must be a finite number, at least 0, got"):
        core.adapt({"longest_time": longest})
    assert core.clock is not None and int(core.clock.end) == NEVER


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-6), (torch.bfloat16, 0.02)])
def test_phases_are_exact_far_from_the_middle_of_a_slot(dtype: torch.dtype, near: float) -> None:
    time, shift = 2**20 + 77, -(2.0**20)
    found = EpisodeClock()(torch.tensor([time]), dtype, torch.tensor([shift], dtype=dtype))[0]
    torch.testing.assert_close(found.float(), by_hand(77), rtol=0, atol=near)


def test_acting_follows_the_clock_that_settles_in_the_middle_of_an_episode() -> None:
    core, inputs = make_core(), torch.randn(2, 40, 3)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if "clock" in name or "time" in name:
                parameter.normal_()
    state, reset = core.initial_state(2), torch.zeros(2, 20, dtype=torch.bool)
    state = core.unroll(inputs[:, :20], state, reset).state
    acting = core.acting(state)
    before = core.unroll(inputs[:, 20:], state, reset).outputs
    core.adapt({"longest_time": 17.0})  # the memory holds later steps, which now count as that one
    after = core.unroll(inputs[:, 20:], state, reset).outputs
    steps = [acting.step(inputs[:, t], reset[:, 0]) for t in range(20, 40)]
    torch.testing.assert_close(torch.stack(steps, dim=1), after, rtol=1e-4, atol=1e-5)
    assert (before - after).abs().max() > 0.01


def test_what_is_kept_is_found_at_its_own_time_however_often_it_was_compressed() -> None:
    """A compressor that keeps one slot hands on the step of its content: here the only input that differs."""
    tiers = (Tier(4), Tier(4, 3, "select"), Tier(5, 4, "select"))
    core = make_core(memory=list(tiers))
    for special in (0, 1, 7, 11):
        inputs, reset = torch.ones(1, 40, 3), torch.zeros(1, 40, dtype=torch.bool)
        inputs[0, special] = torch.tensor([-3.0, 2.0, 5.0])
        state = core.unroll(inputs, core.initial_state(1), reset).state
        own = ring_centres(tiers, state.clock)[0] + state.carried[0, :, -1]
        slot = (state.slots[0] - core.embed(inputs[0, special])).abs().amax(dim=1) < 1e-5
        assert slot.sum() == 1 and int(slot.nonzero()) >= 8  # in the last tier, where a slot stands for 12 steps
        assert own[slot].tolist() == [special]


def test_all_steps_of_two_thousand_are_told_apart() -> None:
    features = EpisodeClock()(torch.arange(2000), torch.float64)
    assert features.shape == (2000, CLOCK_FEATURES)
    distances = torch.cdist(features, features) + 10 * torch.eye(2000, dtype=torch.float64)
    assert distances.min() > 0.5


def test_at_first_the_time_has_no_effect() -> None:
    with_clock, without = make_core(), make_core(clock=False)
    without.load_state_dict(
        {name: value for name, value in with_clock.state_dict().items() if name in without.state_dict()}
    )
    inputs, reset = torch.randn(2, 9, 3), torch.zeros(2, 9, dtype=torch.bool)
    found, expected = (core.unroll(inputs, core.initial_state(2), reset).outputs for core in (with_clock, without))
    torch.testing.assert_close(found, expected)


def test_no_content_of_a_slot_holds_the_time() -> None:
    core = make_core()
    inputs, reset = torch.ones(1, 9, 3), torch.zeros(1, 9, dtype=torch.bool)
    with torch.no_grad():
        for name, parameter in core.named_parameters():
            if "clock" in name or "time" in name:
                parameter.normal_()
    unrolled = core.unroll(inputs, core.initial_state(1), reset)
    assert len(unrolled.outputs[0].unique(dim=0)) == 9
    kept = unrolled.state.slots[0, unrolled.state.slots[0].any(dim=1)]
    torch.testing.assert_close(kept, kept[:1].expand_as(kept))


@pytest.mark.parametrize(("heads", "knowing"), [(1, [0]), (2, [0]), (3, [0]), (4, [0]), (8, [0, 1])])
def test_a_quarter_of_the_heads_attends_by_time(heads: int, knowing: list[int]) -> None:
    """Equal inputs have equal weights in all other heads, whatever their time."""
    core = make_core(heads=heads, width=24, memory=[Tier(5)], forgetting=False)
    with torch.no_grad():
        attention_of(core).time_queries.weight.normal_()  # type: ignore[union-attr]
    inputs, reset = torch.ones(1, 5, 3), torch.zeros(1, 5, dtype=torch.bool)
    weights = core.explain(inputs, core.initial_state(1), reset).layers[0][0].attention[0, :, -1]
    spread = weights[:, -5:].amax(dim=1) - weights[:, -5:].amin(dim=1)
    assert [head for head in range(heads) if spread[head] > 1e-4] == knowing


def test_scores_by_time_by_hand() -> None:
    clock, queries = EpisodeClock(), TimeQueries(2).double()
    torch.nn.init.normal_(queries.weight)
    now, then = torch.tensor([3, 60]), torch.tensor([17, 0, 59])
    asked = queries(clock(now, torch.float64)).unflatten(1, (2, -1))
    found = torch.einsum("tjk,sk->tsj", asked, time_keys(clock(then, torch.float64)))
    waves = 2 * math.pi / torch.tensor(PERIODS[::2], dtype=torch.float64)
    phases = (now[:, None, None] + then[:, None]) * waves  # [t, s, P]
    terms = torch.cat([phases.cos(), phases.sin()], dim=2)
    torch.testing.assert_close(found, 2 * torch.einsum("tsp,jp->tsj", terms, queries.weight))


def test_heads_find_the_mirror_image_of_a_time() -> None:
    core = make_core(heads=1, memory=[Tier(64)], forgetting=False)
    queries, inputs = attention_of(core).time_queries, torch.ones(1, 41, 3)
    waves = 2 * math.pi / torch.tensor(PERIODS[::2])
    with torch.no_grad():
        queries.weight[0] = 20 * torch.cat([(40 * waves).cos(), (40 * waves).sin()])  # type: ignore[union-attr]
    reset = torch.zeros(1, 41, dtype=torch.bool)
    weights = core.explain(inputs, core.initial_state(1), reset).layers[0][0].attention[0, 0, 21:, -41:]
    assert weights.argmax(dim=1).tolist() == [40 - time for time in range(21, 41)]
    assert bool((weights.amax(dim=1) > 0.9).all())


@pytest.mark.parametrize("slots", [1, 32, 33, 64, 65, 300])
def test_all_ages_of_raw_slots_have_a_bucket_each(slots: int) -> None:
    tiers = (Tier(slots), Tier(3, 1))
    exact = exact_ages(tiers)
    assert exact >= slots and exact.bit_count() == 1
    rows = age_bucket(torch.arange(4 * exact), exact)
    assert rows[:exact].tolist() == list(range(exact))
    octaves = rows[exact:].unique(return_counts=True)
    assert octaves[0].tolist() == list(range(exact, exact + 8))
    assert octaves[1].tolist() == [exact // 4] * 4 + [exact // 2] * 4
