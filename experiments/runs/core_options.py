"""Command line options that only some cores have, read from the signatures of the cores' factories.

A core has an option if its factory has a parameter of that name; `PARAMETERS` lists the options with other names there.
Only the fields of `config.MemoryOptions` and the options in `PARAMETERS` are options of a core.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import ctrl
from ctrl.experiments.errors import flag, require

PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "memory": ("memory", "slots"),
    "compressor": ("memory",),
    "memory_learning_rate": ("reconstruction",),
    "memory_max_grad_norm": ("reconstruction",),
}
"""Options whose parameters have other names: a core has the option if it has one of these parameters."""


class CoreOptions(Protocol):
    """Command line options, some of which only some cores have. An option that is left open is None."""

    @property
    def of_some_cores(self) -> list[str]:
        """Names of the given options that only some cores have."""


OptionsT = TypeVar("OptionsT", bound=CoreOptions)


def cores_with(option: str) -> list[str]:
    """Return the names of the cores that have an option."""
    needed = PARAMETERS.get(option, (option,))
    return [core for core in ctrl.core_names() if any(name in parameters(core) for name in needed)]


def parameters(core: str) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a core's factory, by name."""
    return inspect.signature(ctrl._CORES[core]).parameters


def of_core(options: OptionsT, core: str) -> OptionsT:
    """Return `options` with those that the core does not have set to None."""
    alien = [name for name in options.of_some_cores if core not in cores_with(name)]
    return replace(options, **dict.fromkeys(alien))  # type: ignore[type-var]


def check_options(cores: Sequence[str], *groups: CoreOptions) -> None:
    """Raise a `UserError` for a given option that none of the cores has."""
    for name in (name for group in groups for name in group.of_some_cores):
        having = cores_with(name)
        told = f"{flag(name)} is no option of {', '.join(cores)}; it is one of {', '.join(having)}"
        require(not set(having).isdisjoint(cores), told)
