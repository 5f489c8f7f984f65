"""Cores in other floating-point types: outputs and gradients are finite, and close to those of float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ctrl
from ctrl import Tier

BATCH, LENGTH, INPUTS = 3, 26, 5
CORES: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("compressive", {"memory": [Tier(4), Tier(3, 3), Tier(2, 2)]}),
    "two layers, ranked by attention": ("compressive", {"layers": 2, "memory": [Tier(4), Tier(3, 3, "most_missed")]}),
    "gated, learned": (
        "compressive",
        {"residual": "gated", "memory": [Tier(4), Tier(3, 3, "gru"), Tier(2, 2, "conv")]},
    ),
    "the paper's": ("compressive", ctrl.paper_config(3, slots=4, compressed_slots=2)),
    "transformer_xl": ("transformer_xl", {"slots": 6}),
    "gtrxl": ("gtrxl", {"slots": 6}),
    **{name: (name, {}) for name in ("lstm", "gru", "mingru", "feedforward")},
}
NEAR = {torch.float16: 0.05, torch.bfloat16: 0.3, torch.float64: 1e-4}


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("name", CORES)
def test_outputs_and_gradients_are_finite_and_near(name: str, dtype: torch.dtype) -> None:
    """Resets lie inside the window, where gates are shut and slots masked; a state full of NaN is harmless at one."""
    torch.manual_seed(0)
    kind, options = CORES[name]
    core = ctrl.make_core(kind, INPUTS, **options)
    inputs, reset = torch.randn(BATCH, LENGTH, INPUTS), torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    reset[:, 0] = reset[0, 4] = reset[0, 5] = reset[2, 19] = True
    expected = core.unroll(inputs, core.initial_state(BATCH), reset).outputs.detach()
    core, inputs = core.to(dtype), inputs.to(dtype)
    clean = core.initial_state(BATCH)
    state = core.make_state(leaf.fill_(torch.nan) if leaf.is_floating_point() else leaf for leaf in clean)
    unrolled, acting = core.unroll(inputs, state, reset), core.acting(state)
    (unrolled.outputs.square().mean() + unrolled.reconstruction_loss).backward()
    assert all(weight.grad is None or bool(weight.grad.isfinite().all()) for weight in core.parameters())
    stepped, acted = [], []
    for t in range(LENGTH):
        with torch.no_grad():
            outputs, state = core.step(inputs[:, t], state, reset[:, t])
        stepped.append(outputs)
        acted.append(acting.step(inputs[:, t], reset[:, t]))
    for found in (unrolled.outputs, torch.stack(stepped, dim=1), torch.stack(acted, dim=1)):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0, atol=NEAR[dtype])


def test_a_large_cell_of_an_lstm_in_float16_outlives_the_reset_of_another_env() -> None:
    core = ctrl.make_core("lstm", 3, width=4).half()
    core.requires_grad_(False)
    state = core.initial_state(2)
    state.cell[:] = 400.0
    reset = torch.tensor([[False, False], [False, True]])
    inputs = torch.zeros(2, 2, 3, dtype=torch.float16)
    together = core.unroll(inputs, state, reset).state.cell[0]
    alone = core.unroll(inputs[:1], core.make_state(leaf[:1] for leaf in state), reset[:1]).state.cell[0]
    assert torch.equal(together, alone) and together.min() > 300
