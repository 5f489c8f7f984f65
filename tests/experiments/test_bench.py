from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from ctrl.experiments import bench, bench_envs
from ctrl.experiments.config import BenchConfig
from ctrl.experiments.errors import UserError


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text("precious")
    with pytest.raises(UserError, match="--overwrite"):
        bench.run_command(BenchConfig(out=path), Console())
    assert path.read_text() == "precious"


def test_numbers_are_kept_with_what_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_envs, "TURN_SECONDS", 0.01)
    path = tmp_path / "new" / "bench.json"
    config = BenchConfig(what="envs", repeats=2, num_envs=3, tasks=("ctrl/Recall-v0",), out=path)
    assert bench.run_command(config, Console(width=80)) == 0
    report = json.loads(path.read_text())
    assert {"command", "machine", "versions", "sizes", "tasks"} <= set(report)
    (task,) = report["tasks"]
    assert task["task"] == "ctrl/Recall-v0"
    assert len(task["native"]) == len(task["sync"]) == 2
    assert f"numbers: {path}" in capsys.readouterr().out.replace("\n", "")
