from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent

TINY = (
    *("--num-envs", "4", "--n-steps", "16", "--n-epochs", "1", "--eval-episodes", "8", "--threads", "1"),
    *("--width", "8", "--layers", "1", "--device", "cpu"),
)
SMALL_MEMORY = ("--heads", "2", "--memory", "4,4x2")


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Return options for any core with which a run takes a second or two."""
    return TINY


@pytest.fixture
def small() -> tuple[str, ...]:
    """Return the options of `tiny`, and those of a compressive memory that compresses soon."""
    return (*TINY, *SMALL_MEMORY)


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module with faulty tasks, importable here and in processes that a test starts."""
    monkeypatch.syspath_prepend(str(HERE))
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), before])))
    return "fragile_tasks"


@pytest.fixture
def start_ctrl() -> Callable[..., subprocess.Popen[str]]:
    """Return a function that starts `ctrl` as a user does, in a terminal of width 100."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "ctrl.experiments", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"},
        )

    return start
