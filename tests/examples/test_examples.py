"""The example programs: they import what they say, run, and learn what they promise."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
NAMES = ("plain_pytorch", "memory_beside_lstm")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    assert sorted(NAMES) == sorted(path.stem for path in EXAMPLES.glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_imports_torch_numpy_and_ctrl_alone(name: str) -> None:
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names <= {"torch", "numpy", "ctrl"}


@pytest.mark.parametrize(
    ("name", "words"), [("plain_pytorch", "success 0."), ("memory_beside_lstm", "right answers 0.")]
)
def test_a_short_run_ends_with_its_result(name: str, words: str) -> None:
    amount = {"plain_pytorch": 3 * 64 * 64, "memory_beside_lstm": 12}[name]
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(amount)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.startswith(words) and not result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_run_learns_what_needs_memory(name: str) -> None:
    """Without memory a quarter of the answers is right."""
    assert load(name).train() >= 0.95


def test_rewards_of_the_task_are_for_the_cue_of_the_same_episode() -> None:
    import torch

    module = load("plain_pytorch")
    env = module.Recall(seed=3)
    cue, seen = torch.full((module.ENVS,), -1), 0
    for _ in range(3 * (module.DELAY + 1)):
        obs = env.observe()
        shown = obs[:, module.CUES] == 1
        cue = torch.where(shown, obs[:, : module.CUES].argmax(1), cue)
        asked = obs[:, module.CUES + 1] == 1
        reward, ended = env.step(cue)
        assert torch.equal(asked, ended) and torch.equal(reward[cue >= 0], ended[cue >= 0].float())
        seen += int(reward.sum())
    assert seen >= 2 * module.ENVS
