from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import ctrl
from ctrl.experiments.bench import scale as bench
from ctrl.experiments.bench.config import BenchScale
from ctrl.experiments.bench.scale import (
    DEFAULT,
    VARIED,
    Case,
    Rollout,
    Slice,
    measure_rollout,
    measured,
    play_episode,
    resident_bytes,
)


def test_the_default_is_the_reference_everywhere() -> None:
    for varied, cases in VARIED.items():
        assert DEFAULT in cases
        values = [getattr(case, varied) for case in cases]
        assert values == sorted(set(values))
        assert all(
            getattr(case, other) == getattr(DEFAULT, other) for case in cases for other in VARIED if other != varied
        )


def test_cases_build_what_they_say() -> None:
    core: Any = Case(slots=8, layers=3).core()
    assert [[tier.slots for tier in tiers] for tiers in core.tiers] == [[8, 8]] * 3


def test_resident_memory_is_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "statm").write_text("900 30 20 1 0 100 0\n")
    monkeypatch.setattr("os.sysconf", lambda name: 4096)
    assert resident_bytes(tmp_path / "statm") == 30 * 4096
    assert resident_bytes(tmp_path / "missing") > 2**20


class Counting:
    """Acting object that records resets; on its clock a step takes a second."""

    batch_size = 1

    def __init__(self, clock: list[float]) -> None:
        self.clock, self.resets = clock, list[bool]()

    def step(self, inputs: torch.Tensor, reset: torch.Tensor) -> None:
        assert inputs.shape == (1, bench.INPUT_SIZE)
        self.resets.append(bool(reset))
        self.clock[0] += 1.0


def test_the_episode_is_one_and_in_ten_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, shown = [0.0], list[int]()
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    acting: Any = Counting(clock)
    slices = play_episode(acting, 40, lambda number, slice_: shown.append(number))
    assert acting.resets == [True] + [False] * 39
    assert [slice_.seconds_per_step for slice_ in slices] == [1.0] * 10
    assert all(slice_.resident_bytes > 0 for slice_ in slices)
    assert shown == list(range(1, 11))


def test_ratios_are_to_the_default() -> None:
    small = Case(slots=8)
    first, second = measured("slots", {small: 10, DEFAULT: 20}, {small: [1.0, 3.0], DEFAULT: [2.0, 6.0]})
    assert (first.ratio, second.ratio) == (0.5, 1.0)
    assert (first.value, second.value, second.state_bytes) == (8, 32, 20)
    assert first.to_json()["seconds_per_step"] == {"median": 2.0, "range": [1.0, 3.0]}
    assert first.to_json()["case"] == {"slots": 8, "envs": 16, "layers": 2}


def test_a_rollout_keeps_a_state_a_window() -> None:
    core = ctrl.make_core("compressive", 64, layers=2, memory=[ctrl.Tier(32), ctrl.Tier(32, 4, "conv")])
    rollout = measure_rollout("compressive", 32)
    # The state beside the core's is the previous action: one of two, as one-hot float32.
    each = 8 * (core.state_bytes + 2 * 4)
    assert rollout.snapshots == 4 * each
    assert rollout.every_step == 128 * each
    assert rollout.rest >= 8 * 128 * (2 * 4 + 8 + 6 * 4 + 1)


def test_saving_is_of_the_whole_rollout() -> None:
    assert Rollout("lstm", 4, snapshots=10, rest=30, every_step=50).saving == 2.0


def test_tables_fit() -> None:
    slices = [Slice(0.001 * number, 400 * 2**20) for number in range(1, 11)]
    results = measured("layers", {DEFAULT: 2**15}, {DEFAULT: [0.0123, 0.0125]})
    console = Console(width=100)
    with console.capture() as captured:
        console.print(bench.episode_table(slices, 1_000_000, 399 * 2**20, threads=1))
        console.print(bench.cases_table(results, threads=1))
        console.print(bench.rollouts_table([Rollout("compressive", 32, 2**20, 2**20, 2**25)]))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 100 and not any("…" in line for line in lines)
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert ["200,000", "2", "2.00", "400.0 MiB"] in rows
    assert ["layers 2", "12.4", "12.3–12.5", "1.00", "32.0 KiB"] in rows
    assert ["compressive", "32", "1.0 MiB", "1.0 MiB", "32.0 MiB", "16.50"] in rows
    assert any("ratio of ms to 32 slots of each tier, 16 envs, 2 layers" in line for line in lines)


def test_the_report_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "VARIED", {"layers": [Case(layers=1), DEFAULT]})
    monkeypatch.setattr(bench, "WINDOWS", (64,))
    report = bench.run(BenchScale(episode_steps=20, steps=2, repeats=2), Console(quiet=True))
    assert len(report["episode"]["slices"]) == 10
    assert [each["case"]["layers"] for each in report["cases"]] == [1, 2]
    assert [len(each["seconds"]) for each in report["cases"]] == [2, 2]
    assert [(each["core"], each["window"]) for each in report["rollouts"]] == [("compressive", 64), ("lstm", 128)]
