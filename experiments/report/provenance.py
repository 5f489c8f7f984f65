"""Provenance of results beside the code: package versions, machine and command line."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("ctrl-memory", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of those `packages` that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return the processor, the number of usable CPU cores and the system."""
    return {"cpu": _cpu_model(), "cores": usable_cores(), "system": f"{platform.system()} {platform.machine()}"}


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use; a container can limit it below `os.cpu_count()`."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def command(arguments: Sequence[str] | None = None) -> str:
    """Return the command line, quoted so that it can be typed again."""
    return shlex.join(["ctrl", *(sys.argv[1:] if arguments is None else arguments)])


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def tool(name: str) -> str:
    """Return the shell command for a tool that was installed beside this Python.

    This is its name if it is on the PATH, else its path, relative if it lies below the working directory.
    """
    path = Path(sys.executable).parent / name
    if not path.exists() or str(path.parent) in os.environ.get("PATH", "").split(os.pathsep):
        return name
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
