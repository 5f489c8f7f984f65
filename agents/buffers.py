"""Rollout storage in windows: sequences of steps, each with one stored state at its start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor

from ctrl.agents.actor import join_states
from ctrl.agents.memory_policy import MemoryPolicy, Observation
from ctrl.agents.policy_data import Acted, PolicyState, Windows


class BurnIn(NamedTuple):
    """Burn-in: the k steps before each of N windows."""

    steps: Windows
    """[N, k], with the states that were stored before them."""
    known: Tensor
    """[N] bool, false where the burn-in is unusable: some steps are unknown, and no episode starts in the others."""


class WindowBatch(NamedTuple):
    """Minibatch of N windows of T steps."""

    windows: Windows
    burn_in: BurnIn | None
    """Steps before the windows; None where the buffer has no burn-in."""
    old_values: Tensor
    """[N, T] values from acting."""
    old_log_prob: Tensor
    """[N, T] log-probabilities from acting."""
    advantages: Tensor
    """[N, T]"""
    returns: Tensor
    """[N, T]"""
    loss_mask: Tensor
    """[N, T] bool, false where a step is left out of all losses because the env ignored its action."""


class Cut(NamedTuple):
    """Episodes of K envs that were truncated in the same step."""

    step: int
    """Row of the buffer that holds the episodes' last step."""
    envs: list[int]
    state: PolicyState
    """State after that step; K rows."""
    observations: Any
    """[K, ...] terminal observations, from which the returns bootstrap."""


class _Steps(NamedTuple):
    """Steps in the order of acting; leading axes [steps, envs]."""

    observations: Any
    actions: np.ndarray
    rewards: np.ndarray
    episode_starts: np.ndarray


class WindowBuffer(RolloutBuffer):
    """Rollout of `buffer_size` steps per env, cut into windows of `window` steps.

    Storage is that of stable-baselines3, plus one `PolicyState` per window instead of one per step.

    With a burn-in of k steps, the buffer also keeps the state k steps before each window. That is one more state per
    window, unless k is a multiple of the window: then the two coincide. It also keeps the last k steps of the previous
    rollout. If that rollout was not filled, the next one does not begin where it ended, so the steps before the next
    one count as unknown.

    :param buffer_size: steps per env
    :param observation_space: the env's; a flat Dict is possible
    :param action_space: the env's
    :param window: T; divides `buffer_size`
    :param burn_in: k, from 0 to `buffer_size`
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
        burn_in: int = 0,
    ) -> None:
        if buffer_size % window:
            raise ValueError(f"window must divide the rollout's steps, got window = {window}, n_steps = {buffer_size}")
        if not 0 <= burn_in <= buffer_size:
            raise ValueError(f"burn_in must be from 0 to n_steps, got burn_in = {burn_in}, n_steps = {buffer_size}")
        self.window = window
        self.burn_in = burn_in
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)

    @property
    def _starts(self) -> range:
        """First step of each window."""
        return range(0, self.buffer_size, self.window)

    def reset(self) -> None:
        """Clear the rollout, but keep the steps and states that the next one's burn-in needs."""
        self._before = _last(self._steps(), self.burn_in) if self.full else None
        self.snapshots: dict[int, PolicyState] = self._snapshots_ahead() if self.full else {}
        """States by the step that follows them, counted from the rollout's first; negative in the previous rollout."""
        self._empty()

    def _snapshots_ahead(self) -> dict[int, PolicyState]:
        """Return the snapshots from which the next rollout's burn-ins begin, by the next rollout's step numbers."""
        ahead = (start - self.burn_in for start in self._starts if start < self.burn_in)
        return {step: self.snapshots[step + self.buffer_size] for step in ahead}

    def _empty(self) -> None:
        shape = (self.buffer_size, self.n_envs)
        self.observations: Any = self._empty_observations(shape)
        discrete = isinstance(self.action_space, spaces.Discrete | spaces.MultiDiscrete)
        # Actions stay as sampled: rounding them to a narrower dtype of the space would change their probability.
        self.actions = np.zeros((*shape, self.action_dim), dtype=np.int64 if discrete else np.float32)
        self.rewards, self.returns, self.episode_starts, self.values, self.log_probs, self.advantages = (
            np.zeros(shape, dtype=np.float32) for _ in range(6)
        )
        self.loss_mask = np.ones(shape, dtype=bool)
        self.cuts: list[Cut] = []
        """Truncated episodes whose bootstrap values are still missing."""
        self.pos = 0
        self.full = False

    def needs_snapshot(self) -> bool:
        """Return True if the next step is the first of a window or burn-in, so that `add_snapshot` must come first."""
        return self.pos % self.window == 0 or (self.pos + self.burn_in) % self.window == 0

    def add_snapshot(self, state: PolicyState) -> None:
        """Store the state before the next step."""
        self.snapshots[self.pos] = state

    def add_step(self, obs: Observation, acted: Acted, rewards: np.ndarray, episode_starts: np.ndarray) -> None:
        """Store one step of all envs.

        :param obs: [B, ...] observations before the actions
        :param acted: actions, with values and log-probabilities
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

        Its observation was the last of an episode. The previous step bootstraps from the value of that observation, or
        from 0 if `terminated`.
        """
        self.loss_mask[self.pos - 1, env] = False
        if terminated:
            self.values[self.pos - 1, env] = 0.0
        self.rewards[self.pos - 1, env] = self.values[self.pos - 1, env]  # so that its own advantage is 0

    def bootstrap(self, steps: np.ndarray, envs: np.ndarray, values: np.ndarray) -> None:
        """Add discounted bootstrap values [K] to the rewards of truncated episodes, at `steps` [K] of `envs` [K]."""
        self.rewards[steps, envs] += values

    def all_windows(self, policy: MemoryPolicy) -> WindowBatch:
        """Return the whole rollout as one batch, ordered by window, then by env.

        :param policy: encodes the previous actions and rewards; its core makes the plan of the unroll
        """
        windows = self._windows(policy, self._steps(), self.window, [self.snapshots[start] for start in self._starts])
        rest = (self.values, self.log_probs, self.advantages, self.returns, self.loss_mask)
        burn_in = self._burn_in(policy) if self.burn_in else None
        return WindowBatch(windows, burn_in, *(self._sequences(array, self.window) for array in rest))

    def _burn_in(self, policy: MemoryPolicy) -> BurnIn:
        stored = torch.tensor([start - self.burn_in in self.snapshots for start in self._starts], device=self.device)
        snapshots = [self.snapshots.get(start - self.burn_in, self.snapshots[start]) for start in self._starts]
        before = self._unknown_steps() if self._before is None else self._before
        steps = self._windows(policy, _join(before, self._steps()), self.burn_in, snapshots)
        return BurnIn(steps, stored.repeat_interleave(self.n_envs) | steps.reset.any(dim=1))

    def _unknown_steps(self) -> _Steps:
        """Return `burn_in` placeholders for unknown steps: valid observations, no resets."""

        def first(array: np.ndarray) -> np.ndarray:
            return array[:1].repeat(self.burn_in, axis=0)

        steps = _Steps(*(each_part(first, part) for part in self._steps()))
        return steps._replace(episode_starts=np.zeros_like(steps.episode_starts))

    def _windows(self, policy: MemoryPolicy, steps: _Steps, length: int, snapshots: Sequence[PolicyState]) -> Windows:
        """Cut `steps` into windows of `length` steps, one every `window` steps, with the states before them."""
        reset = self._sequences(steps.episode_starts, length).bool()
        actions = self._sequences(steps.actions, length)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions[..., 0]
        core_state, action, reward = join_states(policy, snapshots)
        encoded = policy.encode_action(actions.flatten(0, 1)).unflatten(0, reset.shape)
        rewards = policy.encode_reward(self._sequences(steps.rewards, length).flatten()).unflatten(0, reset.shape)
        return Windows(
            observations=each_part(lambda array: self._sequences(array, length), steps.observations),
            actions=actions,
            previous_action=_shifted(encoded, action, reset),
            previous_reward=_shifted(rewards, reward, reset),
            reset=reset,
            core_state=core_state,
            plan=policy.core.plan(core_state, reset),
        )

    def _steps(self) -> _Steps:
        return _Steps(self.observations, self.actions, self.rewards, self.episode_starts)

    def _empty_observations(self, shape: tuple[int, int]) -> np.ndarray | dict[str, np.ndarray]:
        if isinstance(self.observation_space, spaces.Dict):
            parts = self.observation_space.spaces
            return {key: np.zeros((*shape, *self.obs_shape[key]), dtype=part.dtype) for key, part in parts.items()}  # type: ignore[call-overload]
        return np.zeros((*shape, *self.obs_shape), dtype=self.observation_space.dtype)

    def _sequences(self, array: np.ndarray, length: int) -> Tensor:
        """Cut [steps, envs, ...] into sequences [windows * envs, length, ...], one every `window` steps."""
        windows = np.concatenate([array[start : start + length].swapaxes(0, 1) for start in self._starts])
        return torch.as_tensor(windows, device=self.device)


def each_part(function: Callable[..., Any], *observations: Any) -> Any:
    """Apply `function` to observations, key by key if they are dicts."""
    if isinstance(observations[0], dict):
        return {key: function(*(part[key] for part in observations)) for key in observations[0]}
    return function(*observations)


def _last(steps: _Steps, count: int) -> _Steps:
    """Return a copy of the last `count` steps."""
    return _Steps(*(each_part(lambda array: array[len(array) - count :].copy(), part) for part in steps))


def _join(before: _Steps, after: _Steps) -> _Steps:
    parts = zip(before, after, strict=True)
    return _Steps(*(each_part(lambda *arrays: np.concatenate(arrays), *both) for both in parts))


def _shifted(values: Tensor, first: Tensor, reset: Tensor) -> Tensor:
    """Return each step's predecessor: `values` shifted by one step, `first` at the window's start, 0 at a reset."""
    previous = torch.cat([first[:, None], values[:, :-1]], dim=1)
    return torch.where(reset[:, :, None], 0, previous)


def window_batches(everything: WindowBatch, batch_windows: int) -> Iterator[WindowBatch]:
    """Yield minibatches of whole windows in random order, each window once; skip minibatches without counted steps.

    :param everything: a whole rollout
    :param batch_windows: N, windows in a minibatch
    """
    order = torch.randperm(len(everything.returns)).to(everything.returns.device)
    for start in range(0, len(order), batch_windows):
        batch: WindowBatch = select(everything, order[start : start + batch_windows])
        if bool(batch.loss_mask.any()):
            yield batch


def select(batch: Any, index: Tensor) -> Any:
    """Return a nested batch with the windows `index` of every tensor."""
    if isinstance(batch, Tensor):
        return batch.index_select(0, index)
    if isinstance(batch, dict):
        return {key: select(part, index) for key, part in batch.items()}
    if isinstance(batch, list):
        return [select(part, index) for part in batch]
    if isinstance(batch, tuple):
        return type(batch)(*(select(part, index) for part in batch))
    return batch
