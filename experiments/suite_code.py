"""The code that a suite's runs are made with: a copy beside the results, and a fingerprint that tells it from others.

The copy lets a suite that takes a day go on unchanged while the source is worked on.
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
TRAINS = ("config", "evaluate", "models", "tasks", "training", "worker")
"""Modules of `ctrl.experiments` that have a part in what a run brings; the others only start it and tell of it."""


def sources() -> dict[str, Path]:
    """Return the source files of all four packages, by their place below the folder that holds `ctrl`."""
    found = {}
    for package in PACKAGES:
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for path in folder.rglob("*.py"):
            found[f"{package.replace('.', '/')}/{path.relative_to(folder).as_posix()}"] = path
    return found


def has_part(name: str) -> bool:
    """Whether the file of this name among `sources` has a part in what a run brings."""
    return not name.startswith("ctrl/experiments/") or Path(name).stem in TRAINS


def fingerprint(files: Mapping[str, Path]) -> str:
    """Return a short hash of the code that trains; comments, docstrings and layout do not change it.

    :param files: by name, as `sources` returns them
    """
    found = hashlib.sha256()
    for name in sorted(filter(has_part, files)):
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
    """Copy `sources` into `target`, laid out as in a wheel; a process that runs there imports the copy."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, path in sources().items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial / name)
    os.replace(partial, target)


def copied(target: Path) -> dict[str, Path]:
    """Return the files of a copy, as `sources` returns those that run here."""
    return dict(_named(target))


def _named(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*.py"):
        yield path.relative_to(folder).as_posix(), path
