"""Steps of a policy for `ctrl.Predictor`, which serves many clients."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.policy.policy_data import each_part, policy_leaves
from ctrl.predictor import Leaves


class PolicySteps:
    """Steps of a policy: observations as `predict` takes them, without a batch axis; results are actions.

    :param policy: the policy; it is put into evaluation mode
    :param deterministic: take the most likely action
    """

    def __init__(self, policy: MemoryPolicy, *, deterministic: bool) -> None:
        self._policy = policy
        self._deterministic = deterministic
        self._lock = Lock()  # stable-baselines3's policies hold their distribution in an attribute
        policy.set_training_mode(False)

    def initial_leaves(self) -> Leaves:
        """Return the state of one client before its first step."""
        return policy_leaves(self._policy.initial_state(1))

    def take(
        self, observations: list[Any], leaves: Leaves, reset: Tensor, rewards: list[float | None]
    ) -> tuple[Sequence[Any], Leaves]:
        """Take one step, as `predict` does; see `ctrl.predictor.Steps`.

        :raises ValueError: where an observation is not finite or does not fit its space, or a needed reward is missing
        """
        policy, told_of = self._policy, list(zip(rewards, reset.tolist(), strict=True))
        told = None
        if any(reward is not None for reward in rewards):
            if any(reward is None and not begins for reward, begins in told_of):
                raise ValueError(f"reward must be given for all clients or for none, got {rewards}")
            told = np.array([0.0 if reward is None else reward for reward in rewards], dtype=np.float32)
        arrays = tuple(leaf.cpu().numpy() for leaf in leaves)
        batch = each_part(_stacked, *observations)
        with self._lock:
            actions, after = policy.predict(batch, arrays, reset.cpu().numpy(), self._deterministic, told)
        if len(actions) != len(observations) or after is None:
            raise ValueError(f"observation must be of one env, without a batch axis, got {np.shape(observations[0])}")
        return list(actions), tuple(torch.as_tensor(leaf, device=policy.device) for leaf in after)


def _stacked(*parts: Any) -> np.ndarray:
    return np.stack([np.asarray(part) for part in parts])
