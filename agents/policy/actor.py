"""Acting of a policy in B envs: its state is kept between steps, in place where the core can."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from ctrl.agents.policy.policy_data import Acted, PolicyState, policy_leaves

if TYPE_CHECKING:
    from ctrl.agents.policy.memory_policy import MemoryPolicy


class Actor:
    """Policy that acts in B envs and keeps the state from step to step; made by `MemoryPolicy.actor`.

    Weights may change between two steps; `ctrl.core.Acting` states the exceptions.
    """

    def __init__(self, policy: MemoryPolicy, state: PolicyState) -> None:
        self.policy = policy
        self._core = policy.core.acting(state.core)
        self._action, self._reward = state.previous_action, state.previous_reward
        self._sees_rewards = self._reward.shape[1] > 0

    def act(
        self, obs: PyTorchObs, reset: Tensor, deterministic: bool = False, action_masks: Tensor | None = None
    ) -> Acted:
        """Choose one action per env and advance the state. The policy goes to evaluation mode and stays there.

        :param obs: [B, ...]
        :param reset: [B] bool, true where `obs` is the first of an episode
        :param deterministic: take the most likely action
        :param action_masks: [B, M] bool, true where a choice may be taken; None where all may
        """
        if self.policy.training:
            self.policy.set_training_mode(False)
        with torch.inference_mode():
            acted = self._act(obs, reset, deterministic, action_masks)
        return Acted(*(part.clone() for part in acted))  # normal tensors, not inference tensors

    def _act(self, obs: PyTorchObs, reset: Tensor, deterministic: bool, action_masks: Tensor | None) -> Acted:
        policy, started = self.policy, reset[:, None]
        self._action = self._action.masked_fill(started, 0)
        if self._sees_rewards:
            self._reward = self._reward.masked_fill(started, 0)
        latent = self._core.step(policy.embed(obs, self._action, self._reward), reset)
        actions, values, log_prob = policy.decide(latent, deterministic, action_masks)
        self._action = policy.encode_action(actions)
        return Acted(actions, values, log_prob)

    def tell_rewards(self, rewards: np.ndarray) -> None:
        """Keep the rewards [B] of the last actions as input of the next step, where the policy uses rewards."""
        if self._sees_rewards:
            self._reward = self.policy.encode_reward(rewards)

    def state(self, envs: np.ndarray | None = None) -> PolicyState:
        """Return the state after the last step, of all envs or of those with the indices `envs`."""
        parts = self._action, self._reward
        if envs is not None:
            index = torch.as_tensor(envs, device=self._action.device)
            parts = parts[0][index], parts[1][index]
        return PolicyState(self._core.state(envs), *(part.clone() for part in parts))

    def cache(self) -> list[Tensor]:
        """Return copies of what the core's acting keeps beside the state; see `ctrl.core.Acting.cache`."""
        return self._core.cache()

    def set_cache(self, cache: Sequence[Tensor]) -> None:
        """Go on bit for bit like the actor whose `cache()` this is; both must be in the same state."""
        self._core.set_cache([part.to(self._action.device) for part in cache])


def join_states(policy: MemoryPolicy, states: Sequence[PolicyState]) -> PolicyState:
    """Return several states as one, with their envs in order."""
    parts = [torch.cat(leaves) for leaves in zip(*map(policy_leaves, states), strict=True)]
    return PolicyState(policy.core.make_state(parts[:-2]), *parts[-2:])
