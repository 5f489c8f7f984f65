"""Rollout storage for V-trace: behaviour log-probs, rewards and the observation after each window.

Targets and advantages are not stored. They depend on the current policy, so the learner computes them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctrl.agents.buffers import WindowBuffer, each_part
from ctrl.agents.memory_policy import MemoryPolicy, Observation
from ctrl.agents.policy_data import PolicyState, Windows

Arrays = dict[str, np.ndarray]


class TrajectoryBatch(NamedTuple):
    """N windows of T steps, each with the observation that followed it."""

    windows: Windows
    old_values: Tensor
    """[N, T] values from acting."""
    old_log_prob: Tensor
    """[N, T] log mu(a_t | x_t), log-probabilities of the behaviour policy."""
    rewards: Tensor
    """[N, T]"""
    bootstraps: Tensor
    """[N, T] discounted bootstrap value where the episode was truncated at this step; 0 elsewhere."""
    over: Tensor
    """[N, T] bool, true where the episode was terminated before the step: the value of its observation is 0."""
    loss_mask: Tensor
    """[N, T] bool, false where a step is left out of all losses because the env ignored its action."""
    following: Any
    """[N, ...] the observation after the window."""
    following_starts: Tensor
    """[N] bool, true where `following` is the first observation of an episode."""
    following_over: Tensor
    """[N] bool, true where the episode was terminated before `following`, as `over`."""

    @property
    def ends(self) -> Tensor:
        """[N, T] bool, true where the next step is the first of another episode."""
        return torch.cat([self.windows.reset[:, 1:], self.following_starts[:, None]], dim=1)


class TrajectoryBuffer(WindowBuffer):
    """Rollout of windows, each with the observation that followed it.

    `arrays` returns the content as numpy arrays by name, in which one process hands windows to another, and `load`
    reads them. Arguments are those of `WindowBuffer`, without a burn-in.
    """

    def _empty(self) -> None:
        super()._empty()
        shape = (self.buffer_size, self.n_envs)
        count = (self.buffer_size // self.window, self.n_envs)
        self.bootstraps = np.zeros(shape, dtype=np.float32)
        self.over = np.zeros(shape, dtype=bool)
        self.following: Any = self._empty_observations(count)
        self.following_starts, self.following_over = (np.zeros(count, dtype=bool) for _ in range(2))

    def bootstrap(self, steps: np.ndarray, envs: np.ndarray, values: np.ndarray) -> None:
        """Store discounted bootstrap values [K] of truncated episodes, at `steps` [K] of `envs` [K]."""
        self.bootstraps[steps, envs] = values

    def ignore_step(self, env: int, *, terminated: bool) -> None:
        """Leave the last step of one env out of every loss.

        Its observation was the last of an episode. The previous step bootstraps from the value of that observation, or
        from 0 if `terminated`.
        """
        self.loss_mask[self.pos - 1, env] = False
        self.over[self.pos - 1, env] = terminated

    def add_following(self, obs: Observation, episode_starts: np.ndarray, over: np.ndarray) -> None:
        """Store the observation after the window that the last step has filled.

        :param obs: [B, ...]
        :param episode_starts: [B] true where `obs` is the first of an episode
        :param over: [B] true where the episode was terminated and `obs` is its last
        """
        number = self.pos // self.window - 1
        for whole, part in zip(_parts(self.following), _parts(obs), strict=True):
            whole[number] = part.reshape(whole.shape[1:])
        self.following_starts[number] = episode_starts
        self.following_over[number] = over

    def arrays(self) -> Arrays:
        """Return all stored arrays by name: per step [steps, B, ...], and per window [windows, B, ...]."""
        stored = {name: getattr(self, name) for name in (*_OF_STEPS, *_OF_WINDOWS)}
        return {**stored, **_named("observations", self.observations), **_named("following", self.following)}

    def ends(self, number: int) -> np.ndarray:
        """Return [T, B] bool for window `number`: true where the next step is the first of another episode."""
        starts = self.episode_starts[number * self.window : (number + 1) * self.window]
        return np.concatenate([starts[1:].astype(bool), self.following_starts[number : number + 1]])

    def load(self, arrays: Arrays, state: PolicyState, number: int) -> None:
        """Copy `arrays`, the only window of another buffer, to window `number`, with the `state` before it."""
        steps = slice(number * self.window, (number + 1) * self.window)
        for name, whole in self.arrays().items():
            whole[slice(number, number + 1) if name.startswith("following") else steps] = arrays[name]
        self.snapshots[steps.start] = state
        self.pos = steps.stop
        self.full = self.pos == self.buffer_size

    def all_windows(self, policy: MemoryPolicy) -> TrajectoryBatch:  # type: ignore[override]
        """Return the whole rollout as one batch, ordered by window, then by env.

        :param policy: encodes the previous actions and rewards; its core makes the plan of the unroll
        """
        windows = self._windows(policy, self._steps(), self.window, [self.snapshots[start] for start in self._starts])
        steps = (self.values, self.log_probs, self.rewards, self.bootstraps, self.over, self.loss_mask)
        return TrajectoryBatch(
            windows,
            *(self._sequences(array, self.window) for array in steps),  # type: ignore[call-arg]
            each_part(self._flat, self.following),
            self._flat(self.following_starts),
            self._flat(self.following_over),
        )

    def _flat(self, array: np.ndarray) -> Tensor:
        """Flatten [windows, B, ...] to [windows * B, ...]."""
        return torch.as_tensor(array.reshape(-1, *array.shape[2:]).copy(), device=self.device)


_OF_STEPS = ("actions", "rewards", "episode_starts", "values", "log_probs", "loss_mask", "bootstraps", "over")
_OF_WINDOWS = ("following_starts", "following_over")


def _parts(observations: Any) -> list[np.ndarray]:
    return [observations[key] for key in sorted(observations)] if isinstance(observations, dict) else [observations]


def _named(name: str, observations: Any) -> Arrays:
    if isinstance(observations, dict):
        return {f"{name}/{key}": part for key, part in observations.items()}
    return {name: observations}
