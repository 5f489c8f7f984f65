from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent

TINY = (
    *("--num-envs", "4", "--n-steps", "16", "--n-epochs", "1", "--eval-episodes", "8", "--threads", "1"),
    *("--width", "8", "--layers", "1", "--device", "cpu"),
)
SMALL_MEMORY = ("--heads", "2", "--memory", "4,4x2")


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Return options for any core with which a run takes a second or two."""
    return TINY


@pytest.fixture(scope="session")
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
def stop_ctrl() -> Callable[..., tuple[int, str]]:
    """Return a function that starts `ctrl` as a user does, in a terminal of width 100, and sends it a signal.

    Its first argument tells if the run has begun; the signal is sent then. It returns exit code and output.
    """

    def stop(begun: Callable[[], object], *arguments: str, number: int = signal.SIGINT) -> tuple[int, str]:
        command = [sys.executable, "-m", "ctrl.experiments", *arguments]
        env = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env) as process:
            try:
                end = time.monotonic() + 240
                while not begun():
                    assert time.monotonic() < end, "the run never began"
                    time.sleep(0.05)
                process.send_signal(number)
                shown, errors = process.communicate(timeout=240)
            finally:
                process.kill()
        assert errors == ""
        return process.returncode, shown

    return stop
