"""Training through the command line, on each package of external tasks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from ctrl.agents import MemoryPPO
from ctrl.experiments.cli import main


def weights(path: Path) -> torch.Tensor:
    parameters = MemoryPPO.load(path, device="cpu").policy.parameters()
    return torch.cat([parameter.detach().ravel() for parameter in parameters])


@pytest.mark.parametrize(
    ("env_id", "arguments"),
    [
        ("popgym-RepeatFirstEasy-v0", ()),
        ("popgym:popgym-BattleshipEasy-v0", ()),  # two discrete actions at once
        ("popgym-PositionOnlyPendulumHard-v0", ()),  # a continuous action
        ("MiniGrid-MemoryS7-v0", ("max_steps=20",)),
        ("MortarMayhem-Grid-v0", ("command_count=[1]",)),  # an image
        ("MortarMayhemB-Grid-v0", ("command_count=[1]",)),  # an image and a vector
        ("bsuite/memory_len-v0", ("memory_length=6",)),
    ],
)
def test_an_agent_trains_on_it(tmp_path: Path, small: tuple[str, ...], env_id: str, arguments: tuple[str, ...]) -> None:
    folder = tmp_path / "run"
    task = ["--env", env_id, *(["--env-kwargs", *arguments] if arguments else [])]
    assert main(["train", *task, *small, "--steps", "256", "--out", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 256)
    assert math.isfinite(summary["evaluation"]["return_mean"])
    first, last = weights(folder / "checkpoints/step_000000000000.zip"), weights(folder / "model.zip")
    assert torch.isfinite(last).all()
    assert not torch.equal(first, last)
