from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from ctrl.agents import MemoryPPO
from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.policy.actor import Actor
from ctrl.agents.policy.policies import MlpMemoryPolicy
from ctrl.baselines.lstm_gru import LSTMCore
from ctrl.experiments.bench import profile as bench
from ctrl.experiments.bench.profile import PHASES, TOTAL, Clocks, per_update, share
from ctrl.experiments.bench.subjects.agents import agents


def test_what_no_clock_counted_is_the_rest() -> None:
    update = per_update({"env": 2.0, "act": 4.0, "rest": 0.0}, total=10.0, updates=2)
    assert update == {"env": 1.0, "act": 2.0, "rest": 2.0, TOTAL: 5.0}


def test_shares_are_taken_within_a_turn() -> None:
    # Turn 2 met a busy machine.
    turns = [{"env": 1.0, TOTAL: 4.0}, {"env": 2.0, TOTAL: 8.0}, {"env": 1.0, TOTAL: 5.0}]
    assert share({"turns": turns}, "env") == 0.25


class Nested:
    """Object with nested methods that take time on a clock."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def outer(self) -> str:
        self.clock[0] += 1.0
        self.inner()
        return "result"

    def inner(self) -> None:
        self.clock[0] += 2.0


def test_phases_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(Clocks, "_wrap_acting", lambda self, model: None)
    monkeypatch.setattr(Clocks, "_wrap_learning", lambda self, model: None)
    clocks, nested, other = Clocks(None), Nested(clock), Nested(clock)  # type: ignore[arg-type]
    clocks.wrap(nested, "outer", "buffer")
    clocks.wrap(nested, "inner", "plan")
    assert nested.outer() == "result"
    other.outer()  # another instance is not clocked
    nested.inner()
    assert {phase: seconds for phase, seconds in clocks.seconds.items() if seconds} == {"buffer": 1.0, "plan": 4.0}


@pytest.mark.parametrize("core", ["compressive", "feedforward"])
def test_every_phase_is_met(core: str) -> None:
    update = bench.turn(agents((core,))[0][core], num_envs=4, updates=1)
    assert set(update) == {*PHASES, TOTAL}
    assert all(seconds > 0 for seconds in update.values())
    assert sum(update[phase] for phase in PHASES) == pytest.approx(update[TOTAL])


def test_the_library_is_left_as_it_was() -> None:
    classes = (MemoryPPO, MlpMemoryPolicy, WindowBuffer, Actor, LSTMCore)
    before = [dict(vars(each)) for each in classes]
    builders, _ = agents(("lstm",))
    bench.turn(builders["lstm"], num_envs=4, updates=1)
    assert [dict(vars(each)) for each in classes] == before


def test_the_report_has_every_core_and_number_of_envs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, int]] = []

    def fake(build: Any, num_envs: int, updates: int) -> dict[str, float]:
        asked.append((build, num_envs))
        return {**dict.fromkeys(PHASES, 0.0), "env": 1.2345, TOTAL: 2.0 * num_envs}

    monkeypatch.setattr(bench, "agents", lambda names: ({n: n for n in names}, {}))
    monkeypatch.setattr(bench, "turn", fake)
    report = bench.run(bench.Options(num_envs=(4, 8), cores=("lstm", "gru"), repeats=2), Console(quiet=True))
    order = [(core, envs) for core in ("lstm", "gru") for envs in (4, 8)]
    assert asked == order * 2
    assert [(each["core"], each["num_envs"]) for each in report["cores"]] == order
    for each in report["cores"]:
        assert set(each) == {"core", "num_envs", "turns", "seconds_per_update", "share"}
        assert each["seconds_per_update"]["env"] == {"median": 1.2345, "range": [1.2345, 1.2345]}
        assert set(each["share"]) == set(PHASES)
    tables = bench.tables(report)
    rows = [[column.cell(row) for column in tables[1].columns] for row in tables[1].rows]
    assert [table.title for table in tables] == [f"phases of an update, MemoryPPO {core}" for core in ("lstm", "gru")]
    assert rows[0] == ["env", "1,234", "15.4%", "1,234", "7.7%"]
    assert rows[-1] == ["total", "8,000", "", "16,000", ""]
