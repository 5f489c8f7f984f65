"""Installation: the wheel in an environment of its own, the declared dependencies, and their pins."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import ctrl

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("", "test", "bench", "export", "popgym", "minigrid", "bsuite", "tasks", "docs", "dev")


def pins() -> dict[str, str]:
    """Return the pinned versions by name, for the running Python."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    requirements = [Requirement(line) for line in lines if line]
    applicable = [r for r in requirements if r.marker is None or r.marker.evaluate()]
    return {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in applicable}


def requirements(name: str, extras: tuple[str, ...] = ("",)) -> list[Requirement]:
    """Return the requirements of the installed distribution `name` on this machine, with `extras`."""
    found = map(Requirement, importlib.metadata.requires(name) or [])
    return [r for r in found if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)]


def test_no_version_is_allowed_that_is_older_than_what_is_tested() -> None:
    """The oldest pins are those for Python 3.10; releases in between that only fix mistakes are allowed."""
    text = (ROOT / "pyproject.toml").read_text()
    block = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    tested: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if found := re.match(r"([\w.-]+)==([\w.]+)", line):
            name, version = canonicalize_name(found[1]), Version(found[2])
            tested[name] = min(tested.get(name, version), version)
    allowed = {canonicalize_name(r.name): r for r in map(Requirement, re.findall(r'"([\w-]+>=[^"]+)"', block))}
    assert len(allowed) >= 10
    for name, requirement in allowed.items():
        (lowest,) = (Version(each.version) for each in requirement.specifier if each.operator == ">=")
        assert lowest.release[:2] == tested[name].release[:2], f"{name}: {lowest} is allowed, {tested[name]} tested"


def is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def all_requirements() -> set[str]:
    """Return the names of all installed distributions that we require here, directly or through others."""
    pending = requirements("ctrl-memory", EXTRAS)
    names: set[str] = set()
    while pending:
        requirement = pending.pop()
        name = canonicalize_name(requirement.name)
        if name not in names | {"ctrl-memory"} and is_installed(name):
            names.add(name)
            pending += requirements(name, ("", *requirement.extras))
    return names


def test_wheel_works_elsewhere(tmp_path: Path) -> None:
    """If something is wrong, `tools/check_wheel.py` prints a description."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools/check_wheel.py")], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_everything_needed_is_pinned() -> None:
    """Only torch's GPU libraries are left to torch, which pins them itself."""
    gpu = re.compile(r"nvidia-|cuda-|triton$")
    assert {name for name in all_requirements() - set(pins()) if not gpu.match(name)} == set()


@pytest.mark.parametrize("requirement", requirements("ctrl-memory", EXTRAS), ids=lambda requirement: requirement.name)
def test_bounds(requirement: Requirement) -> None:
    """Each dependency has a lower and an upper bound, and the pinned version lies between them."""
    if requirement.name == "ctrl-memory":
        return
    assert {specifier.operator for specifier in requirement.specifier} == {">=", "<"}
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_one_version() -> None:
    assert ctrl.__version__ == importlib.metadata.version("ctrl-memory")


def test_no_machine_of_ours_is_named() -> None:
    """Package indexes of pip are left to the user, so no file names one."""
    texts = {
        path.name: path.read_text() for path in map(ROOT.joinpath, ("constraints.txt", "pyproject.toml", "Makefile"))
    }
    found = {
        name: re.findall(r"--?(?:extra-)?index-url|--find-links|\w+://\S+|\+cpu", text) for name, text in texts.items()
    }
    assert not {name: places for name, places in found.items() if places}
