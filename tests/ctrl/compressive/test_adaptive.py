"""Rates that layers choose: the rule, and memories written with other rates than those they are read with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import ctrl
from ctrl.compressive.adaptive import HIGH, LOW, CompressorOfRates, next_rate, rate_choices, resample, with_rate
from ctrl.compressive.schedule import EMPTY, ring_centres
from ctrl.compressive.tiers import Tier, reach

TIERS = (Tier(9), Tier(5, 4, "max"), Tier(3, 2, "mean"))
CLOCK = torch.tensor([0, 1, 9, 10, 14, 40, 77, 1_000_003])


def test_choices_are_half_once_and_twice_the_rate_as_far_as_the_tier_below_allows() -> None:
    assert rate_choices(TIERS) == (2, 4, 8)
    assert rate_choices((Tier(7), Tier(5, 4))) == (2, 4)
    assert rate_choices((Tier(7), Tier(5, 1))) == (1, 2)
    assert rate_choices((Tier(7), Tier(5, 7))) == (3, 7)
    assert rate_choices((Tier(7),)) == ()
    assert with_rate(TIERS, 8) == (Tier(9), Tier(5, 8, "max"), Tier(3, 2, "mean"))


def test_the_rate_may_rise_and_fall_by_default() -> None:
    core = ctrl.AdaptiveCore(3)
    name = "reconstruction_error/layer0/tier1"
    moved = []
    for error in (0.0, 1.0):
        for _ in range(30):
            core.adapt({name: error})
        moved.append(core.tiers[0][1].rate)
    assert moved == [8, 2] and ctrl.AdaptiveCore(3).rates.tolist() == [4]


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
    slots = centres[:, :, None].double()  # each slot holds its own position
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


# The core

BATCH, LENGTH = 3, 31


def build(compressor: str = "conv", **options: Any) -> ctrl.AdaptiveCore:
    torch.manual_seed(0)
    memory = [[Tier(9), Tier(5, 4, compressor), Tier(3, 2, "mean")], [Tier(4)], [Tier(6), Tier(7, 2, "max")]]
    core = ctrl.make_core("adaptive", 4, layers=3, width=8, heads=2, memory=memory, **options)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    assert isinstance(core, ctrl.AdaptiveCore)
    return core


def window(length: int = LENGTH) -> tuple[Tensor, Tensor]:
    reset = torch.zeros(BATCH, length, dtype=torch.bool)
    reset[0, 5], reset[2, [0, 19]] = True, True
    return torch.randn(BATCH, length, 4), reset


def test_what_is_read_stays_at_its_own_time() -> None:
    new, raw = with_rate(TIERS, 2), TIERS[0].slots
    own = torch.randint(0, 100, (len(CLOCK), 17))
    shift = (own - ring_centres(TIERS, CLOCK)).double()
    read = resample(TIERS, new, CLOCK, torch.stack([own.double(), shift], dim=2), 1)
    kept = ring_centres(new, CLOCK) != EMPTY
    times = read[:, :, 1] + ring_centres(new, CLOCK)
    assert torch.equal(times[:, raw:][kept[:, raw:]], read[:, raw:, 0][kept[:, raw:]])
    assert not read[:, :raw, 1].any()


@pytest.mark.parametrize("name", ["surprise", "select", "most_used", "conv"])
def test_what_is_handed_on_is_what_the_compressor_of_the_rate_hands_on(name: str) -> None:
    torch.manual_seed(0)
    compressor = CompressorOfRates(name, 6, (2, 4))
    blocks, facts, importance = torch.randn(5, 4, 6), torch.randn(5, 4, 3), torch.rand(5, 4)
    expected = compressor.by_rate["4"].carry(facts, blocks, importance)  # type: ignore[operator]
    assert torch.equal(compressor.carry(facts, blocks, importance), expected)


def lived_in(core: ctrl.AdaptiveCore) -> Any:
    inputs, reset = window(60)
    return core.unroll(inputs, core.initial_state(BATCH), reset).state


def move(core: ctrl.AdaptiveCore, *errors: float) -> dict[str, float]:
    """Report errors until the rates follow, and return the last rates."""
    names = {f"reconstruction_error/layer{layer}/tier1": error for layer, error in zip((0, 2), errors, strict=True)}
    chosen: dict[str, float] = {}
    for _ in range(30):
        chosen = core.adapt(names)
    return chosen


def test_rates_follow_the_errors_layer_by_layer() -> None:
    core = build()
    assert move(core, 0.0, 1.0) == {"rate/layer0": 8.0, "rate/layer2": 1.0}
    assert [tiers[1].rate if len(tiers) > 1 else None for tiers in core.tiers] == [8, None, 1]
    assert move(core, 0.2, 0.2) == {"rate/layer0": 8.0, "rate/layer2": 1.0}
    assert move(core, 1.0, 0.0) == {"rate/layer0": 2.0, "rate/layer2": 4.0}
    assert core.adapt({}) == {"rate/layer0": 2.0, "rate/layer2": 4.0}


def test_rates_stay_where_nothing_is_compressed() -> None:
    core = build()
    inputs, reset = torch.randn(BATCH, LENGTH, 4), torch.ones(BATCH, LENGTH, dtype=torch.bool)
    unrolled = core.unroll(inputs, core.initial_state(BATCH), reset, diagnose=True)
    rates = core.rates.tolist()
    for _ in range(30):
        core.adapt({name: float(value) for name, value in unrolled.diagnostics.items()})
    assert core.rates.tolist() == rates


def test_one_bad_update_moves_nothing() -> None:
    core = build()
    assert core.adapt({"reconstruction_error/layer0/tier1": 1.0})["rate/layer0"] == 4.0


@pytest.mark.parametrize("compressor", ["conv", "most_used", "most_missed"])
@pytest.mark.parametrize("errors", [(0.0, 1.0), (1.0, 0.0)])
def test_states_of_before_mean_the_same_to_all_ways_after(compressor: str, errors: tuple[float, float]) -> None:
    core = build(compressor)
    state = lived_in(core)
    acting = core.acting(state)
    move(core, *errors)
    inputs, reset = window()
    unrolled = core.unroll(inputs, state, reset)
    assert [leaf.shape for leaf in unrolled.state] == [leaf.shape for leaf in state]
    for t in range(LENGTH):
        stepped, state = core.step(inputs[:, t], state, reset[:, t])
        torch.testing.assert_close(stepped, unrolled.outputs[:, t], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(acting.step(inputs[:, t], reset[:, t]), stepped, rtol=1e-4, atol=1e-5)
    for left, right, expected in zip(state, acting.state(), unrolled.state, strict=True):
        torch.testing.assert_close(left, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(right, expected, rtol=1e-4, atol=1e-5)


def test_acting_changes_rates_in_the_middle_of_an_episode() -> None:
    core = build()
    acting, state = core.acting(core.initial_state(BATCH)), core.initial_state(BATCH)
    inputs, reset = window(50)
    for t in range(50):
        if t in (24, 40):
            move(core, 0.0, 1.0) if t == 24 else move(core, 1.0, 0.0)
        stepped, state = core.step(inputs[:, t], state, reset[:, t])
        torch.testing.assert_close(acting.step(inputs[:, t], reset[:, t]), stepped, rtol=1e-4, atol=1e-5)


def test_with_its_first_rates_it_is_the_compressive_core() -> None:
    core = build("mean")
    plain = ctrl.make_core("compressive", 4, layers=3, width=8, heads=2, memory=core.tiers)
    weights = {name: value for name, value in core.state_dict().items() if name in plain.state_dict()}
    for name, value in plain.state_dict().items():
        weights[name] = weights[name][:, : value.shape[1]] if "age_bias" in name else weights[name]
    plain.load_state_dict(weights)
    inputs, reset = window()
    expected = plain.unroll(inputs, plain.initial_state(BATCH), reset).outputs
    torch.testing.assert_close(core.unroll(inputs, core.initial_state(BATCH), reset).outputs, expected)


def test_rates_are_saved_and_loaded_with_the_weights() -> None:
    core, other = build(), build()
    move(core, 0.0, 1.0)
    other.load_state_dict(core.state_dict())
    assert other.tiers == core.tiers
    inputs, reset = window()
    state = lived_in(core)
    assert torch.equal(other.unroll(inputs, state, reset).outputs, core.unroll(inputs, state, reset).outputs)


def test_it_keeps_the_laws_at_all_rates() -> None:
    core = build()
    for errors in ((0.0, 1.0), (1.0, 0.0)):
        move(core, *errors)
        ctrl.check_core(core)


def test_compressors_of_other_rates_are_idle() -> None:
    core = build()
    idle = {id(parameter) for parameter in core.idle_parameters()}
    names = {name for name, parameter in core.named_parameters() if id(parameter) in idle}
    assert names == {"compressors.0.0.by_rate.2.weight", "compressors.0.0.by_rate.8.weight"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reconstruction": "auto_encoding"}, "auto_encoding' does not fit core 'adaptive'.*use 'attention_recon"),
        (
            {"memory": [Tier(4)]},
            r"two rates to choose from: half, once and twice .* got \[\(\)\] by layer; use core 'compressive', or "
            "leave memory at its default",
        ),
        ({"layers": 2, "memory": [[Tier(1), Tier(9)], [Tier(9)]]}, r"got \[\(1,\), \(\)\] by layer"),
        ({"rate": 3}, "core 'adaptive' does not take rate; its options are .*memory"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ctrl.make_core("adaptive", 4, **options)


def test_a_state_with_rates_that_no_layer_has_is_refused() -> None:
    core = build()
    state = core.initial_state(BATCH)._replace(rates=torch.full((BATCH, 3), 5))
    with pytest.raises(ValueError, match=r"state\.rates of layer 0 must be of \(2, 4, 8\), got \[5\]"):
        core.step(torch.randn(BATCH, 4), state, torch.zeros(BATCH, dtype=torch.bool))


def test_what_a_compressor_asks_for_is_asked_for_at_every_rate() -> None:
    asked = {}
    for name in ("conv", "most_used", "most_missed"):
        core = ctrl.AdaptiveCore(3, width=8, heads=2, memory=[Tier(6), Tier(4, 2, name)])
        asked[name] = (core.ranks(0), core.novelty_of(0) is not None)
    assert asked == {
        "conv": ([False, False], False),
        "most_used": ([True, False], False),
        "most_missed": ([True, False], True),
    }
