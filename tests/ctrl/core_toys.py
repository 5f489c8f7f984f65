"""Shared tools of the tests of `check_core`: small cores, and the findings of the check for broken ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctrl import Finding, LawBroken, MemoryCore, Tier, Unrolled, check_core
from ctrl.baselines.lstm_gru import GRUCore, GRUState
from ctrl.compressive.core import CompressiveCore

INPUTS = 5


class Small(CompressiveCore):
    """Core that is small enough for a check in a second or two."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            INPUTS, **{"width": 8, "heads": 2, "layers": 1, "memory": [Tier(4), Tier(3, 3, "conv")], **options}
        )


class Gated(GRUCore):
    def __init__(self) -> None:
        super().__init__(INPUTS, width=7)


class Folded(Gated):
    """Core that unrolls step by step, so that a mistake in `_step` has the same effect in `unroll` and acting."""

    def _unroll(self, inputs: Tensor, state: GRUState, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
        outputs = []
        for t in range(inputs.shape[1]):
            output, state = self.step(inputs[:, t], state, reset[:, t])
            outputs.append(output)
        return Unrolled(torch.stack(outputs, dim=1), state, inputs.new_zeros(()), {})


def broken(core: MemoryCore[Any], **options: Any) -> LawBroken:
    """Return the error that `check_core` raises."""
    torch.manual_seed(0)
    short = {"length": 20, "history": 24} if isinstance(core, CompressiveCore) else {}
    with pytest.raises(LawBroken) as caught:
        check_core(core, **{**short, **options})
    return caught.value


def find(error: LawBroken, law: str) -> Finding:
    """Return the finding of the only broken law whose name contains `law`."""
    found = [finding for finding in error.broken if law in finding.law]
    assert len(found) == 1, f"{law} is not named once by: {error}"
    return found[0]


class LateUnroll(Gated):
    def _unroll(self, inputs: Tensor, state: GRUState, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
        return super()._unroll(inputs, state, late(reset), plan, diagnose)


def late(reset: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(reset[:, :1]), reset[:, :-1]], dim=1)
