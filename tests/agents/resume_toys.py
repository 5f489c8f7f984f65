"""Tools of the tests of resumed training: cut a run, carry it over through a file, compare it with the whole one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from agent_toys import StopAfter, weights_of
from stable_baselines3.common.callbacks import BaseCallback

from ctrl.agents.training_state import restore_training_state, training_state


def same_value(one: Any, other: Any) -> bool:
    """Compare nested data, arrays and tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_value(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_value, one, other))
    return bool(one == other)
