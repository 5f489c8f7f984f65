"""Checks of a task's arguments: each returns the value as a Python number, or raises a `ValueError` that names it."""

from __future__ import annotations

from typing import Any

import numpy as np


def checked_integer(name: str, value: Any, *, at_least: int) -> int:
    """Return `value` as an int, or raise a ValueError that names the argument and the value."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < at_least:
        raise ValueError(f"{name} must be an integer of at least {at_least}, got {value!r}.")
    return int(value)


def checked_fraction(name: str, value: Any) -> float:
    """Return `value` as a float in [0, 1], or raise a ValueError that names the argument and the value."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}.")
    return float(value)


def checked_number(name: str, value: Any, *, at_least: float) -> float:
    """Return `value` as a finite float, or raise a ValueError that names the argument and the value."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not at_least <= value < float("inf"):
        raise ValueError(f"{name} must be a number of at least {at_least}, got {value!r}.")
    return float(value)
