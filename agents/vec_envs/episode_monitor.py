"""Records of the episodes of a vector env, in the manner of stable-baselines3's `Monitor`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt


class EpisodeMonitor:
    """Returns and lengths of the running episodes, reported as SB3's `Monitor` reports them."""

    def __init__(self, num_envs: int) -> None:
        self._start = time.time()
        self._returns = np.zeros(num_envs, dtype=np.float64)
        self._lengths = np.zeros(num_envs, dtype=np.int64)

    def get_state(self) -> dict[str, Any]:
        """Return the returns and lengths so far."""
        return {"returns": self._returns.copy(), "lengths": self._lengths.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from the returns and lengths of a `get_state`."""
        self._returns[:], self._lengths[:] = state["returns"], state["lengths"]

    def restart(self) -> None:
        """Set the returns and lengths of all episodes to 0."""
        self._returns[:] = 0.0
        self._lengths[:] = 0

    def count(self, rewards: Any, *, counted: npt.NDArray[np.bool_]) -> None:
        """Add one step to the episodes of the counted envs."""
        self._returns += np.where(counted, rewards, 0.0)
        self._lengths += counted

    def take(self, index: int) -> dict[str, float]:
        """Return the record of an ended episode and begin the next."""
        record = {"r": round(float(self._returns[index]), 6), "l": int(self._lengths[index])}
        self._returns[index] = 0.0
        self._lengths[index] = 0
        return {**record, "t": round(time.time() - self._start, 6)}
