"""Special properties of the core without a memory; `test_laws.py` tests the laws that every core obeys."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ctrl.baselines.feedforward import FeedforwardCore, FeedforwardState

B, T, INPUT, WIDTH = 3, 7, 4, 5


def test_is_the_formula() -> None:
    core = FeedforwardCore(INPUT, width=WIDTH, layers=2)
    x = torch.randn(B, T, INPUT)
    w0, b0, w1, b1 = core.parameters()
    expected = ((x @ w0.T + b0).clamp(min=0) @ w1.T + b1).clamp(min=0)
    unrolled = core.unroll(x, core.initial_state(B), torch.zeros(B, T, dtype=torch.bool))
    torch.testing.assert_close(unrolled.outputs, expected, atol=1e-6, rtol=0)
    assert unrolled.reconstruction_loss == 0 and unrolled.diagnostics == {}


def test_each_output_depends_on_its_own_input_only() -> None:
    torch.manual_seed(4)
    core = FeedforwardCore(INPUT, width=32, layers=3)  # wide enough that some ReLU is open
    x = torch.randn(B, T, INPUT, requires_grad=True)
    outputs = core.unroll(x, core.initial_state(B), torch.zeros(B, T, dtype=torch.bool)).outputs
    (gradient,) = torch.autograd.grad(outputs[1, 4].sum(), x)
    assert (gradient.abs().amax(dim=2) > 0).nonzero().tolist() == [[1, 4]]


def test_step_equals_unroll_and_resets_change_nothing() -> None:
    core = FeedforwardCore(INPUT, width=WIDTH)
    x, state = torch.randn(B, T, INPUT), core.initial_state(B)
    outputs = core.unroll(x, state, torch.rand(B, T) < 0.3).outputs
    for t in range(T):
        output, state = core.step(x[:, t], state, torch.arange(B) == t)
        torch.testing.assert_close(output, outputs[:, t], atol=1e-6, rtol=0)


def test_state_is_empty_and_knows_the_batch_size() -> None:
    core = FeedforwardCore(INPUT)
    state = core.initial_state(B)
    assert type(state) is FeedforwardState and state.empty.shape == (B, 0)
    assert core.state_bytes == 0 and core.output_size == 128
    with pytest.raises(ValueError, match=r"state\.empty"):
        core.step(torch.zeros(B, INPUT), core.initial_state(B + 1), torch.zeros(B, dtype=torch.bool))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"input_size": 0}, "input_size .* 0"), ({"width": 0}, "width .* 0"), ({"layers": 1.5}, "layers .* 1.5")],
)
def test_bad_arguments_are_named_with_their_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeedforwardCore(**{"input_size": INPUT, **options})
