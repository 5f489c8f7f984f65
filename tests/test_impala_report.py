"""Numbers that `tools/impala_report.py` computes by itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from ctrl.experiments.report.summary import Point

TOOL = Path(__file__).resolve().parent.parent / "tools" / "impala_report.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("impala_report", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def there_and_back() -> list[Point]:
    """Return a curve whose success goes from 0 to 1 in 1,000 steps, and back; the return is ten times that."""
    successes = [1 - abs(step - 1000) / 1000 for step in range(0, 2001, 10)]
    return [Point(10 * n, 10 * success, success, 5, 50.0) for n, success in enumerate(successes)]


@pytest.mark.parametrize(
    ("metric", "level", "by", "expected"),
    [("success", 0.5, "steps", 500), ("return", 2.5, "steps", 250), ("success", 0.5, "seconds", 10)],
)
def test_a_level_is_first_reached_on_the_way_up(
    metric: str, level: float, by: str, expected: int, tool: ModuleType
) -> None:
    assert tool.first_at(there_and_back(), metric, level, by) == pytest.approx(expected, abs=5 if by == "steps" else 0)


def test_a_single_good_update_does_not_count(tool: ModuleType) -> None:
    """The metric is smoothed over 3 % of the run: here over 7 updates."""
    curve = [point._replace(success=float(n == 100)) for n, point in enumerate(there_and_back())]
    assert tool.first_at(curve, "success", 0.5, "steps") is None
    assert tool.first_at(curve, "success", 0.14, "steps") == pytest.approx(970, abs=5)


def test_a_level_that_is_never_reached_is_none(tool: ModuleType) -> None:
    assert tool.first_at(there_and_back(), "success", 1.01, "steps") is None
