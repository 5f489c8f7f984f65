"""Transformer-XL's attention and layer, compared with numbers computed by hand from the equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ctrl import Tier
from ctrl.compressive.attention.block_mask import COPIES, find_buckets, lay_out
from ctrl.compressive.attention.memory_attention import BOUND, NoNorm
from ctrl.compressive.attention.relative import RelativeAttention, sinusoids
from ctrl.compressive.core import POSITIONS, CompressiveCore
from ctrl.compressive.layer import PostNormLayer
from ctrl.compressive.schedule import plan_window


def set_weight(linear: nn.Linear, rows: list[list[float]], bias: list[float] | None = None) -> None:
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(rows))
        if bias is not None:
            linear.bias.copy_(torch.tensor(bias))


def diagonal(*values: float) -> list[list[float]]:
    return torch.tensor(values).diag().tolist()


def hand_core() -> CompressiveCore:
    """Return a core with one post-norm layer of width 4 and two heads, and weights for a calculation by hand."""
    core = CompressiveCore(
        4,
        width=4,
        heads=2,
        feedforward=3,
        memory=[Tier(3)],
        position="sinusoidal",
        residual="post_norm",
        forgetting=False,
        clock=False,
    )
    layer = core.layers[0]
    assert isinstance(layer, PostNormLayer) and isinstance(layer.attention, RelativeAttention)
    attention = layer.attention
    set_weight(core.embed, diagonal(1, 1, 1, 1), [0, 0, 0, 0])
    set_weight(attention.query, diagonal(1, 1, 1, 1))
    set_weight(attention.key_value, diagonal(1, 2, 1, 1) + diagonal(1, 1, 2, 2))
    set_weight(attention.position_key, diagonal(1, 10, 1, 1))
    set_weight(attention.output, diagonal(1, -1, 1, 1))
    with torch.no_grad():
        attention.content_bias.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))  # u
        attention.position_bias.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))  # v
        layer.feedforward_norm.weight.copy_(torch.tensor([1.0, 2.0, 1.0, 1.0]))
        layer.feedforward_norm.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 1.0]))
    set_weight(layer.widen, [[1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], [0, 1, 0])
    set_weight(layer.narrow, [[2, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]], [0, 0, 0, -1])
    return core


def test_one_layer_by_hand() -> None:
    """Output of step 2 for x_0 = (1, 0, 0, 1), x_1 = (0, 1, 1, 0) and its own input x_2 = (1, 1, 1, 0).

    R_d = (sin d, sin 0.01 d, cos d, cos 0.01 d). The first head has features 0 and 1, the second 2 and 3. Keys are
    x * (1, 2, 1, 1), values x * (1, 1, 2, 2), position keys R * (1, 10, 1, 1).

    head 1: q = (1, 1), q + u = (2, 1), q + v = (1, 2)
        x_0, d = 2: (2, 1) (1, 0) = 2    (1, 2) (0.909297, 0.199987) = 1.309271    3.309271 / sqrt 2 = 2.340008
        x_1, d = 1: (2, 1) (0, 2) = 2    (1, 2) (0.841471, 0.099998) = 1.041468    3.041468 / sqrt 2 = 2.150642
        x_2, d = 0: (2, 1) (1, 2) = 4    (1, 2) (0, 0) = 0                         4 / sqrt 2        = 2.828427
        weights exp: 10.381317, 8.590375, 16.918829, of 35.890521: 0.289250, 0.239349, 0.471401
        read: 0.289250 (1, 0) + 0.239349 (0, 1) + 0.471401 (1, 1) = (0.760651, 0.710750)
    head 2: q = (1, 0), q + u = (1, 1), q + v = (2, 0)
        x_0, d = 2: (1, 1) (0, 1) = 1    2 cos 2 = -0.832294    0.167706 / sqrt 2 = 0.118586
        x_1, d = 1: (1, 1) (1, 0) = 1    2 cos 1 =  1.080605    2.080605 / sqrt 2 = 1.471210
        x_2, d = 0: (1, 1) (1, 0) = 1    2 cos 0 =  2           3 / sqrt 2        = 2.121320
        weights exp: 1.125904, 4.354499, 8.342145, of 13.822548: 0.081454, 0.315029, 0.603517
        read: 0.081454 (0, 2) + 0.315029 (2, 0) + 0.603517 (2, 0) = (1.837092, 0.162908)

    x_2 + (0.760651, -0.710750, 1.837092, 0.162908) = (1.760651, 0.289250, 2.837092, 0.162908)
        mean 1.262475, variance 1.220953: normed h = (0.450849, -0.880769, 1.425029, -0.995108)
    wide: relu(h_0, 1 - h_1, h_3) = (0.450849, 1.880769, 0)
    h + (2 * 0.450849, 1.880769, 0, 0 - 1) = (1.352547, 1, 1.425029, -1.995108)
        mean 0.445617, variance 2.011563: normed (0.639449, 0.390879, 0.690554, -1.720882)
        times (1, 2, 1, 1) plus (0, 0, 0, 1): (0.639449, 0.781758, 0.690554, -0.720882)
    """
    inputs = torch.tensor([[[1.0, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 0]]])
    core = hand_core()
    state, reset = core.initial_state(1), torch.zeros(1, 3, dtype=torch.bool)
    _, _, [layer_pass] = core._run_window(inputs, state, core.plan(state, reset))
    weights, read = layer_pass.attended.weights[:, 0, 0], layer_pass.attended.outputs[0]
    seen = layer_pass.indices.mask.buckets[0, 0, 2] // COPIES < 3
    expected = torch.tensor([[0.289250, 0.239349, 0.471401], [0.081454, 0.315029, 0.603517]])
    torch.testing.assert_close(weights[:, 2][:, seen], expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(read[2], torch.tensor([0.760651, 0.710750, 1.837092, 0.162908]), rtol=0, atol=2e-6)
    outputs = core.unroll(inputs, state, reset).outputs
    expected = torch.tensor([0.639449, 0.781758, 0.690554, -0.720882])
    torch.testing.assert_close(outputs[0, 2], expected, rtol=0, atol=5e-6)


def test_sinusoids_by_hand() -> None:
    """Width 4: frequencies 1 and 10000^(-1/2) = 1/100. An odd width has one cosine less."""
    expected = [[0, 0, 1, 1], [0.841471, 0.010000, 0.540302, 0.999950], [0.909297, 0.019999, -0.416147, 0.999800]]
    torch.testing.assert_close(sinusoids(3, 4), torch.tensor(expected), rtol=0, atol=1e-6)
    low = 10000 ** (-2 / 3)
    expected = [[0, 0, 1], [math.sin(1), math.sin(low), math.cos(1)]]
    torch.testing.assert_close(sinusoids(2, 3), torch.tensor(expected), rtol=0, atol=1e-6)


def test_scores_by_position_tell_the_order_of_equal_slots() -> None:
    core = CompressiveCore(2, layers=1, width=8, heads=2, memory=[Tier(4), Tier(2, 2, "conv")], position="sinusoidal")
    same, reset = torch.ones(1, 9, 2), torch.zeros(1, 9, dtype=torch.bool)
    state = core.initial_state(1)
    _, _, [layer_pass] = core._run_window(same, state, core.plan(state, reset))
    rows, weights = layer_pass.indices.mask.buckets[0, 0, 8] // COPIES, layer_pass.attended.weights[:, 0, 0, 8]
    # At step 8 tier 0 has 3 slots (distances 0 to 2) and tier 1 has 2 (3 and 4); row 6 is hidden.
    assert sorted(rows[rows < 6].tolist()) == [0, 1, 2, 3, 4]
    seen = weights[:, rows < 6]
    assert all(len(set(head.tolist())) == 5 for head in seen)
    assert not weights[:, rows == 6].any()


def layers_with(position: str, slots: int) -> CompressiveCore:
    return CompressiveCore(3, layers=1, width=4, heads=2, memory=[Tier(slots)], position=position)


def test_rows_of_thousands_of_distances_are_told_apart() -> None:
    """The rows and their copies are more than 16 bits can number."""
    tiers, reset = (Tier(5000),), torch.zeros(1, 2, dtype=torch.bool)
    plan = plan_window(tiers, torch.tensor([4990]), reset)
    rows = find_buckets(tiers, plan, lay_out(tiers, 2, reset.device), POSITIONS["sinusoidal"].BUCKETS)
    seen = rows[0, 0, 1][rows[0, 0, 1] // COPIES < 5000] // COPIES
    assert sorted(seen.tolist()) == list(range(4992))
    assert int(rows.max()) // COPIES == 5000
    few = layers_with("sinusoidal", 6).plan(layers_with("sinusoidal", 6).initial_state(1), reset)
    assert few[(Tier(6),)].buckets.dtype == torch.int16


def test_what_was_first_laid_out_while_acting_can_be_learned_with() -> None:
    core = layers_with("sinusoidal", 11)  # a memory that no other test has: layouts are kept
    inputs, reset = torch.randn(2, 35, 3), torch.zeros(2, 35, dtype=torch.bool)
    with torch.inference_mode():
        core.unroll(inputs, core.initial_state(2), reset)
    core.unroll(inputs, core.initial_state(2), reset).outputs.sum().backward()
    assert core.embed.weight.grad is not None


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 2 * BOUND, -2 * BOUND])
def test_a_slot_without_norm_is_bounded(wrong: float) -> None:
    slots = torch.tensor([[3.0, wrong, -(2.0**38)]], requires_grad=True)
    bounded: Tensor = NoNorm()(slots)
    assert bounded.tolist() == [[3.0, 0.0, -(2.0**38)]]
    bounded.sum().backward()
    assert slots.grad is not None and slots.grad.tolist() == [[1.0, 0.0, 1.0]]
