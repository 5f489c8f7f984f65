from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from rich.console import Console

from ctrl.envs import TASKS, external
from ctrl.envs.external import task as external_task_module
from ctrl.experiments.cli import main
from ctrl.experiments.config import EnvsConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.tasks.listing import (
    catalogue,
    field_table,
    missing_lines,
    our_table,
    popgym_table,
    run_command,
    short,
    space_text,
)

MINIGRID = {
    "id": "MiniGrid-MemoryS7-v0",
    "family": "minigrid",
    "observation": "180 uint8",
    "action": "7 choices",
    "max_episode_steps": 245,
    "memory_steps": None,
    "random": 0.153,
    "best": None,
}


def shown(part: Any, width: int = 80) -> str:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(part)
    return captured.get()


def row(text: str, first: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.split()[:1] == [first])
    return line.split()


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    """Make these distributions look as if they were not installed."""
    real = external_task_module._installed_version
    monkeypatch.setattr(
        external_task_module, "_installed_version", lambda name: None if name in missing else real(name)
    )


def test_our_tasks_are_listed_with_what_is_known_of_them() -> None:
    tasks = catalogue("ctrl")["ours"]
    assert [facts["id"] for facts in tasks] == list(TASKS)
    text = shown(our_table(tasks))
    assert row(text, "ctrl/Recall-v0") == ["ctrl/Recall-v0", "6", "4", "65", "64", "0.25", "0.25", "1.00"]
    assert "name a cue that was shown once" in text
    assert "num_cues=4" in text


@pytest.mark.parametrize("width", [80, 120])
def test_listing_fits_the_terminal(width: int) -> None:
    console = Console(width=width)
    with console.capture() as captured:
        assert run_command(EnvsConfig(), console) == 0
    text = captured.get()
    commands = [" && ".join(family.install) for family in external.FAMILIES.values()]
    lines = [line for line in text.splitlines() if line.strip() not in commands]
    assert max(map(len, lines)) <= width
    assert "…" not in text
    assert set(TASKS) <= set(text.split())


def test_facts_agree_with_the_tasks_themselves() -> None:
    for facts in catalogue("ctrl")["ours"]:
        task = TASKS[facts["id"]]
        assert facts["memory_steps"] == task.memory_steps()
        assert facts["max_episode_steps"] == task.rules().max_episode_steps
        assert [facts[name] for name in ("random", "memoryless", "perfect")] == [
            getattr(task.scores(), name) for name in ("random", "memoryless", "perfect")
        ]


def test_json_holds_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "bsuite")
    assert main(["envs", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    recall = next(task for task in data["ours"] if task["id"] == "ctrl/Recall-v0")
    assert recall["memory_steps"] == recall["arguments"]["length"]
    assert recall["random"] <= recall["memoryless"] < recall["perfect"]
    assert {task["family"] for task in data["field"]} == set(catalogue_families())
    assert all({"observation", "action", "best", "source"} <= set(task) for task in data["field"])
    bsuite = next(family for family in data["missing"] if family["family"] == "bsuite")
    assert bsuite["problem"] == "bsuite is not installed"
    assert bsuite["install"] == list(external.FAMILIES["bsuite"].install)


def catalogue_families() -> list[str]:
    return [name for name, family in external.FAMILIES.items() if family.problem() is None]


def test_missing_families_have_a_line_with_the_exact_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "memory-gym")
    found = catalogue("memory-gym")
    assert found["ours"] == found["field"] == []
    head, command = (line.plain for line in missing_lines(found["missing"]))
    assert head == "memory-gym: memory-gym is not installed. Install with"
    assert command.strip() == " && ".join(external.FAMILIES["memory-gym"].install)


def test_family_whose_import_fails_is_missing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_task_module, "_installed_version", lambda name: "1.0")
    broken = external.Family(
        name="broken",
        distributions={"broken": None},
        modules=("no_such_module",),
        install=("pip install broken",),
        build=lambda env_id, arguments: pytest.fail("built"),
    )
    monkeypatch.setattr(external, "FAMILIES", {"broken": broken})
    (missing,) = catalogue("broken")["missing"]
    assert missing["problem"] == "No module named 'no_such_module'"


def test_installed_tasks_are_grouped_by_family() -> None:
    text = shown(field_table([MINIGRID, MINIGRID | {"id": "other-v0", "family": "bsuite", "best": 1.0}]))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert [line for line in lines if line in ("minigrid", "bsuite")] == ["minigrid", "bsuite"]
    assert row(text, "MiniGrid-MemoryS7-v0") == ["MiniGrid-MemoryS7-v0", "180", "7", "245", "–", "0.15", "–"]
    assert row(text, "other-v0")[-1] == "1.00"


def test_popgym_has_a_line_for_three_levels() -> None:
    levels = [
        MINIGRID | {"id": f"popgym-RepeatFirst{level}-v0", "max_episode_steps": steps, "random": -0.5}
        for level, steps in (("Easy", 51), ("Medium", 415), ("Hard", 831))
    ]
    text = shown(popgym_table(levels))
    assert row(text, "RepeatFirst") == ["RepeatFirst", "51/415/831", "–", "-0.50", "–"]
    assert "popgym-NAME{Easy,Medium,Hard}-v0" in text


@pytest.mark.skipif("popgym" not in catalogue_families(), reason="popgym is not installed")
def test_one_family_is_listed_in_full(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["envs", "--family", "popgym"]) == 0
    text = capsys.readouterr().out
    ids = [task.id for task in external.EXTERNAL_TASKS.values() if task.family.name == "popgym"]
    assert [word for word in text.split() if word.startswith("popgym-")] == ids
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert "ctrl/Recall-v0" not in text


def test_unknown_family_is_named() -> None:
    with pytest.raises(UserError, match="unknown family 'mini'; did you mean 'minigrid'"):
        catalogue("mini")


@pytest.mark.parametrize(
    ("space", "text", "brief"),
    [
        (spaces.Discrete(4), "4 choices", "4"),
        (spaces.MultiDiscrete([3, 2]), "3 × 2 choices", "3×2"),
        (spaces.Box(0, 1, (6,), np.float32), "6 float32", "6"),
        (spaces.Box(0, 255, (84, 84, 3), np.uint8), "84 × 84 × 3 uint8", "84×84×3"),
        (
            spaces.Dict({"a": spaces.Discrete(3), "b": spaces.Box(0, 1, (2, 2), np.float32)}),
            "a: 3 choices; b: 2 × 2 float32",
            "3 + 2×2",
        ),
        (spaces.MultiBinary(3), "MultiBinary(3)", "MultiBinary(3)"),
    ],
)
def test_spaces_are_told_in_words_and_in_short(space: spaces.Space[Any], text: str, brief: str) -> None:
    assert space_text(space) == text
    assert short(text) == brief
