from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from ctrl.agents.export.writing import export_policy
from ctrl.experiments.bench import export as bench
from ctrl.experiments.errors import UserError


def test_both_ways_do_the_same_from_the_same_state(tmp_path: Path) -> None:
    policy = bench.policy_of("lstm")
    with torch.no_grad():
        policy.action_net.weight.mul_(1000.0)
    export_policy(policy, tmp_path / "lstm.onnx")
    ours, graph = bench.acting_step(policy, 3), bench.graph_step(policy, tmp_path / "lstm.onnx", 3, threads=1)
    for _ in range(6):
        np.testing.assert_array_equal(ours(), graph())  # type: ignore[arg-type]


def test_a_missing_package_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'ctrl-memory\[export\]'"):
        bench.run(bench.Options(), Console())
