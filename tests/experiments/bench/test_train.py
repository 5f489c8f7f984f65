from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from ctrl.experiments.bench import train as bench
from ctrl.experiments.bench.harness import Turn
from ctrl.experiments.bench.subjects.agents import agents


def test_a_turn_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this clock every look takes a second: acting and learning take one each."""
    clock = iter(range(100))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    builders, _ = agents(("default_ppo",))
    turn = bench.turn(builders["default_ppo"], num_envs=4, updates=2)
    assert turn == {"steps_per_second": 256.0, "acting_seconds": 1.0, "learning_seconds": 1.0}


def test_each_number_of_envs_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    def fake(build: Any, num_envs: int, updates: int) -> Turn:
        asked.append((build, num_envs))
        speed = 100.0 * num_envs * (1 if build == "matched_ppo" else 2)
        return {"steps_per_second": speed, "acting_seconds": 0.25, "learning_seconds": 0.5}

    matched: list[str] = []
    fakes = {"gru": 7, "matched_ppo": 8, "default_memory": 9}
    monkeypatch.setattr(bench, "agents", lambda names, match: matched.append(match) or ({n: n for n in names}, fakes))
    monkeypatch.setattr(bench, "turn", fake)
    options = bench.Options(num_envs=(4, 8), agents=tuple(fakes), repeats=2, match="default_memory")
    report = bench.run(options, Console(quiet=True))
    assert asked == [(name, envs) for envs in (4, 8) for _ in range(2) for name in fakes]
    assert matched == [report["sizes"]["match"]] == ["default_memory"]
    speeds = [(each["agent"], each["num_envs"], each["steps_per_second"]["median"]) for each in report["agents"]]
    assert speeds == [(name, n, n * (100 if name == "matched_ppo" else 200)) for n in (4, 8) for name in fakes]
    (table,) = bench.tables(report)
    rows = [[column.cell(row) for column in table.columns] for row in table.rows]
    assert rows[0] == ["gru", "4", "7", "800", "800–800", "250", "500", "–", "2.00"]
    assert rows[2][0] == "MemoryPPO, default"
