"""Descriptions of the tasks of other packages, and of these packages."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

PERFECT_PLAY = "perfect play by the task's rules"
"""The `ExternalTask.source` of a best score that follows from the rules."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One package of tasks."""

    name: str
    """The package's name, such as "memory-gym"."""
    distributions: Mapping[str, str | None]
    """Required distributions, each with the only version that works; None if any version works."""
    modules: tuple[str, ...]
    """Modules whose import registers the ids."""
    install: tuple[str, ...]
    """Commands that install the package, in this order."""
    build: Callable[[str, dict[str, Any]], gym.Env[Any, Any]]
    """Function that builds an env from its id and arguments, after `load`; call `ctrl.envs.external.make` instead."""

    def problem(self) -> str | None:
        """Return the reason why the tasks cannot be built, None if there is none. Nothing is imported."""
        for name, wanted in self.distributions.items():
            found = _installed_version(name)
            if found is None:
                return f"{name} is not installed"
            if wanted not in (None, found):
                return f"{name} {found} is installed, and only {wanted} works"
        return None

    def load(self) -> None:
        """Import the package, so that its ids are registered.

        :raises gymnasium.error.DependencyNotInstalled: if that fails; the message has the commands that install it
        """
        problem = self.problem()
        if problem is not None:
            raise self._not_installed(problem)
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # its greeting would mix with data on stdout
        try:
            for module in self.modules:
                importlib.import_module(module)
        except Exception as error:  # a package that does not fit another one may raise any error
            raise self._not_installed(f"its import fails ({error})") from error

    def _not_installed(self, problem: str) -> gym.error.DependencyNotInstalled:
        return gym.error.DependencyNotInstalled(
            f"the tasks of {self.name} need a package: {problem}. Install with: {' && '.join(self.install)}"
        )


@dataclass(frozen=True, kw_only=True)
class ExternalTask:
    """One task of a family. Its numbers hold for the arguments in `arguments`."""

    id: str
    """The gymnasium id that the package registers."""
    family: Family
    """The package of the task."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Default arguments of the task; `ctrl.envs.external.make` can override them."""
    length: int | None
    """Number of steps in the longest episode; None if there is no limit."""
    memory_steps: int | None
    """Largest number of steps between a decision and an observation that it depends on; None if it is not fixed."""
    random: float
    """Mean return of an agent that draws each action uniformly, measured unless it follows from the rules."""
    best: float | None = None
    """Best known mean return; None if no source states one."""
    source: str | None = None
    """Source of `best`."""


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
