"""`check_core` with mistakes in resets, leaks and states (laws 2 to 4): it names the law, the env and the step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from core_toys import INPUTS, Folded, Gated, Small, broken, find
from torch import Tensor

from ctrl import LawBroken, Unrolled
from ctrl.baselines.lstm_gru import GRUState, LSTMCore, LSTMState
from ctrl.checks.laws.stream import STEPPING, WAYS
from ctrl.core import Acting, PlainActing

# Law 2: reset first


def test_a_reset_by_multiplication() -> None:
    class Multiplied(Gated):
        def reset_state(self, state: GRUState, reset: Tensor) -> GRUState:
            return GRUState(state.hidden * (~reset)[:, None, None])

    error = broken(Multiplied())
    found = find(error, "a state of NaN is harmless at a reset")
    assert found.step == 0 and "nan" in found.detail
    inputs = [f"law 2 (reset first): what is not finite stays before a reset, {way}" for way in STEPPING]
    assert [finding.law for finding in error.broken] == [*inputs, found.law]


def test_a_reset_that_trusts_what_a_lived_in_state_says_of_its_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty state would not show the mistake, because it has no slots."""
    monkeypatch.setattr("ctrl.compressive.core.harmless", Tensor.detach)
    found = find(broken(Small()), "a state of NaN is harmless at a reset")
    assert found.step == 0 and "nan" in found.detail


def test_a_reset_that_a_huge_state_outweighs() -> None:
    """Neither inputs nor NaN show the mistake: the one leave a state of at most 1, the other is cleaned."""

    class Masked(Folded):
        def reset_state(self, state: GRUState, reset: Tensor) -> GRUState:
            score = state.hidden.nan_to_num().mean(dim=2, keepdim=True) - 1e9 * reset[:, None, None]
            return GRUState(state.hidden.nan_to_num() * score.sigmoid())

    _only_a_huge_state_passes(broken(Masked()))


def test_slots_whose_carried_numbers_outweigh_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrl.compressive.core.harmless", lambda carried: carried.detach().nan_to_num())
    _only_a_huge_state_passes(broken(Small()), "unroll")


def _only_a_huge_state_passes(error: LawBroken, *ways: str) -> None:
    laws = {f"law 2 (reset first): nothing reaches over a reset, {way}" for way in ways or WAYS}
    assert {finding.law for finding in error.broken} == laws
    assert all("with other huge inputs and a huge state" in finding.detail for finding in error.broken)


def test_a_reset_that_loses_the_first_step() -> None:
    """`unroll`, `step` and acting agree, and nothing passes the reset, but the first observation is lost too."""

    class LosesTheFirst(Folded):
        def step(self, inputs: Tensor, state: GRUState, reset: Tensor) -> tuple[Tensor, GRUState]:
            outputs, state = super().step(inputs, state, reset)
            return outputs, self.reset_state(state, reset)

    error = broken(LosesTheFirst())
    assert [finding.law for finding in error.broken] == ["law 2 (reset first): a reset is a fresh start"]
    assert error.step == 1


def test_a_reset_of_half_of_the_state() -> None:
    class Half(LSTMCore):
        def reset_state(self, state: LSTMState, reset: Tensor) -> LSTMState:
            return super().reset_state(state, reset)._replace(cell=state.cell)

    error = broken(Half(INPUTS, width=7))
    find(error, "nothing reaches over a reset, acting")
    assert find(error, "a reset is a fresh start").step == 0


def test_a_reset_of_all_when_one_resets() -> None:
    class All(Folded):
        def reset_state(self, state: GRUState, reset: Tensor) -> GRUState:
            return super().reset_state(state, reset.any().expand_as(reset))

    error = broken(All())
    find(error, "each env is as if alone")
    assert "with other resets in env" in find(error, "no output sees another env").detail


def test_windows_that_multiply_what_is_not_finite_by_a_gradient_of_zero() -> None:
    """Their outputs are right, but all weights would be NaN after a step of the optimizer."""

    class Unguarded(Folded):
        def unroll(self, inputs: Tensor, state: GRUState, reset: Tensor, **_: Any) -> Unrolled:
            return self._unroll(inputs, state, reset, None, False)

    error = broken(Unguarded())
    found = find(error, "what is not finite stays before a reset, unroll")
    assert "nan in inputs before a reset reaches the gradient of rnn.weight_ih_l0" in found.detail


# Law 3: no leaks


def test_a_leak_across_envs() -> None:
    class Mean(Folded):
        def _step(self, inputs: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
            return super()._step(inputs - 0.01 * inputs.mean(dim=0), state)

    error = broken(Mean())
    assert "other inputs in env 0" in find(error, "no output sees another env").detail
    assert find(error, "no output sees another env").env == 1
    find(error, "each env is as if alone")


def test_a_norm_over_the_batch() -> None:
    class Normed(Gated):
        def __init__(self) -> None:
            super().__init__()
            self.batch_norm = torch.nn.BatchNorm1d(INPUTS, track_running_stats=False)

        def _unroll(self, inputs: Tensor, *args: Any) -> Unrolled:
            return super()._unroll(self.batch_norm(inputs.flatten(0, 1)).view_as(inputs), *args)

        def _step(self, inputs: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
            return super()._step(self.batch_norm(inputs), state)

    error = broken(Normed())
    find(error, "no output sees another env")
    find(error, "no output sees the future")


def test_a_leak_from_the_future() -> None:
    class Sees(Gated):
        def _unroll(self, inputs: Tensor, state: GRUState, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
            ahead = torch.cat([inputs[:, 1:], inputs[:, -1:]], dim=1)
            return super()._unroll(inputs + 1e-6 * ahead, state, reset, plan, diagnose)

    found = find(broken(Sees(), tolerance=1e-3), "no output sees the future")
    assert found.step == 0 and "from step 1 on" in found.detail


# Law 4: state is data


class Dropped(Folded):
    def _step(self, inputs: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        return super()._step(torch.nn.functional.dropout(inputs, 0.1, self.training), state)


class WithGraph(Folded):
    def _step(self, inputs: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        outputs, state = super()._step(inputs, state)
        return outputs, GRUState(outputs[:, None])


class Hidden(Folded):
    seen = 0.0

    def _step(self, inputs: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        outputs, state = super()._step(inputs, state)
        self.seen = 0.5 * self.seen + float(inputs.sum())
        return outputs + self.seen, state


class Counting(Folded):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _step(self, inputs: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        self.steps += 1  # type: ignore[operator]
        return super()._step(inputs, state)


class InPlace(Folded):
    def reset_state(self, state: GRUState, reset: Tensor) -> GRUState:
        state.hidden[reset] = 0
        return state


class Modal(Gated):
    def _unroll(self, inputs: Tensor, state: GRUState, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
        return super()._unroll(inputs if self.training else 2 * inputs, state, reset, plan, diagnose)


class Aliasing(PlainActing[GRUState]):
    def __init__(self, core: Any, state: GRUState) -> None:
        super().__init__(core, state)
        self._state = state


class ActsOnWhatItIsGiven(Gated):
    def acting(self, state: GRUState) -> Acting[GRUState]:
        return Aliasing(self, state)


class OneBuffer(PlainActing[GRUState]):
    """Acting that returns its own buffer as state, and writes to it."""

    def state(self, envs: Any = None) -> GRUState:
        return super().state(envs) if envs is not None else self._state

    def _step(self, inputs: Tensor, reset: Tensor) -> Tensor:
        outputs, state = self.core.step(inputs, self._state, reset)
        self._state.hidden.copy_(state.hidden)
        return outputs


class GivesItsBuffer(Gated):
    def acting(self, state: GRUState) -> Acting[GRUState]:
        return OneBuffer(self, state)


@pytest.mark.parametrize(
    ("core_class", "law", "detail"),
    [
        (WithGraph, "it carries no graph", "state.hidden carries a graph"),
        (Hidden, "nothing is hidden in the module", "between steps of another stream"),
        (Counting, "nothing is hidden in the module", "running the core changes steps of its state_dict"),
        (Dropped, "nothing is hidden in the module", "step between steps of another stream"),
        (Modal, "nothing is hidden in the module", "unroll in eval()"),
        (InPlace, "what is given is not changed", "changes in place the state.hidden"),
        (ActsOnWhatItIsGiven, "what is given is not changed", "was overwritten"),
        (GivesItsBuffer, "what is given is not changed", "that acting returned after step 0 was changed"),
    ],
)
def test_state_that_is_more_than_data(core_class: type[Gated], law: str, detail: str) -> None:
    assert detail in find(broken(core_class()), f"law 4 (state is data): {law}").detail


class Doubled(Folded):
    def _step(self, inputs: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        outputs, state = super()._step(inputs, state)
        return outputs, GRUState(state.hidden.double())


class Growing(Folded):
    def _unroll(self, *args: Any) -> Unrolled:
        unrolled = super()._unroll(*args)
        return unrolled._replace(state=GRUState(torch.cat([unrolled.state.hidden, unrolled.state.hidden], dim=1)))


class LayersFirst(Gated):
    def initial_state(self, batch_size: int) -> GRUState:
        return GRUState(torch.zeros(1, batch_size, self.width))


@pytest.mark.parametrize(
    ("core_class", "detail"),
    [
        (Doubled, "float64"),
        (Growing, "after 40 steps state.hidden has shape torch.Size([3, 2, 7]), at first torch.Size([3, 1, 7])"),
        (LayersFirst, "state.hidden is not batch first: (1, 1, 7) for 1 env and (1, 3, 7) for 3"),
    ],
)
def test_a_state_of_the_wrong_kind_ends_the_check(core_class: type[Gated], detail: str) -> None:
    error = broken(core_class())
    assert len(error.findings) == 1 and error.law.startswith("law 4") and detail in error.detail


def test_a_core_that_cannot_run_ends_the_check() -> None:
    class Narrow(Gated):
        def _unroll(self, *args: Any) -> Unrolled:
            unrolled = super()._unroll(*args)
            return unrolled._replace(outputs=unrolled.outputs[:, :, :-1])

    error = broken(Narrow())
    assert [finding.status for finding in error.findings] == ["kept", "broken"]
    assert "outputs must be of shape (3, 40, 7), got (3, 40, 6)" in error.detail


def test_a_core_that_hides_a_graph_cannot_even_be_copied() -> None:
    core = Gated()
    core.last = core.rnn.weight_hh_l0 * 2  # type: ignore[assignment]
    error = broken(core)
    assert len(error.findings) == 1 and error.law.startswith("law 4") and "deepcopy" in error.detail
