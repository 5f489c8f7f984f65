"""`ctrl export`: a run's agent as a graph, its check, and what is refused in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from ctrl.agents import MemoryImpala, MemoryPPO
from ctrl.experiments.cli import main
from ctrl.experiments.config import ExportConfig
from ctrl.experiments.trained import export


@pytest.fixture
def model(tmp_path: Path) -> Path:
    kwargs = {"core": "gru", "core_kwargs": {"width": 6}}
    MemoryPPO("MlpMemoryPolicy", "CartPole-v1", policy_kwargs=kwargs, seed=0).save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


def test_a_folder_with_a_model_is_exported_and_checked(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(model.parent), "--steps", "60"]) == 0
    told = capsys.readouterr().out
    assert "60 steps in 3 copies" in told and "largest difference" in told and "torch" not in told
    described = json.loads((model.parent / "model.json").read_text())
    assert described["file"] == "model.onnx" and (model.parent / "model.onnx").is_file()
    assert main(["export", str(model)]) == 2
    assert "model.onnx exists already; add --overwrite, or name another --out" in capsys.readouterr().err


def test_torch_export_of_an_impala_agent(tmp_path: Path) -> None:
    kwargs = {"core": "lstm", "core_kwargs": {"width": 6}}
    MemoryImpala("MlpMemoryPolicy", "CartPole-v1", policy_kwargs=kwargs, num_actors=0).save(tmp_path / "agent.zip")
    assert main(["export", str(tmp_path / "agent.zip"), "--format", "torch", "--steps", "20"]) == 0
    assert torch.export.load(tmp_path / "agent.pt2") is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--format", "tflite"], "--format must be onnx or torch, got 'tflite'"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--out", "a.json"], "--out must not end in .json"),
        (["--out", "nowhere/agent.onnx"], "there is no folder nowhere"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str], words: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(model), *arguments]) == 2
    told = capsys.readouterr().err
    assert words in told and len(told.splitlines()) == 1


def test_a_missing_package_is_told_with_its_command(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["export", str(model)]) == 2
    assert "needs onnxruntime: pip install 'ctrl-memory[export]'" in capsys.readouterr().err
    assert not (model.parent / "model.onnx").exists()


def test_a_graph_that_differs_fails(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agreement = export.Agreement(10, 3, 2, 0, {"value": 0.5, "action": 0.0})
    monkeypatch.setattr(export, "export_saved", lambda config: (model, agreement))
    console = Console(record=True)
    assert export.run_command(ExportConfig(model), console) == 1
    assert "the graph is not the agent: they differ by up to 5.0e-01" in console.export_text()
