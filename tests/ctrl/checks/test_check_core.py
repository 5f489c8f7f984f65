"""`check_core` with sound and broken cores: it passes sound ones unchanged, and reports all broken laws at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from core_toys import INPUTS, Folded, Gated, LateUnroll, Small, broken, find
from torch import Tensor

import ctrl
from ctrl import Tier, check_core, compressor_names
from ctrl.baselines.lstm_gru import GRUState
from ctrl.checks.checking import up_to_rounding
from ctrl.checks.laws import LAWS
from ctrl.checks.laws.trial import Trial, shake
from ctrl.checks.result import Law, judge
from ctrl.compressive.attention.block_mask import age_bucket, ages
from ctrl.core import Acting

SOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "compressive, as it is": ("compressive", {}),
    "lstm": ("lstm", {}),
    "gru, wide": ("gru", {"width": 256, "layers": 3}),
}
RECONSTRUCTION = "law 5 (gradients): the reconstruction loss reaches the compressors"


# Sound cores; `tests/ctrl/test_laws.py` checks small ones of every kind


@pytest.mark.parametrize("name", SOUND)
def test_sound_cores_keep_all_laws(name: str) -> None:
    torch.manual_seed(0)
    kind, options = SOUND[name]
    findings = check_core(ctrl.make_core(kind, INPUTS, **options))
    assert [finding.law for finding in findings] == [law.name for law in LAWS]
    others = {finding.law for finding in findings if finding.status != "kept"}
    assert others == (set() if kind == "compressive" else {RECONSTRUCTION})


@pytest.mark.parametrize("compressor", compressor_names())
def test_sound_with_every_compressor(compressor: str) -> None:
    """The two layers have memories of different depth, so a compressor also gets compressed slots."""
    memory = [[Tier(4), Tier(3, 2, compressor), Tier(2, 3, compressor)], [Tier(5)]]
    core = Small(layers=2, memory=memory)
    findings = {finding.law: finding for finding in check_core(core, length=20)}
    assert findings[RECONSTRUCTION].status == ("kept" if core.compression_parameters() else "not applicable")
    assert not findings["law 5 (gradients): the task loss reaches the rest"].detail, "or it could not reach all"


LEARNING: dict[str, dict[str, Any]] = {
    "auto_encoding": {"reconstruction": "auto_encoding"},
    "none": {"reconstruction": "none"},
    "the task": {"compression_gradient": "task"},
}


@pytest.mark.parametrize("compressor", ["conv", "select", "gru"])
@pytest.mark.parametrize("learning", LEARNING)
def test_sound_whatever_compressors_learn_from(learning: str, compressor: str) -> None:
    core = Small(memory=[Tier(4), Tier(3, 3, compressor)], **LEARNING[learning])
    findings = {finding.law: finding for finding in check_core(core, length=20)}
    told = {
        "auto_encoding": ("kept", ""),
        "none": ("kept", "the reconstruction loss is 0, so the compressors stay as they are"),
        "the task": ("not applicable", "it has no compression_parameters()"),
    }
    expected = told[learning] if core.compression_parameters() else told["the task"]
    assert (findings[RECONSTRUCTION].status, findings[RECONSTRUCTION].detail) == expected


def test_a_core_of_ones_own_that_folds_its_steps_is_sound() -> None:
    assert all(finding.status != "broken" for finding in check_core(Folded(), batch_size=4, seed=3))


@pytest.mark.parametrize("batch_size", [2, 5])
def test_any_number_of_envs_will_do(batch_size: int) -> None:
    check_core(Gated(), batch_size=batch_size)
    check_core(Small(), batch_size=batch_size, length=16)


def test_weights_may_be_checked_as_they_are_and_in_double_precision() -> None:
    check_core(Gated().double(), noise=0.0, tolerance=1e-9)


class Rough(Gated):
    """Core with a large rounding error: 3.6e-4 in float32, and tiny in float64."""

    def off(self) -> float:
        return 3e3 * torch.finfo(self.dtype).eps

    def _step(self, inputs: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        outputs, state = super()._step(inputs, state)
        return outputs * (1 + self.off()), state


class Rougher(Rough):
    """Core with an error too large for rounding."""

    def off(self) -> float:
        return 30 * super().off()


class Wrong(Rough):
    """Core with the same error in float64, so that it is no rounding."""

    def off(self) -> float:
        return 3.6e-4


class Single(Rough):
    """Core without float64."""

    def double(self) -> Single:
        raise TypeError("no float64 here")


class Stays(Rough):
    def double(self) -> Stays:
        return self


def test_what_is_but_rounding_breaks_no_law() -> None:
    remarks = [finding.detail for finding in check_core(Rough()) if "float64" in finding.detail]
    assert remarks and all(remark.startswith("in float64; in torch.float32 ") for remark in remarks)
    assert "differ at env" in remarks[0]


def test_float64_sees_the_same_inputs_and_weights() -> None:
    assert Trial(Single()).in_double is None and Trial(Stays()).in_double is None
    trial = Trial(Small())
    trial.randn(3)
    exact = trial.in_double
    assert exact is not None and exact.in_double is None
    for one, other in [(trial.young, exact.young), (trial.old, exact.old)]:
        assert torch.equal(one.inputs.double(), other.inputs) and torch.equal(one.reset, other.reset)
    for (name, one), other in zip(trial.pristine.named_parameters(), exact.pristine.parameters(), strict=True):
        torch.testing.assert_close(one.double(), other, msg=name)


def test_each_law_draws_the_same_whatever_came_before() -> None:
    drawn: list[Tensor] = []

    def law(trial: Trial) -> str:
        drawn.append(trial.randn(3))
        return ""

    trial = Trial(Small())
    for _ in range(2):
        judge(up_to_rounding(Law("none", law)), trial)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("core", [Rougher, Wrong, Single, Stays])
def test_what_cannot_be_told_from_a_breach_is_one(core: type[Rough]) -> None:
    assert "law 1" in broken(core()).law


def test_parameters_of_one_value_are_moved_too() -> None:
    """Noise is added to each parameter. For a matrix it is scaled by the Xavier spread, so the width has no effect."""
    module = torch.nn.ParameterList([torch.zeros(400, 400), torch.ones(100, 1600), torch.zeros(160_000)])
    shake(module, 0.2, torch.Generator().manual_seed(0))
    assert [round(float(parameter.std()), 3) for parameter in module] == [0.01, 0.2, 0.2]


def test_what_a_check_cannot_reach_is_told() -> None:
    core = Small(memory=[Tier(4), Tier(4, 4, "conv"), Tier(900, 4, "conv")])
    findings = {finding.law: finding for finding in check_core(core, length=16, history=30)}
    steps = findings["law 1 (one meaning): unroll equals acting"]
    assert steps.status == "kept" and "lived for 30 steps" in steps.detail and "14,428" in steps.detail


def test_ages_off_by_one_in_all_ways_alike_are_another_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The docstring of `check_core` states this limit of a black-box check."""
    monkeypatch.setattr(
        "ctrl.compressive.attention.block_mask.ages", lambda plan, layout: (ages(plan, layout) - 1).clamp_min(0)
    )
    monkeypatch.setattr(
        "ctrl.compressive.cache_schedule.age_bucket", lambda age, exact: age_bucket((age - 1).clamp_min(0), exact)
    )
    check_core(Small(), length=20)


# Nothing is changed


def test_the_core_and_the_random_numbers_are_left_alone() -> None:
    core = Small().eval()
    core.embed.weight.requires_grad_(False)
    core.unroll(
        torch.randn(2, 3, INPUTS), core.initial_state(2), torch.zeros(2, 3, dtype=torch.bool)
    ).outputs.sum().backward()
    weights = {name: value.clone() for name, value in core.state_dict().items()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in core.named_parameters()}
    attributes = copy.copy(core.__dict__)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    findings = check_core(core, length=16)
    assert torch.equal(torch.rand(3), expected)
    assert not core.training and core.__dict__ == attributes
    assert all(torch.equal(value, weights[name]) for name, value in core.state_dict().items())
    for name, parameter in core.named_parameters():
        assert parameter.requires_grad == (name != "embed.weight")
        gradient = gradients[name]
        assert (parameter.grad is None) if gradient is None else torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]
    assert "requires_grad is False from the beginning for embed.weight" in [finding.detail for finding in findings]


def test_gradients_may_be_switched_off_outside() -> None:
    with torch.no_grad():
        check_core(Gated())
        assert not torch.is_grad_enabled()


def test_bad_arguments_are_named() -> None:
    for options, message in (
        ({"batch_size": 1}, "batch_size must be at least 2.*got 1"),
        ({"batch_size": 0}, "batch_size must be a whole number.*got 0"),
        ({"length": 7}, "length must be at least 8, got 7"),
        ({"history": 0}, "history must be a whole number.*got 0"),
        ({"noise": 1.5}, "noise must be from 0 to 1, got 1.5"),
        ({"tolerance": float("nan")}, "tolerance must be from 0 to 1, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            check_core(Gated(), **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="core must be a MemoryCore, got GRU"):
        check_core(torch.nn.GRU(3, 4))  # type: ignore[arg-type]


# The report


def test_all_that_is_broken_is_told_at_once() -> None:
    error = broken(LateUnroll())
    assert str(error).startswith(f"LateUnroll breaks {len(error.broken)} of {len(LAWS)} laws:\n✗ law 1")
    assert len(error.broken) >= 4 and len(error.findings) == len(LAWS)


def test_what_a_core_raises_breaks_the_law_and_no_other() -> None:
    class Fails(Gated):
        def acting(self, state: GRUState) -> Acting[GRUState]:
            raise RuntimeError("no acting today")

    error = broken(Fails())
    assert find(error, "unroll equals acting").detail == "RuntimeError: no acting today"
    kept = {finding.law for finding in error.findings if finding.status == "kept"}
    assert "law 1 (one meaning): unroll equals folded steps" in kept
