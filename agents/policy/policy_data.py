"""Data that a policy passes around: its state, its actions, the windows that it learns from, and its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

import ctrl


class PolicyState(NamedTuple):
    """State that a policy carries from step to step."""

    core: Any
    """The core's state."""
    previous_action: Tensor
    """[B, A] the last action, encoded by `encode_action`; [B, 0] where the policy does not use it."""
    previous_reward: Tensor
    """[B, 1] the last reward; [B, 0] where the policy does not use it."""


torch.serialization.add_safe_globals([PolicyState])  # so that `torch.load` takes a saved state


class Acted(NamedTuple):
    """Result of `Actor.act` for B envs."""

    actions: Tensor
    """[B, ...] as sampled; Box actions are not clipped yet."""
    values: Tensor
    """[B] in the rewards' units."""
    log_prob: Tensor
    """[B]"""


class Windows(NamedTuple):
    """Training input of a policy: N windows of T steps."""

    observations: PyTorchObs
    """[N, T, ...]"""
    actions: Tensor
    """[N, T, ...]"""
    previous_action: Tensor
    """[N, T, A]"""
    previous_reward: Tensor
    """[N, T, 1]"""
    reset: Tensor
    """[N, T] bool, true where a step is the first of an episode."""
    core_state: Any
    """The core's state before each window."""
    plan: Any
    """Result of `MemoryCore.plan` for these windows, kept so that it is computed once; None to compute it."""
    action_masks: Tensor | None = None
    """[N, T, M] bool, true where a choice may be taken; None where all may."""


class Evaluated(NamedTuple):
    """Result of `MemoryPolicy.evaluate_windows` for N windows of T steps."""

    values: Tensor
    """[N, T] in the rewards' units."""
    latent_vf: Tensor
    """[N, T, V] input of the value head's output layer."""
    log_prob: Tensor
    """[N, T] log-probabilities of the windows' actions under the current policy."""
    entropy: Tensor | None
    """[N, T], or None where the distribution has no closed form."""
    unrolled: ctrl.Unrolled

    @property
    def entropy_estimate(self) -> Tensor:
        """[N, T] entropies; -log_prob of the actions, which has the same mean, where there is no closed form."""
        return -self.log_prob if self.entropy is None else self.entropy


def policy_leaves(state: PolicyState) -> tuple[Tensor, ...]:
    """Return all tensors of a state: the core's leaves, the previous action and the previous reward."""
    return (*state.core, state.previous_action, state.previous_reward)


def each_part(function: Callable[..., Any], *observations: Any) -> Any:
    """Apply `function` to observations, key by key if they are dicts."""
    if isinstance(observations[0], dict):
        return {key: function(*(part[key] for part in observations)) for key in observations[0]}
    return function(*observations)


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
