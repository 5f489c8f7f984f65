"""Forgetting attention: gates and scores, the sums that compressors pass on, and the reach of heads without gates."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import ctrl
from ctrl import Tier
from ctrl.compressive.attention.memory_attention import MemoryAttention
from ctrl.compressive.compressors import make_compressor
from ctrl.compressive.core import CompressiveCore, CompressiveState
from ctrl.compressive.window import sum_by_episode

NEVER = torch.tensor([[False]])


def make_core(**options: object) -> CompressiveCore:
    torch.manual_seed(0)
    defaults = {"width": 16, "heads": 8, "memory": [Tier(4), Tier(4, 2, "max")], "clock": False}
    return CompressiveCore(3, **{**defaults, **options})  # type: ignore[arg-type]


def attention_of(core: CompressiveCore) -> MemoryAttention:
    attention = core.layers[0].attention
    assert isinstance(attention, MemoryAttention)
    return attention


def set_gates(core: CompressiveCore, *biases: float) -> None:
    """Make the gates depend only on `biases`."""
    gate = attention_of(core).forget_gate
    assert gate is not None
    with torch.no_grad():
        gate.weight.zero_()
        gate.bias.copy_(torch.tensor(biases))


def weights_of(core: CompressiveCore, inputs: Tensor) -> Tensor:
    """Return each head's weights at the last step of inputs [T, I]: [H, T], raw slots first, each tier oldest first."""
    reset = torch.zeros(1, len(inputs), dtype=torch.bool)
    tiers = core.explain(inputs[None], core.initial_state(1), reset).layers[0]
    return torch.cat([tier.attention[0, :, -1][:, tier.age[0, -1] >= 0] for tier in tiers], dim=1)


def test_a_gate_multiplies_the_weights_of_all_that_is_older() -> None:
    """Lin et al. 2025, equation 6: the sum of log f over s + 1 .. t is added to the score of step s at step t."""
    inputs = torch.randn(4, 3)
    core = make_core(memory=[Tier(4)])
    set_gates(core, 30.0, 30.0)  # nothing is forgotten
    without = weights_of(core, inputs)
    gate = attention_of(core).forget_gate
    assert gate is not None
    with torch.no_grad():
        gate.weight.normal_()
    normed = attention_of(core).norm(core.embed(inputs))
    gates = torch.sigmoid(normed @ gate.weight.T + gate.bias - 30)  # [T, F]
    with torch.no_grad():
        gate.bias.zero_()
    products = torch.stack([gates[step + 1 :].prod(dim=0) for step in range(4)], dim=1)  # [F, T]
    expected = without.clone()
    expected[6:] = without[6:] * products
    torch.testing.assert_close(weights_of(core, inputs), expected / expected.sum(dim=1, keepdim=True))


def test_a_closed_gate_shuts_out_what_is_older_from_the_heads_that_forget_and_from_no_other() -> None:
    core = make_core()
    set_gates(core, 30.0, -40.0)
    weights = weights_of(core, torch.randn(9, 3))
    assert bool((weights[:7] > 1e-4).all())  # head 6 has a gate, and it is open
    newest = 2  # at step 8 the steps 6 to 8 are raw
    assert weights[7, newest] > 1 - 1e-6 and weights[7].topk(2).values[1] < 1e-12


@pytest.mark.parametrize(("heads", "forgetting"), [(1, 0), (2, 1), (4, 1), (8, 2)])
def test_most_heads_never_forget(heads: int, forgetting: int) -> None:
    core = make_core(heads=heads)
    assert core.initial_state(1).carried.shape[2] == attention_of(core).forgetting_heads == forgetting


def test_heads_that_do_not_forget_reach_a_million_steps() -> None:
    """In such heads a slot from a million steps ago has the weight that it has in a core without forgetting."""
    tiers = [Tier(4), *[Tier(4, 4, "max")] * 9]
    core, plain = make_core(memory=tiers), make_core(memory=tiers, forgetting=False)
    plain.load_state_dict(core.state_dict(), strict=False)
    clock = torch.tensor([1_000_000])
    slots = torch.randn(1, sum(tier.slots for tier in tiers), 16)
    importance = torch.zeros(1, 0)
    lost = torch.full((1, slots.shape[1], core.forgetting_heads), -1e6)
    inputs = torch.randn(1, 1, 3)
    found = explained_weights(core, inputs, CompressiveState(clock, slots, importance, lost))
    expected = explained_weights(plain, inputs, CompressiveState(clock, slots, importance, lost[..., :0]))
    keeping = core.heads - core.forgetting_heads
    torch.testing.assert_close(found[:keeping], expected[:keeping])
    assert found[:keeping, :-1].max() > 1e-3
    assert found.isfinite().all()


def explained_weights(core: CompressiveCore, inputs: Tensor, state: CompressiveState) -> Tensor:
    """Return the attention weights of one step, [H, C]."""
    return torch.cat([tier.attention[0, :, 0] for tier in core.explain(inputs, state, NEVER).layers[0]], dim=1)


def test_what_is_forgotten_stays_exact_over_many_steps() -> None:
    """The state holds the gate sums relative to the current step, so they don't grow with the episode."""
    core = make_core(memory=[Tier(5)])
    set_gates(core, 1.0, 3.0)
    state = core.initial_state(1)
    for _ in range(40):
        state = core.unroll(torch.randn(1, 50, 3), state, torch.zeros(1, 50, dtype=torch.bool)).state
    per_step = F.logsigmoid(torch.tensor([1.0, 3.0]))
    ages = (state.clock[:, None] - 1 - torch.arange(5)).remainder(5)  # of the slot at each position of the ring
    torch.testing.assert_close(state.carried[0], ages[0][:, None] * per_step, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("length", [1, 2, 7, 128, 129, 389])
def test_sums_and_their_gradients_are_those_of_a_loop(length: int) -> None:
    torch.manual_seed(0)
    values, reset = torch.randn(3, length, 2, dtype=torch.float64), torch.rand(3, length) < 0.1
    values.requires_grad_()
    expected, total = [], torch.zeros(3, 2, dtype=torch.float64)
    for t in range(length):
        total = torch.where(reset[:, t, None], 0, total) + values[:, t]
        expected.append(total)
    sums, of_sums = sum_by_episode(values, reset.cumsum(dim=1)), torch.randn(3, length, 2, dtype=torch.float64)
    torch.testing.assert_close(sums, torch.stack(expected, dim=1))
    found, wanted = (torch.autograd.grad(each, values, of_sums) for each in (sums, torch.stack(expected, dim=1)))
    torch.testing.assert_close(found, wanted)


def test_no_bit_of_a_sum_depends_on_what_came_before_a_reset() -> None:
    length = 265
    values, reset = torch.randn(1, length, 2), torch.zeros(1, length, dtype=torch.bool)
    reset[0, 131] = True
    changed = values.clone()
    changed[:, :131] = -1e30
    sums = [sum_by_episode(each, reset.cumsum(dim=1))[:, 131:] for each in (values, changed)]
    assert torch.equal(*sums)


@pytest.mark.parametrize("number", [math.nan, math.inf, -3e38, 3e38, 1e31])
@pytest.mark.parametrize("step", [0, 3])
def test_nothing_that_a_state_says_of_its_slots_reaches_over_a_reset(number: float, step: int) -> None:
    """A large gate sum must not make an invisible slot visible, and an overflow must not make its score NaN."""
    core, never = make_core(clock=True), torch.zeros(2, 20, dtype=torch.bool)
    lived = core.unroll(torch.randn(2, 20, 3), core.initial_state(2), never).state
    inputs, reset = torch.randn(2, 20, 3), never.clone()
    reset[:, step] = True
    expected = core.unroll(inputs, lived, reset).outputs[:, step:]
    bad = lived._replace(carried=torch.full_like(lived.carried, number))
    found = core.unroll(inputs, bad, reset).outputs
    assert torch.equal(found[:, step:], expected)
    gradients = torch.autograd.grad(found[:, step:].sum(), list(core.main_parameters()), allow_unused=True)
    assert all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)
    acting = core.acting(bad)
    steps = [acting.step(inputs[:, t], reset[:, t]) for t in range(20)]
    torch.testing.assert_close(torch.stack(steps, dim=1)[:, step:], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ctrl.compressor_names())
def test_forgetting_more_before_a_block_is_handed_on_as_it_is(name: str) -> None:
    """So the time of compression makes no difference, and the state can hold gate sums relative to the current step."""
    torch.manual_seed(0)
    compressor, blocks, decays = make_compressor(name, 6, 4), torch.randn(5, 4, 6), -torch.rand(5, 4, 2)
    importance = torch.rand(5, 4)
    carried = compressor.carry(decays, blocks, importance)
    assert carried.shape == (5, 2)
    torch.testing.assert_close(compressor.carry(decays - 7, blocks, importance), carried - 7)
    assert bool((carried >= decays.amin(dim=1) - 1e-6).all() and (carried <= decays.amax(dim=1) + 1e-6).all())


@pytest.mark.parametrize("name", ["most_used", "most_missed", "select"])
def test_what_keeps_one_slot_hands_on_its_forgetting(name: str) -> None:
    torch.manual_seed(0)
    compressor, blocks, importance = make_compressor(name, 6, 4), torch.randn(5, 4, 6), torch.rand(5, 4)
    decays = -torch.rand(5, 4, 2)
    kept = (compressor(blocks, importance)[:, None] - blocks).abs().sum(dim=2).argmin(dim=1)
    assert len(kept.unique()) > 1
    assert torch.equal(compressor.carry(decays, blocks, importance), decays[torch.arange(5), kept])


def test_what_mixes_slots_hands_on_the_forgetting_of_the_newest() -> None:
    decays = -torch.rand(5, 4, 2)
    assert torch.equal(make_compressor("conv", 6, 4).carry(decays, torch.randn(5, 4, 6)), decays[:, -1])


def test_surprise_hands_on_the_forgetting_with_the_weights_of_the_slots() -> None:
    compressor, importance = make_compressor("surprise", 2, 4), torch.rand(5, 4)
    blocks = -torch.rand(5, 4, 2)
    assert torch.equal(compressor.carry(blocks, torch.randn(5, 4, 2), importance), compressor(blocks, importance))


def test_forgetting_and_clock_have_no_part_in_the_reconstruction_loss() -> None:
    """The reconstruction loss compares by content alone."""
    core = make_core(memory=[Tier(4), Tier(4, 2, "conv")], clock=True)
    inputs, reset = torch.randn(2, 20, 3), torch.zeros(2, 20, dtype=torch.bool)
    before = core.unroll(inputs, core.initial_state(2), reset)
    attention = attention_of(core)
    with torch.no_grad():
        for part in (attention.forget_gate, attention.time_queries):
            assert part is not None
            part.weight.normal_()
    after = core.unroll(inputs, core.initial_state(2), reset)
    assert not torch.allclose(before.outputs, after.outputs)
    torch.testing.assert_close(before.reconstruction_loss, after.reconstruction_loss)


def test_the_task_teaches_gates_and_clock_and_the_reconstruction_does_not() -> None:
    core = make_core(memory=[Tier(4), Tier(4, 2, "conv")], clock=True)
    inputs, reset = torch.randn(2, 20, 3), torch.zeros(2, 20, dtype=torch.bool)
    unrolled = core.unroll(inputs, core.initial_state(2), reset)
    attention = attention_of(core)
    parts = (attention.forget_gate, attention.time_queries, core.output_clock)
    weights = [part.weight for part in parts if part is not None]
    assert len(weights) == 3
    losses = unrolled.outputs.square().sum(), unrolled.reconstruction_loss
    found = [torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) for loss in losses]
    assert all(gradient is not None and bool(gradient.any()) for gradient in found[0])
    assert all(gradient is None for gradient in found[1])


def test_the_first_biases_are_spread() -> None:
    gate = attention_of(make_core(heads=12, width=24)).forget_gate
    assert gate is not None and not gate.weight.any()
    first, last = MemoryAttention.GATE_BIASES
    assert gate.bias[0].item() == first and math.isclose(gate.bias[-1].item(), last)
