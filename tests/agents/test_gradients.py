"""Gradients of the task's losses and of the reconstruction loss, their optimizers, and their clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agent_toys import CORES, make_model, staggered_env

from ctrl.agents import MemoryPPO

LEARNERS = [name for name in CORES if name != "compressive"]


def parameters_of(optimizer: torch.optim.Optimizer | None) -> list[torch.nn.Parameter]:
    return [] if optimizer is None else [p for group in optimizer.param_groups for p in group["params"]]


def names_of(model: MemoryPPO, optimizer: torch.optim.Optimizer | None) -> set[str]:
    held = {id(parameter) for parameter in parameters_of(optimizer)}
    return {name for name, parameter in model.policy.named_parameters() if id(parameter) in held}


def reached(model: MemoryPPO) -> set[str]:
    return {name for name, p in model.policy.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}


def lived(core: str = "compressive", **options: Any) -> MemoryPPO:
    """Return a trained agent with a rollout in its buffer.

    Its parameters are moved away from zeros and identities, which would hide a mistake.
    """
    model = make_model(staggered_env(), core, **options)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.learn(24 * 3)


@pytest.mark.parametrize("core", CORES)
def test_the_optimizers_share_nothing_and_leave_nothing_out(core: str) -> None:
    model = make_model(staggered_env(), core)
    main, memory = names_of(model, model.policy.optimizer), names_of(model, model.policy.memory_optimizer)
    assert not main & memory
    assert main | memory == {name for name, _ in model.policy.named_parameters()}
    assert len(parameters_of(model.policy.optimizer)) == len(main)
    assert len(parameters_of(model.policy.memory_optimizer)) == len(memory)
    assert (model.policy.memory_optimizer is not None) == (core in ("compressive", "adaptive"))
    assert memory == {name for name, _ in model.policy.named_parameters() if "compressors" in name}


@pytest.mark.parametrize("core", CORES)
def test_learning_leaves_requires_grad_as_it_was(core: str) -> None:
    model = make_model(staggered_env(), core)
    before = {name: parameter.requires_grad for name, parameter in model.policy.named_parameters()}
    model.learn(2 * 24 * 3)
    assert {name: parameter.requires_grad for name, parameter in model.policy.named_parameters()} == before
    assert all(before.values())


def test_each_loss_reaches_its_own_parameters() -> None:
    model = lived()
    main, memory = names_of(model, model.policy.optimizer), names_of(model, model.policy.memory_optimizer)
    batch = model.rollout_buffer.all_windows(model.policy)

    model.policy.zero_grad()
    evaluated = model.policy.evaluate_windows(batch.windows)
    assert evaluated.entropy is not None
    (evaluated.log_prob.mean() + evaluated.entropy.mean() + evaluated.values.square().mean()).backward()
    assert reached(model) == main

    model.policy.zero_grad()
    model.policy.evaluate_windows(batch.windows).unrolled.reconstruction_loss.backward()
    assert reached(model) == memory


def test_all_that_can_learn_does() -> None:
    model = make_model(staggered_env())
    before = {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}
    model.learn(4 * 24 * 3)
    assert not [name for name, parameter in model.policy.named_parameters() if torch.equal(parameter, before[name])]


@pytest.mark.parametrize("huge", ["main", "memory"])
def test_a_huge_gradient_of_one_group_does_not_scale_the_others(huge: str) -> None:
    """With plain SGD a step is the clipped gradient; a shared clip would shrink it a billionfold."""
    sgd = {"optimizer_class": torch.optim.SGD}
    model = lived(policy_kwargs=sgd, learning_rate=1.0, memory_learning_rate=1.0)
    # Compressors always have Adam, for any optimizer of the policy, and Adam's scaling hides a gradient's size.
    model.policy.memory_optimizer = torch.optim.SGD(parameters_of(model.policy.memory_optimizer), lr=1.0)
    groups = {"main": model.policy.optimizer, "memory": model.policy.memory_optimizer}
    limits = {"main": model.max_grad_norm, "memory": model.memory_max_grad_norm}
    before = {name: [p.detach().clone() for p in parameters_of(optimizer)] for name, optimizer in groups.items()}
    for name, optimizer in groups.items():
        for parameter in parameters_of(optimizer):
            parameter.grad = torch.full_like(parameter, 1e9 if name == huge else 1e-4)
    model._update_learning_rates()
    model._optimize(_Sink())  # type: ignore[arg-type]
    for name, optimizer in groups.items():
        moved = torch.cat(
            [(p.detach() - old).flatten() for p, old in zip(parameters_of(optimizer), before[name], strict=True)]
        )
        unclipped = 1e-4 * moved.numel() ** 0.5
        expected = limits[name] if name == huge else unclipped
        assert unclipped < limits[name]
        assert float(moved.norm()) == pytest.approx(expected, rel=1e-3)


class _Sink:
    def add(self, name: str, value: torch.Tensor) -> None:
        pass


def test_each_optimizer_follows_its_own_schedule() -> None:
    model = make_model(
        staggered_env(), learning_rate=lambda left: 1e-3 * left, memory_learning_rate=lambda left: 1e-2 * left + 1e-3
    )
    model.learn(4 * 24 * 3)
    left = 0.0  # after the last rollout
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [1e-3 * left]
    assert model.policy.memory_optimizer is not None
    assert [group["lr"] for group in model.policy.memory_optimizer.param_groups] == [1e-2 * left + 1e-3]
    assert model.logger.name_to_value["memory/learning_rate"] == 1e-3
