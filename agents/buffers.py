"""Rollout storage: the steps of acting, cut into windows with one stored state each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from torch import Tensor

from ctrl.agents.gae import gae
from ctrl.agents.policy.actor import join_states
from ctrl.agents.policy.memory_policy import MemoryPolicy, Observation
from ctrl.agents.policy.policy_data import Acted, PolicyState, Windows, each_part, select
from ctrl.agents.utils.spaces import stored_shape

Arrays = dict[str, np.ndarray]


class BurnIn(NamedTuple):
    """Burn-in: the k steps before each of N windows."""

    steps: Windows
    """[N, k], with the states that were stored before them."""
    known: Tensor
    """[N] bool, false where the burn-in is unusable: some steps are unknown, and no episode starts in the others."""


class WindowBatch(NamedTuple):
    """Training data of PPO: N windows of T steps."""

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


class Truncation(NamedTuple):
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
    action_masks: np.ndarray


class WindowBuffer:
    """Rollout of `buffer_size` steps in each of B envs, cut into windows of `window` steps.

    It stores what acting met: one entry per step, one `PolicyState` per window, and the observation after each window.
    `pos` steps are stored; `full` is true once that is all. PPO adds advantages and returns.

    With a burn-in of k steps, the buffer also keeps the state k steps before each window. That is one more state per
    window, unless k is a multiple of the window: then the two coincide. It also keeps the last k steps of the previous
    rollout. If that rollout was not filled, the next one does not begin where it ended, so the steps before the next
    one count as unknown.

    :param buffer_size: steps per env
    :param observation_space: the env's; a flat Dict is possible
    :param action_space: the env's
    :param device: device of the windows
    :param n_envs: B
    :param window: T; divides `buffer_size`
    :param burn_in: k, from 0 to `buffer_size`
    :param mask_size: M, entries of an action mask; 0 where masks are not used
    :raises ValueError: where `window` or `burn_in` does not fit `buffer_size`
    """

    action_masks: np.ndarray
    """[steps, B, M] bool, true where a choice could be taken; [steps, B, 0] where masks are not used."""
    rewards: np.ndarray
    """[steps, B] as the env gave them."""
    values: np.ndarray
    """[steps, B] values from acting."""
    loss_mask: np.ndarray
    """[steps, B] bool, false where a step is left out of all losses because the env ignored its action."""
    over: np.ndarray
    """[steps, B] bool, true where the episode was terminated before the step: the value of its observation is 0."""
    bootstraps: np.ndarray
    """[steps, B] discounted value of the terminal observation where the episode was truncated; 0 elsewhere."""
    following: Any
    """[windows, B, ...] the observation after each window."""
    following_starts: np.ndarray
    """[windows, B] bool, true where `following` is the first observation of an episode."""
    following_over: np.ndarray
    """[windows, B] bool, true where the episode was terminated before `following`, as `over`."""
    snapshots: dict[int, PolicyState]
    """States by the step that follows them, counted from the rollout's first; negative in the previous rollout."""
    truncations: list[Truncation]
    """Truncated episodes whose bootstrap values are still missing."""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "cpu",
        *,
        n_envs: int,
        window: int,
        burn_in: int = 0,
        mask_size: int = 0,
    ) -> None:
        if buffer_size % window:
            raise ValueError(f"window must divide the rollout's steps, got window = {window}, n_steps = {buffer_size}")
        if not 0 <= burn_in <= buffer_size:
            raise ValueError(f"burn_in must be from 0 to n_steps, got burn_in = {burn_in}, n_steps = {buffer_size}")
        self.buffer_size, self.n_envs, self.window, self.burn_in = buffer_size, n_envs, window, burn_in
        self.observation_space, self.action_space = observation_space, action_space
        self.device, self.mask_size = torch.device(device), mask_size
        self.full = False
        self.reset()

    # Acting

    def reset(self) -> None:
        """Clear the rollout, but keep the steps and states that the next one's burn-in needs."""
        self._before = _last(self._steps(), self.burn_in) if self.full else None
        self.snapshots = self._snapshots_ahead() if self.full else {}
        self._allocate()
        self.truncations = []
        self.pos = 0
        self.full = False

    def _snapshots_ahead(self) -> dict[int, PolicyState]:
        """Return the snapshots from which the next rollout's burn-ins begin, by the next rollout's step numbers."""
        ahead = (start - self.burn_in for start in self._starts if start < self.burn_in)
        return {step: self.snapshots[step + self.buffer_size] for step in ahead}

    def _allocate(self) -> None:
        steps, windows = (self.buffer_size, self.n_envs), (self.buffer_size // self.window, self.n_envs)
        self.observations: Any = self._empty_observations(steps)
        discrete = isinstance(self.action_space, spaces.Discrete | spaces.MultiDiscrete)
        # Actions stay as sampled: rounding them to a narrower dtype of the space would change their probability.
        action_dim = get_action_dim(self.action_space)
        self.actions = np.zeros((*steps, action_dim), dtype=np.int64 if discrete else np.float32)
        self.action_masks = np.ones((*steps, self.mask_size), dtype=bool)
        self.rewards, self.values, self.log_probs, self.bootstraps, self.advantages, self.returns = (
            np.zeros(steps, dtype=np.float32) for _ in range(6)
        )
        self.episode_starts, self.over = (np.zeros(steps, dtype=bool) for _ in range(2))
        self.loss_mask = np.ones(steps, dtype=bool)
        self.following = self._empty_observations(windows)
        self.following_starts, self.following_over = (np.zeros(windows, dtype=bool) for _ in range(2))

    def _empty_observations(self, shape: tuple[int, int]) -> np.ndarray | dict[str, np.ndarray]:
        def empty(space: spaces.Space[Any]) -> np.ndarray:
            return np.zeros((*shape, *stored_shape(space)), dtype=space.dtype)

        if isinstance(self.observation_space, spaces.Dict):
            return {key: empty(part) for key, part in self.observation_space.spaces.items()}
        return empty(self.observation_space)

    def needs_snapshot(self) -> bool:
        """Return True if the next step is the first of a window or burn-in, so that `add_snapshot` must come first."""
        return self.pos % self.window == 0 or (self.pos + self.burn_in) % self.window == 0

    def add_snapshot(self, state: PolicyState) -> None:
        """Store the state before the next step."""
        self.snapshots[self.pos] = state

    def add_masks(self, masks: np.ndarray) -> None:
        """Store the action masks [B, M] of the next step."""
        self.action_masks[self.pos] = masks

    def add_step(self, obs: Observation, acted: Acted, rewards: np.ndarray, episode_starts: np.ndarray) -> None:
        """Store one step of all envs.

        :param obs: [B, ...] observations before the actions
        :param acted: actions, with values and log-probabilities
        :param rewards: [B]
        :param episode_starts: [B] true where `obs` is the first of an episode
        """
        _store(self.observations, self.pos, obs)
        self.actions[self.pos] = acted.actions.cpu().numpy().reshape(self.actions.shape[1:])
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
        self.over[self.pos - 1, env] = terminated

    def add_truncation(self, envs: list[int], state: PolicyState, observations: Any) -> None:
        """Note that the last step truncated the episodes of `envs`; `bootstrap` adds the values."""
        self.truncations.append(Truncation(self.pos - 1, envs, state, observations))

    def bootstrap(self, values: np.ndarray) -> None:
        """Store the discounted bootstrap values [K] of all `truncations`, in their order, and clear these."""
        steps = [np.full(len(truncation.envs), truncation.step) for truncation in self.truncations]
        envs = [truncation.envs for truncation in self.truncations]
        self.bootstraps[np.concatenate(steps), np.concatenate(envs)] = values
        self.truncations = []

    def add_following(self, obs: Observation, episode_starts: np.ndarray, over: np.ndarray) -> None:
        """Store the observation after the window that the last step has filled.

        :param obs: [B, ...]
        :param episode_starts: [B] true where `obs` is the first of an episode
        :param over: [B] true where the episode was terminated and `obs` is its last
        """
        index = self.pos // self.window - 1
        _store(self.following, index, obs)
        self.following_starts[index] = episode_starts
        self.following_over[index] = over

    # Windows from another process

    def arrays(self) -> Arrays:
        """Return all that acting has stored, by name: per step [steps, B, ...], `following…` [windows, B, ...]."""
        found: Arrays = {}
        for name in _STORED:
            stored = getattr(self, name)
            parts = stored.items() if isinstance(stored, dict) else [("", stored)]
            found.update({f"{name}/{key}" if key else name: part for key, part in parts})
        return found

    def load(self, arrays: Arrays, state: PolicyState, index: int) -> None:
        """Copy `arrays`, the only window of another buffer, to window `index`, with the `state` before it."""
        steps = slice(index * self.window, (index + 1) * self.window)
        for name, whole in self.arrays().items():
            whole[slice(index, index + 1) if name.startswith("following") else steps] = arrays[name]
        self.snapshots[steps.start] = state
        self.pos = steps.stop
        self.full = self.pos == self.buffer_size

    # Learning

    @property
    def ends(self) -> np.ndarray:
        """[steps, B] bool, true where the next step is the first of another episode."""
        ends = np.roll(self.episode_starts, -1, axis=0)
        ends[self.window - 1 :: self.window] = self.following_starts
        return ends

    def compute_returns_and_advantage(self, last_values: np.ndarray, *, gamma: float, gae_lambda: float) -> None:
        """Fill `advantages` and `returns` of a full buffer; the advantage of an ignored step is 0.

        :param last_values: [B] values of the observations after the rollout
        """
        zero = np.float32(0)
        values = np.where(self.over, zero, self.values)
        self.advantages = gae(
            rewards=np.where(self.loss_mask, self.rewards + self.bootstraps, values),
            values=values,
            last_values=np.where(self.following_over[-1], zero, last_values),
            ends=self.ends,
            gamma=gamma,
            gae_lambda=gae_lambda,
        )
        self.returns = self.advantages + values

    def all_windows(self, policy: MemoryPolicy) -> WindowBatch:
        """Return the whole rollout as one batch for PPO, ordered by window, then by env.

        :param policy: encodes the previous actions and rewards; its core makes the plan of the unroll
        """
        rest = (self.values, self.log_probs, self.advantages, self.returns, self.loss_mask)
        burn_in = self._burn_in(policy) if self.burn_in else None
        return WindowBatch(self.windows(policy), burn_in, *map(self.sequences, rest))

    def windows(self, policy: MemoryPolicy) -> Windows:
        """Return the rollout's windows as the policy's input, ordered by window, then by env."""
        return self._windows(policy, self._steps(), self.window, [self.snapshots[start] for start in self._starts])

    def sequences(self, array: np.ndarray, length: int | None = None) -> Tensor:
        """Cut [steps, B, ...] into sequences [windows * B, length, ...], one every `window` steps.

        :param length: None for `window`
        """
        length = self.window if length is None else length
        windows = np.concatenate([array[start : start + length].swapaxes(0, 1) for start in self._starts])
        return torch.as_tensor(windows, device=self.device)

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
        reset = self.sequences(steps.episode_starts, length)
        actions = self.sequences(steps.actions, length)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions[..., 0]
        core_state, action, reward = join_states(policy, snapshots)
        encoded = policy.encode_action(actions.flatten(0, 1)).unflatten(0, reset.shape)
        rewards = policy.encode_reward(self.sequences(steps.rewards, length).flatten()).unflatten(0, reset.shape)
        return Windows(
            observations=each_part(lambda array: self.sequences(array, length), steps.observations),
            actions=actions,
            previous_action=_shifted(encoded, action, reset),
            previous_reward=_shifted(rewards, reward, reset),
            reset=reset,
            core_state=core_state,
            plan=policy.core.plan(core_state, reset),
            action_masks=self.sequences(steps.action_masks, length) if self.mask_size else None,
        )

    def _steps(self) -> _Steps:
        return _Steps(self.observations, self.actions, self.rewards, self.episode_starts, self.action_masks)

    @property
    def _starts(self) -> range:
        """First step of each window."""
        return range(0, self.buffer_size, self.window)


_STORED = (
    *("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "loss_mask", "bootstraps", "over"),
    *("following", "following_starts", "following_over", "action_masks"),
)


def _store(whole: Any, row: int, observations: Any) -> None:
    """Copy observations [B, ...] to a row of the stored ones."""

    def copy(stored: np.ndarray, part: np.ndarray) -> None:
        stored[row] = part.reshape(stored.shape[1:])

    each_part(copy, whole, observations)


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
