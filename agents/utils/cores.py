"""Cores that a policy is given: by name, or as they are."""

from __future__ import annotations

from typing import Any

import ctrl


def named_core(
    core: str | ctrl.MemoryCore[Any], core_kwargs: dict[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of a core that is given by name, or as it is.

    :raises ValueError: where options are given beside a core, or the core has no name
    """
    if not isinstance(core, ctrl.MemoryCore):
        return core, dict(core_kwargs or {})
    if core_kwargs:
        raise ValueError(f"core is built already, so core_kwargs must be left out, got {core_kwargs!r}")
    config = ctrl.core_config(core)
    return config.name, config.options
