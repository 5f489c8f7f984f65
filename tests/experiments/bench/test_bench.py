from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import get_args

import pytest
from rich.console import Console

from ctrl.experiments.bench import bench
from ctrl.experiments.bench import envs as bench_envs
from ctrl.experiments.bench.config import AnyBench, BenchConfig, BenchEnvs
from ctrl.experiments.cli import parse
from ctrl.experiments.errors import UserError


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text("precious")
    with pytest.raises(UserError, match="--overwrite"):
        bench.run_command(BenchConfig(BenchEnvs(out=path)), Console())
    assert path.read_text() == "precious"


def test_numbers_are_kept_with_what_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_envs, "TURN_SECONDS", 0.01)
    path = tmp_path / "new" / "bench.json"
    config = BenchConfig(BenchEnvs(repeats=2, num_envs=3, tasks=("ctrl/Recall-v0",), out=path))
    assert bench.run_command(config, Console(width=80)) == 0
    report = json.loads(path.read_text())
    assert {"command", "machine", "versions", "sizes", "tasks"} <= set(report)
    (task,) = report["tasks"]
    assert task["task"] == "ctrl/Recall-v0"
    assert len(task["native"]) == len(task["sync"]) == 2
    assert f"numbers: {path}" in capsys.readouterr().out.replace("\n", "")


def test_every_benchmark_has_a_command_and_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(bench.MODULES) == set(get_args(AnyBench))
    for config, name in bench.MODULES.items():
        assert callable(importlib.import_module(f"ctrl.experiments.bench.{name}").run)
        if name != "envs":
            assert parse(["bench", name, "--threads", "1"]).what == config(threads=1)  # type: ignore[union-attr]
        with pytest.raises(SystemExit):
            parse(["bench", name, "--help"])
        assert f"usage: ctrl bench {name}" in capsys.readouterr().out


def test_help_of_one_benchmark_shows_only_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["bench", "train", "--help"])
    options = capsys.readouterr().out.split("example")[0]
    assert "--agents" in options and "--updates" in options
    assert "--tasks" not in options and "--episode-steps" not in options


def test_tables_in_a_file_are_not_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    widths = []
    monkeypatch.setattr(bench_envs, "run", lambda config, console: widths.append(console.width) or {})
    with (tmp_path / "log").open("w") as file:
        bench.run_command(BenchConfig(BenchEnvs()), Console(file=file, width=80))
    assert widths == [100]
