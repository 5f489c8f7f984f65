"""`check_core` where `unroll`, `step` and acting disagree (law 1): it names the law, the env and the step."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from core_toys import INPUTS, Folded, Gated, LateUnroll, Small, broken, find, late
from torch import Tensor

from ctrl import MemoryCore, Tier, Unrolled, check_core
from ctrl.baselines.lstm_gru import GRUState
from ctrl.baselines.mingru import MinGRUCore, gated_scan
from ctrl.compressive.attention.block_mask import age_bucket, ages
from ctrl.compressive.core import CompressiveState
from ctrl.compressive.kv_cache import CompressiveActing
from ctrl.compressive.schedule import TierSchedule
from ctrl.core import Acting, PlainActing


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


def test_resets_that_a_scan_ignores(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_piece(update: Tensor, candidate: Tensor, hidden: Tensor, reset: Tensor) -> Tensor:
        return gated_scan(update, candidate, hidden, reset & (torch.arange(len(reset)) == 0)[:, None])

    monkeypatch.setattr("ctrl.baselines.mingru.gated_scan", one_piece)
    error = broken(MinGRUCore(INPUTS, width=7))
    assert (error.law, error.env, error.step) == ("law 1 (one meaning): unroll equals folded steps", 1, 10)


def test_attention_received_that_acting_forgets() -> None:
    """The attention decides which slots are kept. Outputs may not show the mistake within a window; the state does."""

    class Forgets(Small):
        def acting(self, state: CompressiveState) -> CompressiveActing:
            return super().acting(state._replace(importance=torch.zeros_like(state.importance)))

    error = broken(Forgets(memory=[Tier(6), Tier(3, 3, "most_used")]))
    found = find(error, "acting gives back the state at any step")
    assert found.step == 0 and "after step 0: state." in found.detail  # slots or importance, as the weights are drawn


class ForgetfulActing(CompressiveActing):
    """Acting cache that ignores changes of the weights."""

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
    """Core that reads the sum of its inputs at every third step of an episode, and unrolls step by step."""

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
    monkeypatch.setattr(
        "ctrl.compressive.attention.block_mask.ages", lambda plan, layout: (ages(plan, layout) - 1).clamp_min(0)
    )
    error = broken(Small())
    found = find(error, "unroll equals acting")
    assert (found.env, found.step) == (0, 1), "a second step is the first that sees an older one"
    assert not [finding for finding in error.broken if "reset" in finding.law]


def test_positions_off_by_one_in_acting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ctrl.compressive.cache_schedule.age_bucket", lambda age, exact: age_bucket((age - 1).clamp_min(0), exact)
    )
    error = broken(Small())
    found = find(error, "unroll equals acting")
    assert (found.env, found.step) == (0, 1)
    assert not [finding for finding in error.broken if finding.law.endswith("with a graph")], "that step is right"


def test_slots_that_live_too_long_in_unroll(monkeypatch: pytest.MonkeyPatch) -> None:
    lifetime = TierSchedule.lifetime
    monkeypatch.setattr(TierSchedule, "lifetime", lambda self, number: lifetime(self, number) + 1)
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
