from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import gymnasium as gym
import pytest
from rich.console import Console

from ctrl import Finding
from ctrl.envs import external
from ctrl.envs.checks.contract import check, subject_of
from ctrl.envs.checks.laws import LAWS
from ctrl.envs.external import task as external_task_module
from ctrl.experiments.cli import main
from ctrl.experiments.config import EnvsConfig
from ctrl.experiments.tasks.checking import _counting, announce, check_env, line

MINE = """
import gymnasium as gym
import numpy as np

class My(gym.Env):
    observation_space = gym.spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, size=1.0):
        self.size = size

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observe(), {}

    def step(self, action):
        return self.observe(), 0.0, bool(self.np_random.random() < 0.2), False, {}

    def observe(self):
        return (self.size * self.np_random.random(2)).astype(np.float32)

gym.register("test/My-v0", My)
"""


@pytest.fixture
def my_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_checked_package.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    yield "my_checked_package:test/My-v0"
    gym.registry.pop("test/My-v0", None)
    sys.modules.pop("my_checked_package", None)


def test_a_users_env_is_checked(my_package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "--check", my_package, "--steps", "50"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{my_package}, 50 steps"
    assert [text[2:] for text in lines if text.startswith("✓")] == [
        law.name for law in LAWS if "native" not in law.name and "limit" not in law.name
    ]
    assert lines[-1] == "12 kept, 0 broken, 3 not applicable"


def test_a_broken_law_is_told_and_fails(my_package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "--check", my_package, "--steps", "50", "--env-kwargs", "size=2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    broken = [text for text in lines if text.startswith("✗")]
    assert any(text.startswith("✗ spaces hold every observation: single env, step") for text in broken)
    assert "✓ rewards are finite numbers" in lines
    assert max(map(len, lines)) <= 80


def test_findings_as_json(my_package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "--check", my_package, "--steps", "50", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert [finding["law"] for finding in findings] == [law.name for law in LAWS]
    assert {finding["status"] for finding in findings} == {"kept", "not applicable"}


def test_what_an_env_prints_is_not_among_the_json(
    my_package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talking = MINE.replace("super().reset", "print('hello'); super().reset")
    (tmp_path / "my_checked_package.py").write_text(f"print('hello')\n{talking}")
    assert main(["envs", "--check", my_package, "--steps", "50", "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == len(LAWS)
    assert captured.err.startswith("hello\nhello\n")


def test_our_own_tasks_are_checked_natively_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "--check", "ctrl/Recall-v0", "--env-kwargs", "length=5", "--steps", "50"]) == 0
    assert "15 kept, 0 broken, 0 not applicable" in capsys.readouterr().out


@pytest.mark.skipif(external.FAMILIES["minigrid"].problem() is not None, reason="minigrid is not installed")
@pytest.mark.parametrize("env_id", ["MiniGrid-MemoryS7-v0", "minigrid:MiniGrid-MemoryS7-v0"])
def test_tasks_of_the_field_are_checked_as_we_adapt_them(env_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "--check", env_id, "--steps", "50"]) == 0
    assert "0 broken" in capsys.readouterr().out


def test_missing_package_is_told_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(external_task_module, "_installed_version", lambda name: None)
    assert main(["envs", "--check", "MiniGrid-MemoryS7-v0"]) == 2
    assert 'pip install "ctrl-memory[minigrid]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("no_such_package:My-v0", "no_such_package cannot be imported"),
        ("ctrl/Recall-v0 --env-kwargs lenght=3", "ctrl/Recall-v0 has no argument"),
        ("ctrl/Recall-v0 --env-kwargs length=0", "length must be an integer of at least 1, got 0"),
    ],
)
def test_mistakes_are_told(arguments: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "--check", *arguments.split()]) == 2
    assert told in capsys.readouterr().err


def test_env_that_cannot_be_built_is_one_broken_law(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "--check", "CartPole-v1", "--env-kwargs", "wheels=3"]) == 1
    text = capsys.readouterr().out
    assert "unexpected" in text and "'wheels'" in text
    assert text.splitlines()[-1] == "0 kept, 1 broken, 0 not applicable"


def test_long_details_stay_beside_the_mark() -> None:
    console = Console(width=40)
    with console.capture() as captured:
        console.print(line(Finding("spaces hold", "broken", "obs['a'] [bold] " + "word " * 20)))
    first, *rest = captured.get().splitlines()
    assert first.startswith("✗ spaces hold: obs['a'] [bold]")
    assert rest and all(text.startswith("  word") for text in rest)


def test_what_is_checked_is_shown_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 0.0)
    texts: list[str] = []
    subject = subject_of("ctrl/Recall-v0", {"length": 2}, steps=50)
    findings = list(check(subject, partial(announce, subject, texts.append)))
    assert texts == [finding.law for finding in findings]


def test_steps_are_shown_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, texts = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    tick = _counting("a law", texts.append)
    for _ in range(2_000):
        clock[0] += 0.001
        tick()
    assert len(texts) == 3
    assert texts[0].startswith("a law  50") and texts[-1].startswith("a law  1,50")


def test_a_terminal_shows_a_live_line() -> None:
    console = Console(width=80, force_terminal=True, highlight=False)
    with console.capture() as captured:
        config = EnvsConfig(check="ctrl/Recall-v0", env_kwargs=("length=2",), steps=50)
        assert check_env(config, console) == 0
    assert "15 kept" in captured.get()
