from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from ctrl.experiments.report import provenance


def test_versions_name_what_is_installed_and_leave_out_the_rest() -> None:
    found = provenance.versions(["torch", "no-such-package"])
    assert set(found) == {"python", "torch"}
    assert found["python"] == platform.python_version()


def test_the_machine_is_described() -> None:
    described = provenance.machine()
    assert described["cores"] >= 1
    assert described["cpu"]


def test_the_command_can_be_typed_again() -> None:
    assert provenance.command(["train", "--out", "my runs/a"]) == "ctrl train --out 'my runs/a'"


def test_a_tool_is_named_as_it_can_be_called_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "tensorboard").write_text("")
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    assert provenance.tool("tensorboard") == str(folder / "tensorboard")
    monkeypatch.chdir(tmp_path)
    assert provenance.tool("tensorboard") == ".venv/bin/tensorboard"
    monkeypatch.setenv("PATH", str(folder))
    assert provenance.tool("tensorboard") == "tensorboard"
    assert provenance.tool("missing") == "missing"
