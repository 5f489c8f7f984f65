"""The state of all global random generators: Python's, numpy's and torch's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Return the state of Python's, numpy's and torch's global generators, as plain data."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 - what envs and stable-baselines3 use
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set all global generators to a state of `random_state`; GPUs that it does not know stay as they are.

    :raises ValueError: where the state is damaged
    """
    try:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    except (KeyError, TypeError, RuntimeError, IndexError, OverflowError) as error:
        raise ValueError(f"the saved state of the random generators is damaged: {error}") from error


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put all global generators back after the `with` block, so that it disturbs nobody."""
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)
