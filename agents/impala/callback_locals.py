"""Steps that actors have taken as callbacks see them, under the names of stable-baselines3's locals."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.policy.policy_data import each_part


class ShownStep(NamedTuple):
    """One step of all B envs, as it lies in a buffer."""

    obs_tensor: Any
    """[B, ...] observations from which the actions were chosen."""
    new_obs: Any
    """[B, ...] the next ones."""
    values: Tensor
    """[B, 1]"""
    log_probs: Tensor
    """[B]"""
    actions: np.ndarray
    """[B, ...] as sampled."""


def shown_step(buffer: WindowBuffer, row: int) -> ShownStep:
    """Return the step in a row of a buffer whose window is complete."""
    window, place = divmod(row, buffer.window)
    last = place == buffer.window - 1
    whole, after = (buffer.following, window) if last else (buffer.observations, row + 1)
    actions = buffer.actions[row]
    return ShownStep(
        each_part(lambda part: torch.as_tensor(part[row], device=buffer.device), buffer.observations),
        each_part(lambda part: part[after], whole),
        torch.as_tensor(buffer.values[row], device=buffer.device)[:, None],
        torch.as_tensor(buffer.log_probs[row], device=buffer.device),
        actions[:, 0] if isinstance(buffer.action_space, spaces.Discrete) else actions,
    )
