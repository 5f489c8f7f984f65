"""A short turn of `make fuzz`, and what it would notice."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from fuzz.cases import LARGE, RAN, REFUSED, SOUND, TRACEBACK, fuzz
from fuzz.damage import BYTES
from fuzz.targets import Target, targets


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return targets(tmp_path_factory.mktemp("fuzz"))


def test_sound_files_are_read(found: list[Target], tmp_path: Path) -> None:
    """Otherwise their damaged copies would be refused for nothing."""
    for target in found:
        sound = Target(target.name, target.content, target.file, (lambda _, content: content,), target.read)
        with_rest = sound if target.beside is None else Target(**{**vars(sound), "beside": target.beside})
        outcome = SOUND if target.name != "pickled model" else REFUSED
        assert fuzz([with_rest], 1, 0, tmp_path).counts == {(target.name, outcome): 1}


def test_damaged_files_are_refused(found: list[Target], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of gymnasium and stable-baselines3, about odd spaces
        report = fuzz(found, 150, 1, tmp_path)
    assert not report.problems, "\n".join([*report.problems, report.table()])
    assert sum(report.counts.values()) == 150 and report.counts["model of PPO", REFUSED] > 10


def broken(kind: str, work: Path) -> object:
    """Read a file badly."""
    if kind == LARGE:
        return bytearray(500 * 2**20)
    if kind == RAN:
        return (work / "ran").touch()
    return {}["a"]


@pytest.mark.parametrize("kind", [TRACEBACK, RAN, LARGE])
def test_a_bad_end_is_noticed(kind: str, tmp_path: Path) -> None:
    report = fuzz([Target("a", b"abc", "a", BYTES, lambda at: broken(kind, at.parent))], 3, 0, tmp_path)
    assert report.bad == 3 and report.counts["a", kind] == 3 and len(report.problems) == 3
    assert report.table().splitlines()[-2].split()[0] == "all"
