from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ctrl.experiments.bench import act, bench
from ctrl.experiments.bench import envs as bench_envs
from ctrl.experiments.bench.options import BENCHMARKS, BenchConfig, TorchOptions
from ctrl.experiments.cli import parse
from ctrl.experiments.errors import UserError

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_results_are_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text("precious")
    with pytest.raises(UserError, match="--overwrite"):
        bench.run_command(BenchConfig(bench_envs.Options(out=path)), Console())
    assert path.read_text() == "precious"


def test_numbers_are_kept_with_what_they_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_envs, "TURN_SECONDS", 0.01)
    path = tmp_path / "new" / "bench.json"
    config = BenchConfig(bench_envs.Options(repeats=2, num_envs=3, tasks=("ctrl/Recall-v0",), out=path))
    assert bench.run_command(config, Console(width=80)) == 0
    report = json.loads(path.read_text())
    assert {"command", "machine", "versions", "sizes", "tasks"} == set(report)
    (task,) = report["tasks"]
    assert task["task"] == "ctrl/Recall-v0"
    assert len(task["turns"]) == 2
    shown = capsys.readouterr().out
    assert f"numbers: {path}" in shown.replace("\n", "")
    assert "median of 2 interleaved turns" in shown


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_threads_are_set_and_told(threads: int) -> None:
    assert bench.conditions(BenchConfig(act.Options()))["torch_threads"] == threads
    other = threads + 1
    assert bench.conditions(BenchConfig(act.Options(threads=other)))["torch_threads"] == other
    assert torch.get_num_threads() == other


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_has_a_command_and_its_parts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"ctrl.experiments.bench.{name}")
    assert callable(module.run) and callable(module.tables)
    if issubclass(module.Options, TorchOptions):
        assert parse(["bench", name, "--threads", "1"]) == BenchConfig(module.Options(threads=1))
    with pytest.raises(SystemExit):
        parse(["bench", name, "--help"])
    shown = capsys.readouterr().out
    assert f"usage: ctrl bench {name}" in shown and "example" in shown


def test_help_of_one_benchmark_shows_only_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["bench", "train", "--help"])
    options = capsys.readouterr().out.split("example")[0]
    assert "--agents" in options and "--updates" in options
    assert "--tasks" not in options and "--episode-steps" not in options


def test_tables_in_a_file_are_not_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    widths = []
    monkeypatch.setattr(bench_envs, "run", lambda options, console: widths.append(console.width) or {})
    monkeypatch.setattr(bench_envs, "tables", lambda report: [])
    with (tmp_path / "log").open("w") as file:
        bench.run_command(BenchConfig(bench_envs.Options()), Console(file=file, width=80))
    assert widths == [100]


@pytest.mark.parametrize("path", sorted(DOCS.glob("bench_*.json")), ids=lambda path: path.stem)
def test_tables_of_published_reports_fit(path: Path) -> None:
    """Their cells are compared with the page in tests/test_docs_tables.py."""
    report = json.loads(path.read_text(encoding="utf-8"))
    name = report["command"].split()[2]
    console = Console(width=300)
    with console.capture() as captured:
        for table in importlib.import_module(f"ctrl.experiments.bench.{name}").tables(report):
            console.print(table.render(report))
    assert max(map(len, captured.get().splitlines())) <= (80 if name == "envs" else 100)
