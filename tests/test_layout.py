"""Layout of DESIGN section 1: permitted imports of each folder, and the import name of each folder."""

from __future__ import annotations

import ast
import importlib.metadata
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"ctrl": "ctrl", "envs": "ctrl.envs", "agents": "ctrl.agents", "experiments": "ctrl.experiments"}

# What each folder may import: other distributions, and which of our four packages besides itself.
THIRD_PARTY = {
    "ctrl": {"torch", "numpy", "safetensors"},
    "envs": {"gymnasium", "numpy"},
    "agents": {"torch", "numpy", "gymnasium", "stable_baselines3", "tensorboard", "cloudpickle", "safetensors"},
    "experiments": {
        *("torch", "numpy", "gymnasium", "stable_baselines3", "tensorboard", "cloudpickle"),
        *("tyro", "rich", "tqdm", "matplotlib"),
    },
}
OURS = {
    "ctrl": set(),
    "envs": set(),
    "agents": {"ctrl"},
    "experiments": {"ctrl", "ctrl.envs", "ctrl.agents"},
}
# The one module of another package that a folder may import besides. It needs Python alone. Importing it runs
# `ctrl/__init__`, which loads torch, but so does importing `ctrl.envs`, which lies below `ctrl`.
FINDINGS = "ctrl.checks.result"
MODULES = {"envs": {FINDINGS}}
# Libraries that we plug into or compare with, and packages of tasks. Nobody has to have them, so only a function may
# import them.
OPTIONAL_HOSTS = {"sb3_contrib", "compressive_transformer_pytorch", "ray", "torchrl", "tensordict"}
OPTIONAL_HOSTS |= {"onnx", "onnxruntime", "onnxscript"}
TASK_PACKAGES = {"popgym", "minigrid", "memory_gym", "bsuite", "shimmy"}
OPTIONAL = {"ctrl": set(), "envs": TASK_PACKAGES, "agents": OPTIONAL_HOSTS, "experiments": OPTIONAL_HOSTS}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def imports(tree: ast.AST, executed: bool = True) -> Iterator[tuple[str, bool]]:
    """Yield each imported dotted name, and True if importing the module itself executes that import."""
    for node in ast.iter_child_nodes(tree):
        inner = executed and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.Import):
            yield from ((alias.name, executed) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((f"{module}.{alias.name}", executed) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (
                (a.value, executed) for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            )
        yield from imports(node, inner and not is_type_checking(node))


def our_package(name: str) -> str:
    """Return the one of our four packages that a dotted name such as `ctrl.envs.tasks.recall.Recall` belongs to."""
    first_two = ".".join(name.split(".")[:2])
    return first_two if first_two in FOLDERS.values() else "ctrl"


def violation(folder: str, name: str, executed: bool) -> str | None:
    """Return the reason why code in `folder` may not import `name`; None if it may."""
    top = name.split(".")[0]
    if not top:
        return f"{name} is relative"
    if top == "ctrl":
        package = our_package(name)
        if {name, name.rpartition(".")[0]} & MODULES.get(folder, set()):
            return None
        return None if package in OURS[folder] | {FOLDERS[folder]} else f"{folder}/ may not know {package}"
    if top in sys.stdlib_module_names or top in THIRD_PARTY[folder]:
        return None
    if top in OPTIONAL[folder]:
        return f"{top} is optional, import it inside the function that needs it" if executed else None
    return f"{folder}/ may not import {top}"


def violations(folder: str, source: str) -> list[str]:
    found = (violation(folder, name, executed) for name, executed in imports(ast.parse(source)))
    return [message for message in found if message]


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the arguments that `setup.py` passes to setuptools."""
    arguments: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", arguments.update)
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return arguments


@pytest.mark.parametrize("folder", FOLDERS)
def test_import_arrows(folder: str) -> None:
    paths = sources(folder)
    assert paths, f"{folder}/ has no modules"
    found = {str(path.relative_to(ROOT)): violations(folder, path.read_text(encoding="utf-8")) for path in paths}
    assert not {path: messages for path, messages in found.items() if messages}


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("ctrl", "import gymnasium"),
        ("ctrl", "import ctrl.envs"),
        ("ctrl", "from ctrl import envs"),
        ("ctrl", "def f():\n    from ctrl.agents.ppo import MemoryPPO"),
        ("ctrl", "def f():\n    import ray"),
        ("ctrl", "import importlib\nimportlib.import_module('ctrl.experiments')"),
        ("ctrl", "from . import core"),
        ("envs", "import torch"),
        ("envs", "from ctrl.core import MemoryCore"),
        ("envs", "from ctrl import Finding"),
        ("envs", "from ctrl.checks.results import Finding"),
        ("envs", "import envs.recall"),
        ("envs", "import minigrid"),
        ("agents", "def f():\n    import minigrid"),
        ("agents", "from ctrl.envs import Recall"),
        ("agents", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ctrl.experiments import run"),
        ("agents", "class A:\n    import ray"),
        ("agents", "try:\n    import torchrl\nexcept ImportError:\n    pass"),
        ("agents", "import matplotlib.pyplot as plt"),
        ("experiments", "from sb3_contrib import RecurrentPPO"),
        ("experiments", "import pandas"),
        ("experiments", "from ..agents import MemoryPPO"),
    ],
)
def test_refused_import(folder: str, source: str) -> None:
    assert len(violations(folder, source)) == 1


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("ctrl", "import math, torch.nn.functional as F\nfrom ctrl.core import MemoryCore\nimport ctrl"),
        ("envs", "from gymnasium import spaces\nfrom ctrl.envs.base import Task"),
        ("envs", "import ctrl.checks.result\nfrom ctrl.checks.result import Finding"),
        ("envs", "def f():\n    from popgym.wrappers import Antialias"),
        ("agents", "import ctrl\nfrom stable_baselines3.common.buffers import RolloutBuffer"),
        ("agents", "def f():\n    from ray.rllib import algorithms"),
        ("agents", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray"),
        ("experiments", "import ctrl.envs\nfrom ctrl.agents import MemoryPPO\nimport tyro"),
        ("experiments", "def f():\n    def g():\n        from sb3_contrib import RecurrentPPO"),
    ],
)
def test_permitted_import(folder: str, source: str) -> None:
    assert violations(folder, source) == []


def test_the_findings_that_envs_import_need_python_alone() -> None:
    tree = ast.parse((ROOT / "ctrl/checks/result.py").read_text(encoding="utf-8"))
    assert {name.split(".")[0] for name, _ in imports(tree)} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("ctrl", {"gymnasium", "stable_baselines3", "tensorboard", "matplotlib"}),
        ("ctrl.envs", {"stable_baselines3", "tensorboard", "matplotlib", *TASK_PACKAGES}),
        ("ctrl.envs.external", {"stable_baselines3", "tensorboard", "matplotlib", "pygame", *TASK_PACKAGES}),
        ("ctrl.agents", {"ctrl.envs", "ctrl.experiments", "tyro", *OPTIONAL_HOSTS}),
    ],
)
def test_import_loads_nothing_above(module: str, absent: set[str]) -> None:
    program = f"import sys, {module}; print(*sorted({absent} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []


def test_permitted_distributions_are_declared() -> None:
    """The packages that code may import at its top level are exactly the dependencies of an install."""
    declared = {
        requirement.name.replace("-", "_")
        for requirement in map(Requirement, importlib.metadata.requires("ctrl-memory") or [])
        if requirement.marker is None
    }
    assert set.union(*THIRD_PARTY.values()) == declared


def test_every_folder_with_modules_is_a_mapped_package(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = setup_arguments(monkeypatch)
    assert arguments["package_dir"] == {name: folder for folder, name in FOLDERS.items()}
    expected = {
        ".".join([name, *directory.relative_to(ROOT / folder).parts])
        for folder, name in FOLDERS.items()
        for directory in {path.parent for path in sources(folder)}
    }
    assert sorted(arguments["packages"]) == sorted(expected)


def test_no_folder_shadows_a_mapped_one() -> None:
    """`ctrl/envs` would be installed over `envs`, and hide it."""
    assert not {path.stem for path in (ROOT / "ctrl").iterdir()} & {"envs", "agents", "experiments"}


def test_package_is_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ROOT / "ctrl/py.typed").is_file()
    assert setup_arguments(monkeypatch)["package_data"] == {"ctrl": ["py.typed"]}


def test_tests_are_no_packages() -> None:
    """An `__init__.py` would put our `tests/envs` and the like at top level, where they collide with a user's."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []
