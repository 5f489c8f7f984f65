"""Faulty tasks for tests: `fragile_tasks:fragile/NaN-v0` shows a NaN after some steps.

Processes that a test starts find this module through PYTHONPATH.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

EVALUATION_SEEDS = 1_200_000_000


class NaNAfter(gym.Env[np.ndarray, int]):
    """Env with episodes of 5 steps. Every observation from step `after` on is NaN, counted over episodes.

    :param after: number of steps before the first NaN
    :param from_seed: only copies with this seed or a larger one (and not for evaluation) are broken
    """

    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, after: int = 1000, from_seed: int = 0) -> None:
        self.after = after
        self.from_seed = from_seed
        self.broken = True
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.broken = self.from_seed <= seed < EVALUATION_SEEDS
        return self.observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        return self.observe(), 1.0, self.steps % 5 == 0, False, {}

    def observe(self) -> np.ndarray:
        bad = self.broken and self.steps >= self.after
        return np.full(3, np.nan if bad else 0.5, dtype=np.float32)


gym.register("fragile/NaN-v0", NaNAfter)


class RaisesAfter(NaNAfter):
    """`NaNAfter` that raises an error instead."""

    def observe(self) -> np.ndarray:
        if self.broken and self.steps >= self.after:
            raise RuntimeError(f"broken after {self.after} steps")
        return np.full(3, 0.5, dtype=np.float32)


gym.register("fragile/Raises-v0", RaisesAfter)
