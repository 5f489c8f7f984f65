from __future__ import annotations

import re
from typing import Any

import pytest
from rich.console import Console

from ctrl.agents import MemoryPPO
from ctrl.agents.actor import Actor
from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.policies import MlpMemoryPolicy
from ctrl.baselines.lstm_gru import LSTMCore
from ctrl.experiments.bench import profile as bench
from ctrl.experiments.bench.config import BenchProfile
from ctrl.experiments.bench.profile import PHASES, TOTAL, Clocks, ProfileResult, per_update, run_turn
from ctrl.experiments.bench.train import agents


def turn(**seconds: float) -> dict[str, float]:
    return {**dict.fromkeys(PHASES, 0.0), **seconds}


def test_what_no_clock_counted_is_the_rest() -> None:
    update = per_update({"env": 2.0, "act": 4.0, "rest": 0.0}, total=10.0, updates=2)
    assert update == {"env": 1.0, "act": 2.0, "rest": 2.0, TOTAL: 5.0}


def test_shares_are_taken_within_a_turn() -> None:
    # Turn 2 met a busy machine.
    results = ProfileResult("lstm", 8, [turn(env=1.0, total=4.0), turn(env=2.0, total=8.0), turn(env=1.0, total=5.0)])
    assert results.share("env") == 0.25
    assert results.milliseconds("env") == 1000.0
    assert results.to_json()["seconds_per_update"]["env"] == {"median": 1.0, "range": [1.0, 2.0]}


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
    update = run_turn(agents((core,))[0][core], num_envs=4, updates=1)
    assert set(update) == {*PHASES, TOTAL}
    assert all(seconds > 0 for seconds in update.values())
    assert sum(update[phase] for phase in PHASES) == pytest.approx(update[TOTAL])


def test_the_library_is_left_as_it_was() -> None:
    classes = (MemoryPPO, MlpMemoryPolicy, WindowBuffer, Actor, LSTMCore)
    before = [dict(vars(each)) for each in classes]
    builders, _ = agents(("lstm",))
    run_turn(builders["lstm"], num_envs=4, updates=1)
    assert [dict(vars(each)) for each in classes] == before


def test_the_table_fits() -> None:
    busy: dict[str, Any] = {**dict.fromkeys(PHASES, 0.1), "act": 1.2345, TOTAL: 2.0}
    results = [ProfileResult("compressive", num_envs, [busy, busy]) for num_envs in (8, 64, 256)]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(bench.profile_table(results, threads=1))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 100 and not any("…" in line for line in lines)
    rows = {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line.strip()) for line in lines)}
    assert rows["act"] == ["1,234", "61.7%"] * 3
    assert rows["total"] == ["2,000"] * 3
    assert set(PHASES) <= set(rows)


def test_the_report_has_every_core_and_number_of_envs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, int]] = []

    def fake(build: Any, num_envs: int, updates: int) -> dict[str, float]:
        asked.append((build, num_envs))
        return turn(env=1.0, total=2.0)

    monkeypatch.setattr(bench, "agents", lambda names: ({n: n for n in names}, {}))
    monkeypatch.setattr(bench, "run_turn", fake)
    config = BenchProfile(num_envs=(4, 8), cores=("lstm", "gru"), repeats=2)
    report = bench.run(config, Console(quiet=True))
    order = [(core, envs) for core in ("lstm", "gru") for envs in (4, 8)]
    assert asked == order * 2
    assert [(each["core"], each["num_envs"]) for each in report["cores"]] == order
    assert all(len(each["turns"]) == 2 and each["share"]["env"] == 0.5 for each in report["cores"])
