"""One call of `predict`, from numpy arrays to numpy arrays, with checks that name the argument that does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ctrl.agents.policy.policy_data import PolicyState, policy_leaves
from ctrl.agents.utils.nan_checks import check_acted
from ctrl.agents.vec_envs.action_masks import checked_masks

if TYPE_CHECKING:
    from ctrl.agents.policy.memory_policy import MemoryPolicy


def predict(
    policy: MemoryPolicy,
    observation: Any,
    state: tuple[np.ndarray, ...] | None,
    episode_start: np.ndarray | None,
    deterministic: bool,
    reward: np.ndarray | float | None,
    action_masks: Any,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return actions and the state for the next call; see `MemoryPolicy.predict`."""
    if policy.training:
        policy.set_training_mode(False)
    obs, vectorized = policy.obs_to_tensor(observation)
    for part in obs.values() if isinstance(obs, dict) else [obs]:
        if part.is_floating_point() and not bool(torch.isfinite(part.float()).all()):
            raise ValueError(f"observation must be finite, got {observation}")
    sees_rewards = policy._previous_sizes[1] > 0
    if reward is not None and not sees_rewards:
        raise ValueError(f"this policy was built with previous_reward=False and takes no reward, got {reward}")
    batch = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
    reset = reset_of(policy, episode_start, batch)
    before = policy.initial_state(batch) if state is None else state_from_numpy(policy, state, batch)
    if sees_rewards and state is not None:
        before = before._replace(previous_reward=known_reward(policy, reward, reset))
    masks = None if action_masks is None else masks_of(policy, action_masks, batch)
    actor = policy.actor(before)
    acted = actor.act(obs, reset, deterministic, masks)
    check_acted(acted.values, acted.log_prob, obs, None)
    actions = policy.env_actions(acted.actions)
    return actions if vectorized else actions[0], tuple(leaf.cpu().numpy() for leaf in policy_leaves(actor.state()))


def reset_of(policy: MemoryPolicy, episode_start: np.ndarray | None, batch: int) -> Tensor:
    """Return [B] bool, true where an episode starts; nowhere for None."""
    if episode_start is None:
        return torch.zeros(batch, dtype=torch.bool, device=policy.device)
    starts = np.asarray(episode_start, dtype=bool).reshape(-1)
    if len(starts) != batch:
        raise ValueError(f"episode_start has {len(starts)} entries, but observation has {batch} envs")
    return torch.as_tensor(starts, device=policy.device)


def state_from_numpy(policy: MemoryPolicy, state: tuple[np.ndarray, ...], batch: int) -> PolicyState:
    """Return the state that the arrays of an earlier call stand for."""
    names = [*policy.core.state_fields, *PolicyState._fields[1:]]
    if len(state) != len(names):
        raise ValueError(f"state must have {len(names)} arrays ({', '.join(names)}), got {len(state)}")
    leaves = [torch.as_tensor(leaf, device=policy.device) for leaf in state]
    for name, leaf in zip(names, leaves, strict=True):
        if leaf.dim() == 0 or len(leaf) != batch:
            found = f"{len(leaf)} envs" if leaf.dim() else "0 axes"
            raise ValueError(f"state ({name}) is of {found}, but observation has {batch} envs")
    for name, leaf, size in zip(names[-2:], leaves[-2:], policy._previous_sizes, strict=True):
        if leaf.shape != (batch, size) or leaf.dtype != torch.float32:
            raise ValueError(
                f"state ({name}) must be float32 of shape {(batch, size)}, got {leaf.dtype} of {tuple(leaf.shape)}"
            )
    return PolicyState(policy.core.make_state(leaves[:-2]), *leaves[-2:])


def known_reward(policy: MemoryPolicy, reward: np.ndarray | float | None, reset: Tensor) -> Tensor:
    """Return the features [B, 1] of the last rewards; all 0 where every env starts an episode and none is given."""
    if reward is None:
        if bool(reset.all()):
            return torch.zeros(len(reset), 1, device=policy.device)
        raise ValueError("this policy was built with previous_reward=True, so predict() needs reward=, got None")
    rewards = np.asarray(reward, dtype=np.float32).reshape(-1)
    if len(rewards) not in (1, len(reset)):
        raise ValueError(f"reward has {len(rewards)} entries, but observation has {len(reset)} envs")
    return policy.encode_reward(rewards).expand(len(reset), 1)


def masks_of(policy: MemoryPolicy, masks: Any, batch: int) -> Tensor:
    """Return action masks as [B, M] bool."""
    return torch.as_tensor(checked_masks(masks, policy.action_space, batch), device=policy.device)
