"""Shared tools of the tests of `check_memory`: a small agent, and the error of the check for a broken one."""

from __future__ import annotations

from typing import Any

import pytest
from agent_toys import CORES, staggered_env

from ctrl import Finding, LawBroken
from ctrl.agents import MemoryPPO, check_memory


def build(
    model_class: type[MemoryPPO] = MemoryPPO, core: str = "gru", policy: Any = "MlpMemoryPolicy", **more: Any
) -> MemoryPPO:
    """Return a small agent of the given class, by default with a recurrent core, whose check is fastest."""
    small = {"core": core, "core_kwargs": CORES[core], "encoder_arch": [8], "net_arch": [8]}
    sizes: dict[str, Any] = {"n_steps": 24, "window": 8, "batch_size": 24, "n_epochs": 2}
    options: dict[str, Any] = {"learning_rate": 3e-4, "seed": 0, "device": "cpu"}
    return model_class(policy, staggered_env(), policy_kwargs=small, **sizes, **options, **more)


def broken(model: MemoryPPO, env: Any = None) -> LawBroken:
    with pytest.raises(LawBroken) as caught:
        check_memory(model, env)
    return caught.value


def find(error: LawBroken, law: str) -> Finding:
    found = [finding for finding in error.broken if law in finding.law]
    assert len(found) == 1, f"{law} is not named once by: {error}"
    return found[0]
