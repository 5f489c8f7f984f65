"""`check_core` passes sound cores, and names law, env and step of planted mistakes."""

from __future__ import annotations

import copy
import re
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import ctrl
from ctrl import Finding, LawBroken, MemoryCore, Tier, Unrolled, check_core
from ctrl.acting import CompressiveActing
from ctrl.band import age_row, ages
from ctrl.compressive import CompressiveCore, CompressiveState
from ctrl.core import Acting, PlainActing
from ctrl.laws import LAWS
from ctrl.recurrent import GRUCore, GRUState
from ctrl.timeline import Rhythm

INPUTS = 5
SOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "compressive, as it is": ("compressive", {}),
    "compressive, small": ("compressive", {"width": 8, "heads": 2, "memory": [Tier(4), Tier(3, rate=3)]}),
    "compressive, three tiers, layers differ": (
        "compressive",
        {
            "width": 6,
            "heads": 3,
            "layers": 3,
            "memory": [[Tier(3), Tier(2, 2, "max"), Tier(2, 2, "conv")], [Tier(5)], [Tier(2), Tier(4, 1, "mean")]],
        },
    ),
    "compressive, no loss": (
        "compressive",
        {"width": 8, "heads": 2, "memory": [Tier(4)] * 1, "reconstruction": "none"},
    ),
    "transformer_xl": ("transformer_xl", {"width": 8, "heads": 4, "slots": 6}),
    "lstm": ("lstm", {}),
    "gru, wide": ("gru", {"width": 256, "layers": 3}),
    "gru, two layers": ("gru", {"width": 7, "layers": 2, "chrono_horizon": None}),
    "feedforward": ("feedforward", {"width": 7}),
}


class Small(CompressiveCore):
    """Small enough to be checked in a second or two."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            INPUTS, **{"width": 8, "heads": 2, "layers": 1, "memory": [Tier(4), Tier(3, rate=3)], **options}
        )


class Gated(GRUCore):
    def __init__(self) -> None:
        super().__init__(INPUTS, width=7)


class Folded(Gated):
    """Unrolls by folding its steps: what is planted in `_step` is in all ways alike."""

    def _unroll(self, inputs: Tensor, state: GRUState, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
        outputs = []
        for t in range(inputs.shape[1]):
            output, state = self.step(inputs[:, t], state, reset[:, t])
            outputs.append(output)
        return Unrolled(torch.stack(outputs, dim=1), state, inputs.new_zeros(()), {})


def broken(core: MemoryCore[Any], **options: Any) -> LawBroken:
    """Return what `check_core` raises."""
    torch.manual_seed(0)
    short = {"length": 20, "history": 24} if isinstance(core, CompressiveCore) else {}
    with pytest.raises(LawBroken) as caught:
        check_core(core, **{**short, **options})
    return caught.value


def find(error: LawBroken, law: str) -> Finding:
    """Return what came of the one broken law whose name has `law` in it."""
    found = [finding for finding in error.broken if law in finding.law]
    assert len(found) == 1, f"{law} is not named once by: {error}"
    return found[0]


# Sound cores


@pytest.mark.parametrize("name", SOUND)
def test_sound_cores_keep_all_laws(name: str) -> None:
    torch.manual_seed(0)
    kind, options = SOUND[name]
    findings = check_core(ctrl.make_core(kind, INPUTS, **options))
    assert [finding.law for finding in findings] == [law.name for law in LAWS]
    assert {finding.status for finding in findings} <= {"kept", "not applicable"}
    others = [finding.law for finding in findings if finding.status == "not applicable"]
    compresses = name.startswith("compressive") and "loss" not in name
    assert others == ([] if compresses else ["law 5 (gradients): the reconstruction loss reaches the compressors"])


def test_a_core_of_ones_own_that_folds_its_steps_is_sound() -> None:
    assert all(finding.status != "broken" for finding in check_core(Folded(), batch_size=4, seed=3))


@pytest.mark.parametrize("batch_size", [2, 5])
def test_any_number_of_envs_will_do(batch_size: int) -> None:
    check_core(Gated(), batch_size=batch_size)
    check_core(Small(), batch_size=batch_size, length=16)


def test_weights_may_be_checked_as_they_are_and_in_double_precision() -> None:
    check_core(Gated().double(), noise=0.0, tolerance=1e-9)


def test_compressors_that_the_task_trains_are_sound() -> None:
    """Then they are main parameters, and slots carry their graph to where they are attended."""
    findings = check_core(Small(compression_gradient="task"))
    assert "law 5 (gradients): the task loss reaches the rest" in {f.law for f in findings if f.status == "kept"}


def test_what_a_check_cannot_reach_is_told() -> None:
    core = Small(memory=[Tier(4), Tier(4, rate=4), Tier(900, rate=4)])
    findings = {finding.law: finding for finding in check_core(core, length=16, history=30)}
    steps = findings["law 1 (one meaning): unroll equals acting"]
    assert steps.status == "kept" and "lived for 30 steps" in steps.detail and "14,428" in steps.detail


def test_ages_off_by_one_in_all_ways_alike_are_another_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the docstring says of the limits of a black box."""
    monkeypatch.setattr("ctrl.band.ages", lambda plan, layout: (ages(plan, layout) - 1).clamp_min(0))
    monkeypatch.setattr("ctrl.acting.age_row", lambda age: age_row((age - 1).clamp_min(0)))
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


# Law 1: one meaning


class LateUnroll(Gated):
    def _unroll(self, inputs: Tensor, state: GRUState, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
        return super()._unroll(inputs, state, late(reset), plan, diagnose)


class LateStep(Gated):
    def step(self, inputs: Tensor, state: GRUState, reset: Tensor) -> tuple[Tensor, GRUState]:
        outputs, state = self._step(inputs, state)
        return outputs, self.reset_state(state, reset)


class LateActing(PlainActing[GRUState]):
    def _step(self, inputs: Tensor, reset: Tensor) -> Tensor:
        outputs = super()._step(inputs, torch.zeros_like(reset))
        self._state = self.core.reset_state(self._state, reset)
        return outputs


class LateWhenActing(Gated):
    def acting(self, state: GRUState) -> Acting[GRUState]:
        return LateActing(self, state)


class LateFolded(LateStep, Folded):
    pass


def late(reset: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(reset[:, :1]), reset[:, :-1]], dim=1)


def test_reset_one_step_late_in_unroll() -> None:
    error = broken(LateUnroll())
    for law in ("folded steps", "folded steps with a graph", "acting"):
        found = next(f for f in error.broken if f.law == f"law 1 (one meaning): unroll equals {law}")
        assert (found.env, found.step) == (2, 1), "env 2 resets at step 0, which makes no difference yet"
        assert "differ at env 2, step 1 of 40" in found.detail and "env 2 resets at 0, 29" in found.detail
    assert "reset, unroll" in find(error, "nothing reaches over a reset, unroll").law
    assert not [f for f in error.broken if "reset, step" in f.law or "reset, acting" in f.law]


def test_reset_one_step_late_in_step() -> None:
    error = broken(LateStep())
    assert (error.law, error.env, error.step) == ("law 1 (one meaning): unroll equals folded steps", 2, 1)
    find(error, "nothing reaches over a reset, step with a graph")
    assert "law 2 (reset first): nothing reaches over a reset, step" in {finding.law for finding in error.broken}


def test_reset_one_step_late_in_acting() -> None:
    error = broken(LateWhenActing())
    found = find(error, "unroll equals acting")
    assert (found.env, found.step) == (2, 1)
    find(error, "nothing reaches over a reset, acting")
    assert not [f for f in error.broken if "reset, step" in f.law or f.law.endswith("folded steps")]


def test_reset_one_step_late_in_all_ways_alike() -> None:
    error = broken(LateFolded())
    assert not [f for f in error.broken if "unroll equals" in f.law]
    assert find(error, "nothing reaches over a reset, unroll").env is not None
    assert find(error, "a reset is a fresh start").step == 0


def test_a_late_reset_in_the_timeline_plan() -> None:
    class LatePlan(Small):
        def plan(self, state: CompressiveState, reset: Tensor) -> Any:
            return super().plan(state, late(reset))

        def check_plan(self, plan: Any, reset: Tensor) -> None:
            pass

    error = broken(LatePlan())
    assert (find(error, "unroll equals acting").env, find(error, "unroll equals acting").step) == (2, 1)


def test_resets_inside_the_window_that_are_ignored() -> None:
    class FirstResetOnly(Gated):
        def _unroll(self, inputs: Tensor, state: GRUState, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
            reset = reset.clone()
            reset[:, 1:] = False
            return super()._unroll(inputs, state, reset, plan, diagnose)

    error = broken(FirstResetOnly())
    assert (error.env, error.step) == (1, 10)
    find(error, "any split means the same")


class ForgetfulActing(CompressiveActing):
    """Takes no notice of weights that change."""

    def _follow_weights(self) -> None:
        pass


def test_a_stale_cache_of_keys_and_values() -> None:
    class Stale(Small):
        def acting(self, state: CompressiveState) -> CompressiveActing:
            return ForgetfulActing(self, state)

    error = broken(Stale())
    assert [finding.law for finding in error.broken] == ["law 1 (one meaning): acting follows the weights"]
    assert error.detail.startswith("acting and a fresh copy, weights changed by an optimizer before step 5,")
    assert error.step is not None and error.step >= 5


def test_a_stale_cache_in_the_module_itself() -> None:
    class Cached(Folded):
        kept: Tensor | None = None

        def _step(self, inputs: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
            if self.kept is None:
                self.kept = self.rnn.weight_hh_l0.detach().clone()  # type: ignore[union-attr]
            outputs, state = super()._step(inputs, state)
            return outputs + self.kept.sum(), state

    find(broken(Cached()), "acting follows the weights")


@pytest.mark.parametrize("where", ["unroll", "acting"])
def test_compression_by_batch_element_0(where: str) -> None:
    class ByTheFirst(Small):
        def plan(self, state: CompressiveState, reset: Tensor) -> Any:
            return super().plan(by_the_first(state) if where == "unroll" else state, reset)

        def acting(self, state: CompressiveState) -> CompressiveActing:
            return super().acting(by_the_first(state) if where == "acting" else state)

    error = broken(ByTheFirst())
    found = find(error, "unroll equals acting")
    assert found.env != 0 and found.step == 0 and "from a state of up to 24 steps" in found.detail
    find(error, "each env is as if alone")


def by_the_first(state: CompressiveState) -> CompressiveState:
    return state._replace(clock=state.clock[:1].expand_as(state.clock).clone())


class Clocked(NamedTuple):
    clock: Tensor
    memory: Tensor


class BlockMean(MemoryCore[Clocked]):
    """Every third step of an episode it takes the sum of its inputs into account; folds its steps."""

    def __init__(self, clock_of_env_0: bool) -> None:
        super().__init__(INPUTS, 4)
        self.clock_of_env_0 = clock_of_env_0
        self.read = torch.nn.Linear(2 * INPUTS, 4)

    def initial_state(self, batch_size: int) -> Clocked:
        return Clocked(torch.zeros(batch_size, dtype=torch.int64), torch.zeros(batch_size, INPUTS))

    def _step(self, inputs: Tensor, state: Clocked) -> tuple[Tensor, Clocked]:
        clock = state.clock[:1].expand_as(state.clock) if self.clock_of_env_0 else state.clock
        memory = torch.where(clock[:, None] % 3 == 2, state.memory + inputs, state.memory)
        return self.read(torch.cat([inputs, memory], dim=1)), Clocked(state.clock + 1, memory.detach())

    def _unroll(self, inputs: Tensor, state: Clocked, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
        outputs = []
        for t in range(inputs.shape[1]):
            output, state = self.step(inputs[:, t], state, reset[:, t])
            outputs.append(output)
        return Unrolled(torch.stack(outputs, dim=1), state, inputs.new_zeros(()), {})


def test_compression_by_batch_element_0_in_all_ways_alike() -> None:
    check_core(BlockMean(clock_of_env_0=False))
    error = broken(BlockMean(clock_of_env_0=True))
    assert not [finding for finding in error.broken if "unroll equals" in finding.law]
    assert error.law == "law 1 (one meaning): each env is as if alone"
    find(error, "no output sees another env")
    assert error.env != 0 and "unroll of all envs and of each alone" in error.detail


def test_positions_off_by_one_in_unroll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrl.band.ages", lambda plan, layout: (ages(plan, layout) - 1).clamp_min(0))
    error = broken(Small())
    found = find(error, "unroll equals acting")
    assert (found.env, found.step) == (0, 1), "a second step is the first that sees an older one"
    assert not [finding for finding in error.broken if "reset" in finding.law]


def test_positions_off_by_one_in_acting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrl.acting.age_row", lambda age: age_row((age - 1).clamp_min(0)))
    error = broken(Small())
    found = find(error, "unroll equals acting")
    assert (found.env, found.step) == (0, 1)
    assert not [finding for finding in error.broken if finding.law.endswith("with a graph")], "that step is right"


def test_slots_that_live_too_long_in_unroll(monkeypatch: pytest.MonkeyPatch) -> None:
    life = Rhythm.life
    monkeypatch.setattr(Rhythm, "life", lambda self, number: life(self, number) + 1)
    error = broken(Small())
    assert find(error, "unroll equals acting").step == 4, "tier 0 has 4 slots"


def test_a_wrong_ring_shows_only_where_a_window_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    class Swapped(Small):
        def _unroll(self, *args: Any) -> Unrolled:
            unrolled = super()._unroll(*args)
            slots = unrolled.state.slots
            return unrolled._replace(
                state=unrolled.state._replace(slots=torch.cat([slots[:, 1:], slots[:, :1]], dim=1))
            )

    error = broken(Swapped())
    find(error, "any split means the same")
    found = find(error, "unroll equals acting")
    assert "state.slots" in found.detail and found.step is None


def test_acting_that_gives_back_the_state_of_a_step_before() -> None:
    class Behind(PlainActing[GRUState]):
        def _step(self, inputs: Tensor, reset: Tensor) -> Tensor:
            self.before = self._state
            return super()._step(inputs, reset)

        def state(self, envs: Any = None) -> GRUState:
            now, self._state = self._state, getattr(self, "before", self._state)
            try:
                return super().state(envs)
            finally:
                self._state = now

    class ActsBehind(Gated):
        def acting(self, state: GRUState) -> Acting[GRUState]:
            return Behind(self, state)

    found = find(broken(ActsBehind()), "acting gives back the state at any step")
    assert found.step == 0 and "state.hidden" in found.detail


def test_a_plan_that_forgets_a_part() -> None:
    class Planned(Gated):
        def plan(self, state: GRUState, reset: Tensor) -> Any:
            return reset.any(dim=1, keepdim=True).expand_as(reset)

        def _unroll(self, inputs: Tensor, state: GRUState, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
            return super()._unroll(inputs, state, reset & plan, None, diagnose)

        def unroll(self, *args: Any, plan: Any = None, **options: Any) -> Unrolled:
            reset = args[2]
            return super().unroll(*args, plan=reset.roll(1, 0) if plan is not None else reset, **options)

    found = find(broken(Planned()), "any split means the same")
    assert "unroll and unroll with a plan" in found.detail


# Law 2: reset first


def test_a_reset_by_multiplication() -> None:
    class Multiplied(Gated):
        def reset_state(self, state: GRUState, reset: Tensor) -> GRUState:
            return GRUState(state.hidden * (~reset)[:, None, None])

    error = broken(Multiplied())
    found = find(error, "a state of NaN is harmless at a reset")
    assert found.step == 0 and "nan" in found.detail
    assert [finding.law for finding in error.broken] == [found.law]


def test_a_reset_that_loses_the_first_step() -> None:
    """All ways agree, and nothing from before gets through, but the first observation does not either."""

    class LosesTheFirst(Folded):
        def step(self, inputs: Tensor, state: GRUState, reset: Tensor) -> tuple[Tensor, GRUState]:
            outputs, state = super().step(inputs, state, reset)
            return outputs, self.reset_state(state, reset)

    error = broken(LosesTheFirst())
    assert [finding.law for finding in error.broken] == ["law 2 (reset first): a reset is a fresh start"]
    assert error.step == 1


def test_a_reset_of_all_when_one_resets() -> None:
    class All(Folded):
        def reset_state(self, state: GRUState, reset: Tensor) -> GRUState:
            return super().reset_state(state, reset.any().expand_as(reset))

    error = broken(All())
    find(error, "each env is as if alone")
    assert "with other resets in env" in find(error, "no output sees another env").detail


# Law 3: no leaks


def test_a_leak_across_envs() -> None:
    class Mean(Folded):
        def _step(self, inputs: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
            return super()._step(inputs - 0.01 * inputs.mean(dim=0), state)

    error = broken(Mean())
    assert "other inputs in env 0" in find(error, "no output sees another env").detail
    assert find(error, "no output sees another env").env == 1
    find(error, "each env is as if alone")


def test_a_leak_from_the_future() -> None:
    class Sees(Gated):
        def _unroll(self, inputs: Tensor, state: GRUState, reset: Tensor, plan: Any, diagnose: bool) -> Unrolled:
            ahead = torch.cat([inputs[:, 1:], inputs[:, -1:]], dim=1)
            return super()._unroll(inputs + 1e-6 * ahead, state, reset, plan, diagnose)

    found = find(broken(Sees(), tolerance=1e-3), "no output sees the future")
    assert found.step == 0 and "from step 1 on" in found.detail


# Law 4: state is data


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
    """Gives back its own buffer, and writes to it."""

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


# Law 5: gradients go where they should


def test_compressors_that_the_task_loss_reaches() -> None:
    class Uncut(Small):
        def _cut(self, slots: Tensor) -> Tensor:
            return slots

    assert "reaches compression_parameters(): compressors.0.0.weight" in find(broken(Uncut()), "the task loss").detail


def test_a_reconstruction_loss_that_reaches_the_rest() -> None:
    class Summed(Small):
        def _unroll(self, *args: Any) -> Unrolled:
            unrolled = super()._unroll(*args)
            weighted = (self.layers[0].widen.weight * 1e-3).sum()  # type: ignore[union-attr,operator]
            return unrolled._replace(reconstruction_loss=unrolled.reconstruction_loss + weighted)

    assert "reaches main_parameters(): layers.0.widen.weight" in find(broken(Summed()), "reconstruction").detail


def test_a_reconstruction_loss_without_a_gradient() -> None:
    class Detached(Small):
        def _unroll(self, *args: Any) -> Unrolled:
            unrolled = super()._unroll(*args)
            return unrolled._replace(reconstruction_loss=unrolled.reconstruction_loss.detach())

    found = find(broken(Detached()), "the reconstruction loss")
    assert "does not reach compressors.0.0.weight" in found.detail


class FrozenForGood(Small):
    """The well-known mistake: keys and values are detached in place, parameter and all."""

    def _unroll(self, *args: Any) -> Unrolled:
        unrolled = super()._unroll(*args)
        for layer in self.layers:
            layer.attention.key_value.weight.requires_grad_(False)  # type: ignore[union-attr]
        return unrolled


class FrozenOnceTrained(Small):
    """No longer trained, though nothing says so."""

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


@pytest.mark.parametrize(("times", "kept"), [(0, slice(1, None)), (2, slice(None))])
def test_lists_that_leave_out_or_share_a_parameter(times: int, kept: slice) -> None:
    class Listed(Small):
        def main_parameters(self) -> list[torch.nn.Parameter]:
            return (list(self.parameters()) if times == 2 else super().main_parameters())[kept]

    name = "compressors.0.0.weight" if times == 2 else "embed.weight"
    assert f"{name} is {times} times in" in find(broken(Listed()), "disjoint and complete").detail


# The report


def test_all_that_is_broken_is_told_at_once() -> None:
    error = broken(LateUnroll())
    lines = str(error).splitlines()
    assert re.fullmatch(rf"LateUnroll breaks {len(error.broken)} of {len(LAWS)} laws:", lines[0])
    assert lines[1:] == [f"- {finding.law}: {finding.detail}" for finding in error.broken]
    assert len(error.broken) >= 4 and len(error.findings) == len(LAWS)


def test_what_a_core_raises_breaks_the_law_and_no_other() -> None:
    class Fails(Gated):
        def acting(self, state: GRUState) -> Acting[GRUState]:
            raise RuntimeError("no acting today")

    error = broken(Fails())
    assert find(error, "unroll equals acting").detail == "RuntimeError: no acting today"
    kept = {finding.law for finding in error.findings if finding.status == "kept"}
    assert "law 1 (one meaning): unroll equals folded steps" in kept
