"""Which core has which option of the command line, as the cores' own signatures say.

An option that a core's factory has as a parameter of the same name needs nothing here. Only the fields of
`config.MemoryOptions`, and those that `PARAMETERS` names, are options of a core.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import ctrl
from ctrl.experiments.errors import require

PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "memory": ("memory", "slots"),
    "compressor": ("memory",),
    "memory_learning_rate": ("reconstruction",),
    "memory_max_grad_norm": ("reconstruction",),
}
"""The parameters of a core that an option needs, one of them at least, where they have other names than it."""


class CoreOptions(Protocol):
    """Options of the command line, some of which are those of a core; None where they are left open."""

    @property
    def of_some_cores(self) -> list[str]:
        """The names of those that are, and that are not left open."""


OptionsT = TypeVar("OptionsT", bound=CoreOptions)


def cores_with(option: str) -> list[str]:
    """Return the cores that have an option."""
    needed = PARAMETERS.get(option, (option,))
    return [core for core in ctrl.core_names() if any(name in parameters(core) for name in needed)]


def parameters(core: str) -> Mapping[str, inspect.Parameter]:
    """Return what a core's factory takes, by name."""
    return inspect.signature(ctrl._CORES[core]).parameters


def of_core(options: OptionsT, core: str) -> OptionsT:
    """Return `options` without those that the core does not have."""
    alien = [name for name in options.of_some_cores if core not in cores_with(name)]
    return replace(options, **dict.fromkeys(alien))  # type: ignore[type-var]


def check_options(cores: Sequence[str], *groups: CoreOptions) -> None:
    """Raise a `UserError` for an option that none of the cores has."""
    for name in (name for group in groups for name in group.of_some_cores):
        having = cores_with(name)
        flag = f"--{name.replace('_', '-')}"
        told = f"{flag} is no option of {', '.join(cores)}; it is one of {', '.join(having)}"
        require(not set(having).isdisjoint(cores), told)
