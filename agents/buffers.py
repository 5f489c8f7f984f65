"""The rollout as windows: whole sequences with one snapshot of the state at each window's start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from ctrl.agents.policies import Acted, MemoryPolicy, Observation, PolicyState, Windows


class WindowBatch(NamedTuple):
    """A minibatch of N windows of T steps."""

    windows: Windows
    old_values: Tensor
    """[N, T] when acting"""
    old_log_prob: Tensor
    """[N, T] when acting"""
    advantages: Tensor
    """[N, T]"""
    returns: Tensor
    """[N, T]"""
    loss_mask: Tensor
    """[N, T] bool, false where a step counts for no loss because the env ignored its action."""


class WindowBuffer(RolloutBuffer):
    """A rollout of `buffer_size` steps of each env, cut into windows of `window` steps.

    Storage is that of stable-baselines3, plus one `PolicyState` per window instead of one per step.

    :param buffer_size: steps per env
    :param observation_space: also a flat Dict
    :param action_space: the env's
    :param window: T; divides `buffer_size`
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 0.99,
        n_envs: int = 1,
        *,
        window: int,
    ) -> None:
        if buffer_size % window:
            raise ValueError(f"window must divide the rollout's steps, got window = {window}, n_steps = {buffer_size}")
        self.window = window
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Forget the rollout."""
        shape = (self.buffer_size, self.n_envs)
        self.observations: Any = self._empty_observations(shape)
        discrete = isinstance(self.action_space, spaces.Discrete | spaces.MultiDiscrete)
        # As sampled: rounded to a narrower dtype of the space, they would have another probability.
        self.actions = np.zeros((*shape, self.action_dim), dtype=np.int64 if discrete else np.float32)
        self.rewards, self.returns, self.episode_starts, self.values, self.log_probs, self.advantages = (
            np.zeros(shape, dtype=np.float32) for _ in range(6)
        )
        self.loss_mask = np.ones(shape, dtype=bool)
        self.snapshots: list[PolicyState] = []
        self.pos = 0
        self.full = False

    def starts_window(self) -> bool:
        """Whether the next step is the first of a window: then `add_snapshot` comes before it."""
        return self.pos % self.window == 0

    def add_snapshot(self, state: PolicyState) -> None:
        """Store the state before the first step of a window."""
        self.snapshots.append(state)

    def add_step(self, obs: Observation, acted: Acted, rewards: np.ndarray, episode_starts: np.ndarray) -> None:
        """Store one step of all envs.

        :param obs: [B, ...] what was seen
        :param acted: what was done
        :param rewards: [B]
        :param episode_starts: [B] true where `obs` is the first of an episode
        """
        if isinstance(obs, dict):
            for key, part in obs.items():
                self.observations[key][self.pos] = part.reshape(self.observations[key].shape[1:])
        else:
            self.observations[self.pos] = obs.reshape(self.observations.shape[1:])
        self.actions[self.pos] = acted.actions.cpu().numpy().reshape(self.n_envs, self.action_dim)
        self.values[self.pos] = acted.values.cpu().numpy()
        self.log_probs[self.pos] = acted.log_prob.cpu().numpy()
        self.rewards[self.pos] = rewards
        self.episode_starts[self.pos] = episode_starts
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def ignore_step(self, env: int, *, terminated: bool) -> None:
        """Leave the last step of one env out of every loss.

        Its observation was the last of an episode. The step before bootstraps from its value, 0 if `terminated`.
        """
        self.loss_mask[self.pos - 1, env] = False
        if terminated:
            self.values[self.pos - 1, env] = 0.0
        self.rewards[self.pos - 1, env] = self.values[self.pos - 1, env]  # so that its own advantage is 0

    def all_windows(self, policy: MemoryPolicy) -> WindowBatch:
        """Return the whole rollout as one batch, window by window, env by env.

        :param policy: encodes the previous actions and rewards, and plans what its core can know beforehand
        """
        reset = self._sequences(self.episode_starts).bool()
        actions = self._sequences(self.actions)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions[..., 0]
        state = PolicyState(
            policy.core.make_state(
                [torch.cat(leaves) for leaves in zip(*(snapshot.core for snapshot in self.snapshots), strict=True)]
            ),
            torch.cat([snapshot.previous_action for snapshot in self.snapshots]),
            torch.cat([snapshot.previous_reward for snapshot in self.snapshots]),
        )
        encoded = policy.encode_action(actions.flatten(0, 1)).unflatten(0, reset.shape)
        rewards = policy.encode_reward(self._sequences(self.rewards).flatten()).unflatten(0, reset.shape)
        windows = Windows(
            observations=self._observation_sequences(),
            actions=actions,
            previous_action=_shifted(encoded, state.previous_action, reset),
            previous_reward=_shifted(rewards, state.previous_reward, reset),
            reset=reset,
            core_state=state.core,
            plan=policy.core.plan(state.core, reset),
        )
        rest = (self.values, self.log_probs, self.advantages, self.returns, self.loss_mask)
        return WindowBatch(windows, *(self._sequences(array) for array in rest))

    def _empty_observations(self, shape: tuple[int, int]) -> np.ndarray | dict[str, np.ndarray]:
        if isinstance(self.observation_space, spaces.Dict):
            parts = self.observation_space.spaces
            return {key: np.zeros((*shape, *self.obs_shape[key]), dtype=part.dtype) for key, part in parts.items()}  # type: ignore[call-overload]
        return np.zeros((*shape, *self.obs_shape), dtype=self.observation_space.dtype)

    def _observation_sequences(self) -> Any:
        if isinstance(self.observations, dict):
            return {key: self._sequences(part) for key, part in self.observations.items()}
        return self._sequences(self.observations)

    def _sequences(self, array: np.ndarray) -> Tensor:
        """[steps, envs, ...] -> [windows * envs, T, ...]."""
        windows = array.reshape(-1, self.window, *array.shape[1:]).swapaxes(1, 2)
        return torch.as_tensor(windows.reshape(-1, self.window, *array.shape[2:]), device=self.device)


def _shifted(values: Tensor, first: Tensor, reset: Tensor) -> Tensor:
    """Return what preceded each step: `values` one step later, `first` at the window's start, 0 after a reset."""
    previous = torch.cat([first[:, None], values[:, :-1]], dim=1)
    return torch.where(reset[:, :, None], 0, previous)


def window_batches(everything: WindowBatch, batch_windows: int) -> Iterator[WindowBatch]:
    """Yield minibatches of whole windows in random order; each window once, but none of which no step counts.

    :param everything: a whole rollout
    :param batch_windows: N, windows in a minibatch
    """
    order = torch.randperm(len(everything.returns)).to(everything.returns.device)
    for start in range(0, len(order), batch_windows):
        batch: WindowBatch = _select(everything, order[start : start + batch_windows])
        if bool(batch.loss_mask.any()):
            yield batch


def _select(batch: Any, index: Tensor) -> Any:
    """Pick windows from every tensor of a nested batch."""
    if isinstance(batch, Tensor):
        return batch.index_select(0, index)
    if isinstance(batch, dict):
        return {key: _select(part, index) for key, part in batch.items()}
    if isinstance(batch, list):
        return [_select(part, index) for part in batch]
    if isinstance(batch, tuple):
        return type(batch)(*(_select(part, index) for part in batch))
    return batch
