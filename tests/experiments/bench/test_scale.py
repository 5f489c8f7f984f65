from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import ctrl
from ctrl.experiments.bench import scale as bench
from ctrl.experiments.bench.scale import (
    DEFAULT,
    VARIED,
    Options,
    Sizes,
    measure_rollout,
    play_episode,
    resident_bytes,
    rollout_row,
)


def test_the_default_is_among_all_that_varies() -> None:
    for varied, values in VARIED.items():
        assert getattr(DEFAULT, varied) in values
        assert list(values) == sorted(set(values))


def test_cores_are_what_their_sizes_say() -> None:
    core: Any = Sizes(slots=8, layers=3).core()
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
    slices = play_episode(acting, 40, lambda number, tenth: shown.append(number))
    assert acting.resets == [True] + [False] * 39
    assert [tenth["seconds_per_step"] for tenth in slices] == [1.0] * 10
    assert all(tenth["resident_bytes"] > 0 for tenth in slices)
    assert shown == list(range(1, 11))


def test_a_rollout_keeps_a_state_a_window() -> None:
    core = ctrl.make_core("compressive", 64, layers=2, memory=[ctrl.Tier(32), ctrl.Tier(32, 4, "conv")])
    rollout = measure_rollout("compressive", 32)
    # The state beside the core's is the previous action: one of two, as one-hot float32.
    each = 8 * (core.state_bytes + 2 * 4)
    assert rollout["snapshots"] == 4 * each
    assert rollout["every_step"] == 128 * each
    assert rollout["rest"] >= 8 * 128 * (2 * 4 + 8 + 6 * 4 + 1)


def test_saving_is_of_the_whole_rollout() -> None:
    row = rollout_row("lstm", 5, snapshots=10, rest=30)
    assert (row["every_step"], row["ratio"]) == (50, 2.0)


def test_the_report_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "VARIED", {"layers": (1, 2), "envs": (4, 16)})
    monkeypatch.setattr(bench, "WINDOWS", (64,))
    report = bench.run(Options(episode_steps=20, steps=2, repeats=2), Console(quiet=True))
    assert len(report["episode"]["slices"]) == 10 and report["episode"]["resident_bytes_before"] > 2**20
    cases = [(each["varied"], each["case"]) for each in report["cases"]]
    assert cases == [
        ("layers", {"slots": 32, "envs": 16, "layers": 1}),
        ("layers", {"slots": 32, "envs": 16, "layers": 2}),
        ("envs", {"slots": 32, "envs": 4, "layers": 2}),
        ("envs", {"slots": 32, "envs": 16, "layers": 2}),
    ]
    assert [each["ratio"] == 1.0 for each in report["cases"]] == [False, True] * 2
    small, large = (each["state_bytes"] for each in report["cases"][:2])
    assert small < large
    assert all(len(each["turns"]) == 2 for each in report["cases"])
    assert [(each["core"], each["window"]) for each in report["rollouts"]] == [("compressive", 64), ("lstm", 128)]
