"""Tests of the compressive core: against a slow reference in plain Python lists, and of its own features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_reference import SlowReference, bias_bucket
from torch import Tensor

import ctrl
from ctrl.compressive.attention.block_mask import age_bucket, masked_bucket
from ctrl.compressive.attention.memory_attention import AgeAttention
from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.layer import RESIDUALS
from ctrl.compressive.tiers import Tier

COMPRESSORS = ctrl.compressor_names()


@st.composite
def cores(draw: st.DrawFn) -> CompressiveCore:
    def tiers() -> list[Tier]:
        result = [Tier(draw(st.integers(1, 5)))]
        for _ in range(draw(st.integers(0, 2))):
            rate = draw(st.integers(1, min(3, result[-1].slots)))
            result.append(Tier(draw(st.integers(1, 4)), rate, draw(st.sampled_from(COMPRESSORS))))
        return result

    layers = draw(st.integers(1, 3))
    memory = [tiers() for _ in range(layers)] if draw(st.booleans()) else tiers()
    torch.manual_seed(draw(st.integers(0, 1000)))
    core = CompressiveCore(
        input_size=3,
        layers=layers,
        width=12,
        heads=draw(st.sampled_from([1, 2, 3, 4])),
        memory=memory,
        position=draw(st.sampled_from(["age", "sinusoidal"])),
        residual=draw(st.sampled_from(list(RESIDUALS))),
        forgetting=draw(st.booleans()),
        clock=draw(st.booleans()),
    )
    scramble(core)
    longest = draw(st.sampled_from([None, 5, 30]))
    if longest is not None:
        core.adapt({"longest_time": longest})
    return core


def scramble(core: CompressiveCore) -> None:
    """Move every parameter away from its neutral start, so that no omission stays unseen."""
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@settings(max_examples=40, deadline=None)
@given(core=cores(), data=st.data(), length=st.sampled_from([1, 2, 9, 24, 40, 71]))
@pytest.mark.usefixtures("double")
def test_unroll_equals_the_slow_reference(core: CompressiveCore, data: st.DataObject, length: int) -> None:
    batch = 2
    reset = torch.tensor(
        [data.draw(st.lists(st.sampled_from([False] * 7 + [True]), min_size=length, max_size=length)) for _ in range(2)]
    )
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    inputs = torch.randn(batch, length, core.input_size)
    unrolled = core.unroll(inputs, core.initial_state(batch), reset)
    near = 1e-4 if core.position == "sinusoidal" else 1e-7  # the table of sinusoids is in float32
    for env in range(batch):
        reference = SlowReference(core)
        expected = torch.stack([reference.step(inputs[env, t], bool(reset[env, t])) for t in range(length)])
        torch.testing.assert_close(unrolled.outputs[env], expected, rtol=near, atol=near / 10)


@pytest.fixture
def double() -> Iterator[None]:
    """Set float64, in which an exact law holds to the last digits."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make_core(**options: object) -> CompressiveCore:
    torch.manual_seed(0)
    options = {"layers": 2, "memory": [Tier(4), Tier(3, 2, "conv")]} | options
    core = CompressiveCore(3, width=8, heads=2, **options)  # type: ignore[arg-type]
    scramble(core)
    return core


def no_reset(batch: int, length: int) -> Tensor:
    return torch.zeros(batch, length, dtype=torch.bool)


@pytest.mark.parametrize("position", ["age", "sinusoidal"])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_reconstruction_loss_by_hand(position: str, residual: str) -> None:
    """Compare with the mean squared difference of two attention outputs: one head, one layer, every step of the window.

    Scores are by content alone, whatever the positions.
    """
    torch.manual_seed(3)
    core = CompressiveCore(
        2, layers=1, width=4, heads=1, memory=[Tier(2), Tier(3, 2, "conv")], position=position, residual=residual
    )
    scramble(core)
    inputs = torch.randn(1, 6, 2)
    loss = core.unroll(inputs, core.initial_state(1), no_reset(1, 6)).reconstruction_loss

    attention = core.layers[0].attention
    slots = core.embed(inputs[0])
    norm = torch.nn.Identity() if residual == "post_norm" else attention.norm
    query = attention.query(norm(slots))
    # Tier 0 holds two steps, so within six steps (0, 1) and (2, 3) are evicted.
    old = slots[:4]
    new = core.compressors[0][0](slots[:4].reshape(2, 2, 4))

    def read(memory: Tensor) -> Tensor:
        key, value = attention.key_value(norm(memory)).chunk(2, dim=-1)
        return (query @ key.T / math.sqrt(4)).softmax(dim=-1) @ value

    torch.testing.assert_close(loss, (read(old) - read(new)).square().mean())


def test_reconstruction_loss_counts_only_what_the_own_episode_evicts() -> None:
    core = make_core(layers=1)
    inputs, reset = torch.randn(2, 9, 3), no_reset(2, 9)
    alone = core.unroll(inputs[:1], core.initial_state(1), reset[:1]).reconstruction_loss
    reset[1] = True  # the other env never lives long enough to evict anything
    both = core.unroll(inputs, core.initial_state(2), reset).reconstruction_loss
    torch.testing.assert_close(both, alone)


def test_steps_ask_about_their_own_episode_alone() -> None:
    """Two episodes in a row lose as much as the same two side by side."""
    core = make_core(layers=1)
    inputs, reset = torch.randn(2, 11, 3), no_reset(2, 11)
    beside = core.unroll(inputs, core.initial_state(2), reset).reconstruction_loss
    reset[:, 0] = True
    after = core.unroll(inputs.reshape(1, 22, 3), core.initial_state(1), reset.reshape(1, 22)).reconstruction_loss
    torch.testing.assert_close(after, beside)


def test_a_window_that_evicts_nothing_has_no_loss() -> None:
    core = make_core()
    unrolled = core.unroll(torch.randn(2, 3, 3), core.initial_state(2), no_reset(2, 3))
    assert unrolled.reconstruction_loss.item() == 0.0
    unrolled.reconstruction_loss.backward()


def test_learning_the_reconstruction_lowers_it() -> None:
    core = make_core()
    inputs, reset = torch.randn(4, 40, 3), no_reset(4, 40)
    optimizer = torch.optim.Adam(core.compression_parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        unrolled = core.unroll(inputs, core.initial_state(4), reset)
        losses.append(unrolled.reconstruction_loss.item())
        optimizer.zero_grad()
        unrolled.reconstruction_loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_diagnostics_name_every_layer_and_tier() -> None:
    core = make_core(layers=2)
    unrolled = core.unroll(torch.randn(2, 20, 3), core.initial_state(2), no_reset(2, 20), diagnose=True)
    for layer in range(2):
        shares = [unrolled.diagnostics[f"attention_mass/layer{layer}/tier{tier}"] for tier in range(2)]
        assert sum(share.item() for share in shares) == pytest.approx(1.0, abs=1e-5)
        assert 0 < unrolled.diagnostics[f"attended_age/layer{layer}"].item() < 4 + 3 * 2
        assert unrolled.diagnostics[f"reconstruction_loss/layer{layer}/tier1"] > 0


@pytest.mark.parametrize("forgetting", [False, True])
@pytest.mark.usefixtures("double")
def test_gradients_flow_through_the_windows_own_short_term_slots_and_gates_only(forgetting: bool) -> None:
    core = make_core(layers=1, forgetting=forgetting)
    inputs = torch.randn(1, 12, 3, requires_grad=True)
    outputs = core.unroll(inputs, core.initial_state(1), no_reset(1, 12)).outputs
    (gradient,) = torch.autograd.grad(outputs[0, 11].sum(), inputs)
    reached = gradient[0].abs().sum(dim=1) > 1e-12  # gates that fade all slots alike cancel, but for rounding
    # After step 11 tier 0 has slots 8 to 11; compressed slots carry no gradient. Tier 1 has steps 2 to 7. The first of
    # its slots ends with step 3, so the gates of step 4 and later change how much it counts beside the others.
    first = 4 if forgetting else 8
    assert reached.tolist() == [False] * first + [True] * (12 - first)


def test_what_is_remembered_is_the_slots_and_not_what_is_known_of_them() -> None:
    """`memory/staleness` compares remembered slots; times in steps would drown them."""
    core, lstm = make_core(), ctrl.make_core("lstm", 3, width=4)
    state, other = core.initial_state(2), lstm.initial_state(2)
    assert [id(leaf) for leaf in core.remembered(state)] == [id(state.slots)]
    assert [id(leaf) for leaf in lstm.remembered(other)] == [id(leaf) for leaf in other]


def test_compressed_slots_are_read() -> None:
    """A change of a step that only a compressed slot still holds must change the output."""
    core = make_core(layers=1, forgetting=False)
    inputs = torch.randn(1, 14, 3)
    changed = inputs.clone()
    changed[0, 3] += 1.0
    before, after = (core.unroll(x, core.initial_state(1), no_reset(1, 14)).outputs for x in (inputs, changed))
    assert not torch.equal(before[0, 8], after[0, 8])  # slots 0 to 2 of tier 1 hold steps 0 to 5 at step 8
    assert torch.equal(before[0, 13], after[0, 13])  # by then slots 0 and 1, steps 0 to 3, are dropped


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 3}, "heads must divide width, got heads = 3 and width = 64; use heads = 2 or 4$"),
        ({"heads": 100}, "heads must divide width, got heads = 100 and width = 64; use heads = 64$"),
        ({"layers": 0}, "layers"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"reconstruction": "l2"}, "unknown reconstruction 'l2'.*attention_reconstruction"),
        ({"memory": [Tier(4), Tier(4, rate=2, compressor="zip")]}, "unknown compressor 'zip'.*conv.*max.*mean"),
        ({"memory": [Tier(4, compressor="zip")]}, "unknown compressor 'zip'.*conv.*max.*mean"),
        (
            {"memory": [Tier(2), Tier(4, 4, "conv")]},
            "tier 1 merges rate = 4 slots, but tier 0 has only slots = 2; .* use rate = 2, or slots = 4 for tier 0",
        ),
        ({"novelty_gain": -1.0}, "novelty_gain must be a finite number, at least 0, got -1.0"),
        ({"novelty_gain": math.inf}, "novelty_gain must be .* got inf"),
        ({"novelty_gain": "2"}, "novelty_gain must be .* got '2'"),
        (
            {"novelty_gain": 2.0, "memory": [Tier(8), Tier(8, 4, "conv")]},
            "novelty_gain = 2.0 needs a compressor that measures novelty.* use compressor 'surprise'",
        ),
        ({"widht": 3}, "does not take widht; its options are .*width.*; for widht use width$"),
        ({"dropout": 0.1}, "does not take dropout; .*, clock$"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ctrl.make_core("compressive", 3, **options)


def test_a_registered_compressor_can_be_used_by_name() -> None:
    class First(ctrl.Compressor):
        def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
            return blocks[:, 0]

    if "first" not in ctrl.compressor_names():
        ctrl.register_compressor("first", First)
    with pytest.raises(ValueError, match="already"):
        ctrl.register_compressor("first", First)
    core = CompressiveCore(3, layers=2, width=8, heads=2, memory=[Tier(4), Tier(3, 2, "first")])
    state = core.initial_state(1)
    inputs = torch.randn(1, 7, 3)
    state = core.unroll(inputs, state, no_reset(1, 7)).state
    torch.testing.assert_close(state.slots[0, 4:6], core.embed(inputs[0, [0, 2]]))


def test_a_registered_compressor_starts_as_it_likes() -> None:
    class Silent(ctrl.Compressor):
        def __init__(self, width: int, rate: int) -> None:
            super().__init__(width, rate)
            self.linear = torch.nn.Linear(width, width)
            torch.nn.init.zeros_(self.linear.weight)

        def forward(self, blocks: Tensor, importance: Tensor | None = None) -> Tensor:
            return self.linear(blocks[:, 0])

    if "silent" not in ctrl.compressor_names():
        ctrl.register_compressor("silent", Silent)
    core = CompressiveCore(3, layers=2, width=8, heads=2, memory=[Tier(4), Tier(3, 2, "silent")])
    assert all(not parameter.any() for name, parameter in core.compressors.named_parameters() if "weight" in name)


def test_a_reach_of_millions_costs_no_more_memory() -> None:
    """Sixteen slots a tier reach back 17 million steps; no parameter or buffer may grow with the reach."""
    core = CompressiveCore(3, layers=1, width=8, heads=2, memory=[Tier(16), *[Tier(16, 16, "conv")] * 5])
    assert sum(tensor.numel() for tensor in [*core.parameters(), *core.buffers()]) < 10_000
    state = core.initial_state(2)._replace(clock=torch.tensor([5, 123_456_789]))
    inputs = torch.randn(2, 20, 3)
    unrolled = core.unroll(inputs, state, no_reset(2, 20))
    for t in range(20):
        outputs, state = core.step(inputs[:, t], state, no_reset(2, 20)[:, t])
        torch.testing.assert_close(outputs, unrolled.outputs[:, t], rtol=1e-4, atol=1e-5)


def test_empty_slots_are_hidden_from_a_step_however_far_it_can_see() -> None:
    """The reach is 2 ** 44 steps."""
    torch.manual_seed(0)
    core = CompressiveCore(3, layers=1, width=8, heads=2, memory=[Tier(16), *[Tier(16, 16, "conv")] * 10])
    scramble(core)
    inputs = torch.randn(2, 5, 3)
    expected = core.unroll(inputs, core.initial_state(2), no_reset(2, 5)).outputs
    acting = core.acting(core.initial_state(2))
    for t in range(5):
        found = acting.step(inputs[:, t], no_reset(2, 5)[:, t])
        torch.testing.assert_close(found, expected[:, t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clock", [True, False])
def test_ages_that_training_has_not_met_count_as_the_oldest_that_it_has(clock: bool) -> None:
    """Among 9 steps the oldest age is 8. Biases of greater ages never learned, so they must have no effect."""
    torch.manual_seed(0)
    core = CompressiveCore(3, width=8, heads=2, memory=[Tier(12)], clock=clock)
    inputs, reset, state = torch.randn(2, 30, 3), torch.zeros(2, 30, dtype=torch.bool), core.initial_state(2)
    diagnostics = core.unroll(inputs[:, :9], state, reset[:, :9]).diagnostics
    state = core.unroll(inputs[:, :12], state, reset[:, :12]).state
    attention = core.layers[0].attention
    assert isinstance(attention, AgeAttention)
    with torch.no_grad():
        attention.age_bias.normal_()
    acting = core.acting(state)
    core.adapt({name: float(value) for name, value in diagnostics.items()})
    expected = core.unroll(inputs[:, 12:], state, reset[:, 12:]).outputs
    steps = [acting.step(inputs[:, t], reset[:, 0]) for t in range(12, 30)]
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        attention.age_bias[:, 9:] = 100.0
    torch.testing.assert_close(core.unroll(inputs[:, 12:], state, reset[:, 12:]).outputs, expected)
    core.adapt({"longest_time": 10.0})
    assert not torch.allclose(core.unroll(inputs[:, 12:], state, reset[:, 12:]).outputs, expected)
    core.adapt({"longest_time": 3.0})  # must not lower it
    assert int(attention.oldest_bucket) == 10


def test_age_buckets_are_exact_then_four_per_doubling() -> None:
    ages = torch.tensor([0, 1, 31, 32, 39, 40, 47, 48, 55, 56, 63, 64, 79, 80, 128, 299, 10**6])
    assert age_bucket(ages).tolist() == [0, 1, 31, 32, 32, 33, 33, 34, 34, 35, 35, 36, 36, 37, 40, 44, 91]
    assert age_bucket(ages).tolist() == [bias_bucket(int(age)) for age in ages]
    assert masked_bucket((Tier(299),)) == 300 and masked_bucket((Tier(32), Tier(33, 8))) == 45


@pytest.mark.parametrize("amount", [2, 2.0, np.float32(2), np.int64(2)])
def test_amounts_may_be_any_real_numbers(amount: Any) -> None:
    core = ctrl.make_core("compressive", input_size=3, novelty_gain=amount)
    assert core.layers[0].attention.novelty.gain == 2  # type: ignore[union-attr]


def test_many_slots_whose_blocks_are_larger_are_read_alike() -> None:
    """A window of several larger blocks equals itself in pieces and step by step."""
    torch.manual_seed(0)
    core = CompressiveCore(3, width=8, heads=2, memory=[Tier(500), Tier(40, 3, "most_missed")]).double()
    inputs, reset = torch.randn(2, 150, 3, dtype=torch.float64), torch.zeros(2, 150, dtype=torch.bool)
    reset[1, 70] = True
    state = core.unroll(
        torch.randn(2, 640, 3, dtype=torch.float64), core.initial_state(2), reset.new_zeros(2, 640)
    ).state
    whole = core.unroll(inputs, state, reset)
    outputs, acting = [], core.acting(state)
    for first, last in ((0, 90), (90, 150)):
        part = core.unroll(inputs[:, first:last], state, reset[:, first:last])
        outputs.append(part.outputs)
        state = part.state
    acted = torch.stack([acting.step(inputs[:, t], reset[:, t]) for t in range(150)], dim=1)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole.outputs)
    torch.testing.assert_close(acted, whole.outputs)
