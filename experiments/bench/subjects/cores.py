"""Cores that the benchmarks time by themselves: their inputs, their states and their size."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import ctrl
from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.tiers import reach
from ctrl.experiments.bench.harness import SEED

INPUT_SIZE = 64
WARM_UP = 20
"""Number of acting steps at the start of a turn that are not timed."""


def parameters_of(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


def drawn(*shape: int) -> torch.Tensor:
    """Return normal random numbers of a shape, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED))


def warm_state(core: ctrl.MemoryCore[Any], batch_size: int) -> Any:
    """Return a state with all slots full, of envs whose episodes have different ages.

    A core other than the compressive one gets its initial state.
    """
    state = core.initial_state(batch_size)
    if not isinstance(core, CompressiveCore):
        return state
    oldest = max(map(reach, core.tiers))
    # Seven steps apart: coprime to the usual rates, so that about equally many envs compress in each step.
    clock = oldest + 7 * torch.arange(batch_size)
    return state._replace(clock=clock, slots=drawn(*state.slots.shape))
