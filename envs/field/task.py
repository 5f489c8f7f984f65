"""What is known of a task of another package, and of the package."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

PERFECT_PLAY = "perfect play by the task's rules"
"""The `source` of a best score that follows from the rules."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One package of tasks."""

    name: str
    """The package's name, such as "memory-gym"."""
    distributions: Mapping[str, str | None]
    """What must be installed, each with its only version that works; None where any will do."""
    modules: tuple[str, ...]
    """The modules whose import registers the ids."""
    install: tuple[str, ...]
    """The commands that install it, in this order."""
    build: Callable[[str, dict[str, Any]], gym.Env[Any, Any]]
    """Makes the env of an id with arguments, after `load`; call `ctrl.envs.field.make` instead."""

    def problem(self) -> str | None:
        """Say why the tasks cannot be built; None where all that they need is installed. Nothing is imported."""
        for name, wanted in self.distributions.items():
            found = _installed_version(name)
            if found is None:
                return f"{name} is not installed"
            if wanted not in (None, found):
                return f"{name} {found} is installed, and only {wanted} works"
        return None

    def load(self) -> None:
        """Import the package, so that its ids are registered.

        :raises gymnasium.error.DependencyNotInstalled: with the commands that install it
        """
        problem = self.problem()
        if problem is not None:
            raise self._not_installed(problem)
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on standard output, where data may go
        try:
            for module in self.modules:
                importlib.import_module(module)
        except Exception as error:  # a package that doesn't fit another one may raise anything
            raise self._not_installed(f"its import fails ({error})") from error

    def _not_installed(self, problem: str) -> gym.error.DependencyNotInstalled:
        return gym.error.DependencyNotInstalled(
            f"the tasks of {self.name} need a package: {problem}. Install with: {' && '.join(self.install)}"
        )


@dataclass(frozen=True, kw_only=True)
class FieldTask:
    """One task of a family. Its numbers are those of `arguments`."""

    id: str
    """The gymnasium id that the package registers."""
    family: Family
    """Where it comes from."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that it is built with, where none are given."""
    length: int | None
    """Steps of the longest episode; None where nothing bounds it."""
    memory_steps: int | None
    """How many steps back the oldest observation lies that a decision depends on; None where it is no fixed number."""
    random: float
    """Mean return of an agent that draws each action uniformly, measured unless it follows from the rules."""
    best: float | None = None
    """Best known mean return; None where no source states one."""
    source: str | None = None
    """Where `best` comes from."""


def _installed_version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
