"""Code that the runs of a suite are made with: a copy beside the results, and a fingerprint to compare it with others.

With the copy, a suite that takes a day goes on unchanged while the source is edited.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGES = ("ctrl", "ctrl.envs", "ctrl.agents", "ctrl.experiments")
EXPERIMENTS = "ctrl/experiments/"
WORKER = f"{EXPERIMENTS}suite/worker.py"


def sources() -> dict[str, Path]:
    """Return the source files of all four packages, by their path below the folder that holds `ctrl`."""
    found = {}
    for package in PACKAGES:
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for path in folder.rglob("*.py"):
            found[f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"] = path
    return found


def training_sources(files: Mapping[str, Path]) -> list[str]:
    """Return the names of the files that can change the results of a run.

    From `ctrl.experiments` these are the worker and its imports; the other files only start runs and report on them.

    :param files: source files by name, as `sources` returns them
    """
    found, left = {name for name in files if not name.startswith(EXPERIMENTS)}, [WORKER]
    while left:
        name = left.pop()
        if name in files and name not in found:
            found.add(name)
            left += imported(files[name].read_text())
    return sorted(found)


def imported(text: str) -> Iterator[str]:
    """Yield the file names that the imports of a source file may refer to; not all of them exist."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for module in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                yield f"{module.replace('.', '/')}.py"


def fingerprint(files: Mapping[str, Path]) -> str:
    """Return a short hash of the code that trains; comments, docstrings and layout do not change it.

    :param files: source files by name, as `sources` returns them
    """
    found = hashlib.sha256()
    for name in training_sources(files):
        found.update(f"{name}\n{_bare(files[name].read_text())}\n".encode())
    return found.hexdigest()[:16]


def _bare(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                setattr(node, name, [statement for statement in statements if not _is_text(statement)])
    return ast.dump(tree)


def _is_text(statement: ast.AST) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def copy_code(target: Path) -> None:
    """Copy `sources` into `target`, laid out as in a wheel; a process that starts in `target` imports the copy.

    What is there already is replaced, unless it is the code that runs.
    """
    if any(path.is_relative_to(target.resolve()) for path in sources().values()):
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, path in sources().items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / name)
    if target.is_symlink():
        target.unlink()
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)


def copied(target: Path) -> dict[str, Path]:
    """Return the files of a copy by name, as `sources` does for the running code."""
    return {path.relative_to(target).as_posix(): path for path in target.rglob("*.py")}
