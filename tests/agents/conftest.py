from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The tests here share `agent_toys` and other toys; pytest's importlib mode does not put this folder on the path.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def bookkeeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the core "bookkeeping"."""
    from agent_toys import BookkeepingCore

    import ctrl

    monkeypatch.setitem(ctrl._CORES, "bookkeeping", BookkeepingCore)
