"""`check_core` with wrong gradients: it names parameters and inputs that they should reach, or should not (law 5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_toys import INPUTS, Gated, Small, broken, find
from torch import Tensor

from ctrl import Unrolled
from ctrl.baselines.mingru import MinGRUCore, _GatedScan
from ctrl.compressive.core import CompressiveState


def test_compressors_that_the_task_loss_reaches() -> None:
    class Uncut(Small):
        def cut_graph(self, slots: Tensor) -> Tensor:
            return slots

    assert "reaches compression_parameters(): compressors.0.0.weight" in find(broken(Uncut()), "the task loss").detail


def test_a_reconstruction_loss_that_reaches_the_rest() -> None:
    class Summed(Small):
        def _unroll(self, *args: Any) -> Unrolled:
            unrolled = super()._unroll(*args)
            weighted = (self.layers[0].attention.output.weight * 1e-3).sum()  # type: ignore[union-attr,operator]
            return unrolled._replace(reconstruction_loss=unrolled.reconstruction_loss + weighted)

    assert (
        "reaches main_parameters(): layers.0.attention.output.weight" in find(broken(Summed()), "reconstruction").detail
    )


def test_a_reconstruction_loss_without_a_gradient() -> None:
    class Detached(Small):
        def _unroll(self, *args: Any) -> Unrolled:
            unrolled = super()._unroll(*args)
            return unrolled._replace(reconstruction_loss=unrolled.reconstruction_loss.detach())

    found = find(broken(Detached()), "the reconstruction loss")
    assert "does not reach compressors.0.0.weight" in found.detail


class FrozenForGood(Small):
    """Core with a well-known mistake: it detaches keys and values in place, and with them the parameter."""

    def _unroll(self, *args: Any) -> Unrolled:
        unrolled = super()._unroll(*args)
        for layer in self.layers:
            layer.attention.key_value.weight.requires_grad_(False)  # type: ignore[union-attr]
        return unrolled


class FrozenOnceTrained(Small):
    """Core whose key and value weights get no gradient after their first one, though `requires_grad` stays True."""

    trained = False

    def _unroll(self, *args: Any) -> Unrolled:
        weight = self.layers[0].attention.key_value.weight  # type: ignore[union-attr]
        self.trained = self.trained or weight.grad is not None
        if not self.trained:
            return super()._unroll(*args)
        return without_gradient(weight, super()._unroll, *args)


class NeverTrained(Small):
    def _unroll(self, *args: Any) -> Unrolled:
        return without_gradient(self.layers[0].attention.key_value.weight, super()._unroll, *args)  # type: ignore[union-attr]


class StepNotTrained(Small):
    def step(self, *args: Any) -> tuple[Tensor, CompressiveState]:
        return without_gradient(self.layers[0].attention.key_value.weight, super().step, *args)  # type: ignore[union-attr]


def without_gradient(weight: Any, call: Any, *args: Any) -> Any:
    weight.requires_grad_(False)
    try:
        return call(*args)
    finally:
        weight.requires_grad_(True)


@pytest.mark.parametrize(
    ("core_class", "law", "detail"),
    [
        (
            FrozenForGood,
            "training freezes nothing",
            "sets requires_grad of layers.0.attention.key_value.weight to False",
        ),
        (
            FrozenOnceTrained,
            "training freezes nothing",
            "after two rounds of training no loss reaches layers.0.attention",
        ),
        (NeverTrained, "the task loss reaches the rest", "does not reach layers.0.attention.key_value.weight"),
        (StepNotTrained, "a step has those of a window", "the gradient of layers.0.attention.key_value.weight differs"),
    ],
)
def test_frozen_keys_and_values(core_class: type[Small], law: str, detail: str) -> None:
    error = broken(core_class())
    assert detail in find(error, f"law 5 (gradients): {law}").detail


def test_inputs_that_no_gradient_reaches() -> None:
    class Cut(Gated):
        def _unroll(self, inputs: Tensor, *args: Any) -> Unrolled:
            return super()._unroll(inputs.detach(), *args)

    assert "does not reach the inputs" in find(broken(Cut()), "the task loss").detail


@pytest.mark.parametrize(("axis", "env", "step"), [(0, 1, 38), (1, 0, 39)])
def test_gradients_that_go_where_no_number_does(axis: int, env: int, step: int) -> None:
    """Such gradients come from a hand-written backward that ignores envs, resets or the order of steps."""

    class Strays(Gated):
        def _unroll(self, inputs: Tensor, *args: Any) -> Unrolled:
            unrolled = super()._unroll(inputs, *args)
            nothing = (inputs - inputs.detach()).mean(dim=(axis, 2), keepdim=True)
            return unrolled._replace(outputs=unrolled.outputs + nothing)

    error = broken(Strays())
    assert [finding.law for finding in error.broken] == ["law 5 (gradients): none leaves its episode"]
    assert (error.env, error.step) == (env, step) and "of env 0, step 38 reaches the input" in error.detail


class LeakingScan(_GatedScan):
    """Scan with right outputs, and with the gradients of a scan without resets."""

    @staticmethod
    def forward(ctx: Any, update: Tensor, candidate: Tensor, hidden: Tensor, reset: Tensor) -> Tensor:
        outputs = _GatedScan.forward(ctx, update, candidate, hidden, reset)
        ctx.save_for_backward(update, candidate, hidden, torch.zeros_like(reset), outputs)
        return outputs


def test_a_backward_that_goes_over_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrl.baselines.mingru._GatedScan", LeakingScan)
    error = broken(MinGRUCore(INPUTS, width=7))
    assert not [finding for finding in error.broken if "law 1" in finding.law or "nothing reaches" in finding.law]
    found = find(error, "none leaves its episode")
    assert (found.env, found.step) == (1, 0) and "its episode began at step 11" in found.detail


@pytest.mark.parametrize(("times", "kept"), [(0, slice(1, None)), (2, slice(None))])
def test_lists_that_leave_out_or_share_a_parameter(times: int, kept: slice) -> None:
    class Listed(Small):
        def main_parameters(self) -> list[torch.nn.Parameter]:
            return (list(self.parameters()) if times == 2 else super().main_parameters())[kept]

    name = "compressors.0.0.weight" if times == 2 else "embed.weight"
    assert f"{name} is {times} times in" in find(broken(Listed()), "disjoint and complete").detail
