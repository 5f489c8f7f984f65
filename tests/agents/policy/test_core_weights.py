"""Cores that move between plain PyTorch, `MemoryPPO` and `MemoryImpala`: the same outputs everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from actor_toys import BOTH, UPDATE, make_impala
from agent_toys import CORES, make_model, same_weights, staggered_env, weights_of
from torch import Tensor

import ctrl
from ctrl import MemoryCore

INPUTS = 8
"""Features that the encoder of the small agents gives to the core."""
BATCH, LENGTH = 3, 21


def plain(core: str) -> MemoryCore[Any]:
    """Return a core that was trained in plain PyTorch for two updates."""
    made = ctrl.make_core(core, INPUTS, **CORES[core])
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(2):
        inputs, reset = torch.randn(BATCH, LENGTH, INPUTS), torch.rand(BATCH, LENGTH) < 0.1
        unrolled = made.unroll(inputs, made.initial_state(BATCH), reset)
        (unrolled.outputs.square().mean() + unrolled.reconstruction_loss).backward()
        optimizer.step()
        made.adapt({name: float(value) for name, value in unrolled.diagnostics.items()})
    return made


def of_agent(make: Callable[..., Any]) -> Callable[[str], MemoryCore[Any]]:
    return lambda core: make(staggered_env(), core).learn(UPDATE).policy.core


SOURCES = {"plain": plain, "ppo": of_agent(make_model), "impala": of_agent(make_impala)}


def new_agent(make: Callable[..., Any]) -> Callable[[Path, str], MemoryCore[Any]]:
    """Return a function that builds an agent around a saved core."""

    def take(path: Path, core: str) -> MemoryCore[Any]:
        options = {"core": ctrl.load_core(path), "core_kwargs": None}
        return make(staggered_env(), core, policy_kwargs=options).policy.core

    return take


def old_agent(make: Callable[..., Any]) -> Callable[[Path, str], MemoryCore[Any]]:
    """Return a function that loads a saved core into an agent that exists."""
    return lambda path, core: ctrl.load_core(path, into=make(staggered_env(), core).policy.core)


TARGETS = {
    "plain": lambda path, core: ctrl.load_core(path),
    "new ppo": new_agent(make_model),
    "old ppo": old_agent(make_model),
    "new impala": new_agent(make_impala),
    "old impala": old_agent(make_impala),
}


def outputs(core: MemoryCore[Any]) -> list[Tensor]:
    """Return the outputs and states of a window, of acting on from it, and the settings that the core has adapted."""
    random = torch.Generator().manual_seed(5)
    inputs = torch.randn(BATCH, LENGTH, INPUTS, generator=random)
    reset = torch.rand(BATCH, LENGTH, generator=random) < 0.1
    with torch.no_grad():
        unrolled = core.unroll(inputs, core.initial_state(BATCH), reset)
    acting = core.acting(unrolled.state)
    return [unrolled.outputs, acting.step(inputs[:, 0], reset[:, 0]), *acting.state(), *core.buffers()]


@pytest.mark.parametrize("core", ["compressive", "lstm"])
@pytest.mark.parametrize("source", SOURCES)
def test_all_pairs_give_the_same_outputs(core: str, source: str, tmp_path: Path) -> None:
    made = SOURCES[source](core)
    ctrl.save_core(made, tmp_path / "core")
    expected = outputs(made)
    for target, take in TARGETS.items():
        found = outputs(take(tmp_path / "core", core))
        assert all(map(torch.equal, found, expected)), f"{source} to {target}"


@BOTH
def test_an_agent_around_a_saved_core_learns_and_is_saved(make: Any, tmp_path: Path) -> None:
    core = plain("compressive")
    before = {name: tensor.clone() for name, tensor in core.state_dict().items()}
    options = {"core": core, "core_kwargs": None}
    model = make(staggered_env(), policy_kwargs=options)
    assert model.policy_kwargs["core"] == "compressive" and options["core"] is core
    assert model.policy.core is not core
    model.learn(UPDATE)
    assert same_weights(before, core.state_dict()), "the agent has a copy"
    assert not same_weights(before, model.policy.core.state_dict())
    model.save(tmp_path / "agent")
    loaded = type(model).load(tmp_path / "agent", device="cpu")
    assert same_weights(weights_of(model), weights_of(loaded))


@BOTH
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"core_kwargs": {"width": 8}}, r"core is built already, so core_kwargs must be left out, got \{'width': 8\}"),
        (
            {"core_kwargs": None, "encoder_arch": [9]},
            r"core has input_size = 8, but the encoder gives 9; use encoder_arch=\[8\]",
        ),
    ],
)
def test_a_core_that_does_not_fit_is_refused(make: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(staggered_env(), policy_kwargs={"core": plain("gru"), **options})
