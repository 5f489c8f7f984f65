"""Gradients of the task's losses and of the reconstruction loss, their optimizers, and their clips."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from actor_toys import BOTH, UPDATE
from agent_toys import CORES, AtRolloutEnd, make_model, staggered_env, weights_of

from ctrl.agents import MemoryPPO
from ctrl.agents.algorithm import MemoryAlgorithm

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
    assert (model.policy.memory_optimizer is not None) == (core == "compressive")
    assert memory == {name for name, _ in model.policy.named_parameters() if "compressors" in name}


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


@BOTH
@pytest.mark.parametrize("core", CORES)
def test_learning_leaves_requires_grad_as_it_was(core: str, make: Any) -> None:
    model = make(staggered_env(), core)
    before = {name: parameter.requires_grad for name, parameter in model.policy.named_parameters()}
    model.learn(2 * UPDATE)
    assert {name: parameter.requires_grad for name, parameter in model.policy.named_parameters()} == before
    assert all(before.values())


@BOTH
def test_the_two_optimizers_are_apart(make: Any) -> None:
    """The reconstruction loss trains compressors, with their own rate and clip, and nothing else."""
    moved = {}
    for frozen in ("learning_rate", "memory_learning_rate"):
        # Normalised, the value head would also move with the statistics of returns.
        model = make(staggered_env(), normalize_values=False, **{frozen: 1e-30})
        before = weights_of(model)
        model.learn(3 * UPDATE)
        apart = {name: float((tensor - before[name]).abs().max()) for name, tensor in weights_of(model).items()}
        moved[frozen] = {name for name, by in apart.items() if by > 1e-20}
    compressors = {name for name in weights_of(model) if name.startswith("core.compressors")}
    met = {name for name in weights_of(model) if name.endswith((".end", ".oldest_bucket"))}
    moved["learning_rate"] -= met  # how far training has come, which no optimizer moves
    assert moved["learning_rate"] == compressors != set()
    assert not moved["memory_learning_rate"] & compressors and len(moved["memory_learning_rate"]) > 10


@BOTH
def test_each_optimizer_has_its_own_clip(make: Any) -> None:
    model = make(staggered_env(), max_grad_norm=1e-3, memory_max_grad_norm=1e-7).learn(2 * UPDATE)
    for optimizer, limit in ((model.policy.optimizer, 1e-3), (model.policy.memory_optimizer, 1e-7)):
        assert optimizer is not None
        grads = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        assert float(torch.cat(grads).norm()) == pytest.approx(limit, rel=1e-2)


@BOTH
def test_each_optimizer_follows_a_schedule_of_its_own(make: Any) -> None:
    """The remaining share of training is 1 before the first of two updates, 1/2 in the first and 0 in the second."""
    schedules = {"learning_rate": lambda left: 1e-3 + left, "memory_learning_rate": lambda left: 1e-4 + 2 * left}
    model = make(staggered_env(), **schedules)
    found: list[list[float]] = []

    def look(model: MemoryAlgorithm) -> None:
        optimizers = (model.policy.optimizer, model.policy.memory_optimizer)
        found.append([group["lr"] for optimizer in optimizers for group in optimizer.param_groups])

    look(model.learn(2 * UPDATE, AtRolloutEnd(look)))
    assert found == [pytest.approx(rates) for rates in ([1.001, 2.0001], [0.501, 1.0001], [1e-3, 1e-4])]
    logged = [model.logger.name_to_value[f"{part}/learning_rate"] for part in ("train", "memory")]
    assert logged == found[-1]
