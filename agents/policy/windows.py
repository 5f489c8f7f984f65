"""Windows from recorded steps: observations, actions and rewards of episodes as an env gave and took them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from ctrl.agents.policy.policy_data import Windows, each_part
from ctrl.agents.utils.nan_checks import check_finite
from ctrl.agents.utils.spaces import first_values
from ctrl.agents.vec_envs.action_masks import checked_masks
from ctrl.agents.vec_envs.nested import flat_observation

if TYPE_CHECKING:
    from ctrl.agents.policy.memory_policy import MemoryPolicy


def recorded_windows(
    policy: MemoryPolicy,
    observations: Any,
    actions: Any,
    episode_starts: Any,
    rewards: Any = None,
    action_masks: Any = None,
    core_state: Any = None,
) -> Windows:
    """Return recorded steps as windows; see `MemoryPolicy.windows`."""
    starts = np.asarray(episode_starts, dtype=bool)
    if starts.ndim != 2 or 0 in starts.shape:
        raise ValueError(f"episode_starts must be [N, T] with at least one step, got shape {starts.shape}")
    shape: tuple[int, int] = starts.shape
    reset = torch.as_tensor(starts, device=policy.device)
    chosen = policy_actions(policy, actions, shape)
    earned = _rewards(policy, rewards, shape)
    state = policy.core.initial_state(shape[0]) if core_state is None else core_state
    return Windows(
        observations=_observations(policy, observations, shape),
        actions=chosen,
        previous_action=previous(policy.encode_action(chosen.flatten(0, 1)).unflatten(0, shape), reset),
        previous_reward=previous(policy.encode_reward(earned.flatten()).unflatten(0, shape), reset),
        reset=reset,
        core_state=state,
        plan=policy.core.plan(state, reset),
        action_masks=None if action_masks is None else _masks(policy, action_masks, shape),
    )


def previous(values: Tensor, reset: Tensor) -> Tensor:
    """Return each step's predecessor of `values` [N, T, K]; 0 at the windows' first step and at a reset."""
    before = torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], dim=1)
    return torch.where(reset[:, :, None], 0, before)


def policy_actions(policy: MemoryPolicy, actions: Any, shape: tuple[int, int]) -> Tensor:
    """Return actions [N, T, ...] of the env as the policy's tensors: [N, T] for Discrete, else [N, T, parts].

    :raises ValueError: where their shape does not fit, or one of them is outside of the action space
    """
    space = policy.action_space
    array = np.asarray(actions)
    expected = (*shape, *(space.shape or ()))
    if array.shape != expected or array.dtype.kind not in "biuf":
        raise ValueError(f"actions must be numbers of shape {expected} for {space}, got {array.dtype} of {array.shape}")
    check_finite(array, "actions", 0)
    low, high = _bounds(space)
    if (array < low).any() or (array > high).any():
        raise ValueError(f"actions must be in {space}, got values from {array.min()} to {array.max()}")
    array = array - first_values(space)
    if isinstance(space, spaces.Discrete):
        return torch.as_tensor(array, device=policy.device).long()
    kind = torch.int64 if isinstance(space, spaces.MultiDiscrete) else torch.float32
    return torch.as_tensor(array, device=policy.device).to(kind).reshape(*shape, -1)


def _bounds(space: spaces.Space[Any]) -> tuple[Any, Any]:
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return space.start, space.start + (space.n if isinstance(space, spaces.Discrete) else space.nvec) - 1
    return (space.low, space.high) if isinstance(space, spaces.Box) else (0, 1)


def _observations(policy: MemoryPolicy, observations: Any, shape: tuple[int, int]) -> Any:
    """Return observations [N, T, ...] as the policy takes them: images have their channels first."""

    def flat(part: Any) -> np.ndarray:
        array = np.asarray(part)
        if array.shape[:2] != shape:
            raise ValueError(f"observations must be [{shape[0]}, {shape[1]}, ...], got shape {array.shape}")
        return array.reshape(-1, *array.shape[2:])

    steps = each_part(flat, flat_observation(observations))
    check_finite(steps, "observations", 0)
    return each_part(lambda part: part.unflatten(0, shape), policy.obs_to_tensor(steps)[0])


def _rewards(policy: MemoryPolicy, rewards: Any, shape: tuple[int, int]) -> Tensor:
    sees = policy._previous_sizes[1] > 0
    if (rewards is not None) != sees:
        need = "needs rewards" if sees else "takes no rewards"
        raise ValueError(f"this policy was built with previous_reward={sees} and {need}, got {rewards}")
    array = np.zeros(shape, dtype=np.float32) if rewards is None else np.asarray(rewards, dtype=np.float32)
    if array.shape != shape:
        raise ValueError(f"rewards must be [{shape[0]}, {shape[1]}], got shape {array.shape}")
    check_finite(array, "rewards", 0)
    return torch.as_tensor(array, device=policy.device)


def _masks(policy: MemoryPolicy, masks: Any, shape: tuple[int, int]) -> Tensor:
    array = np.asarray(masks)
    if array.shape[:2] != shape:
        raise ValueError(f"action_masks must be [{shape[0]}, {shape[1]}, M], got shape {array.shape}")
    flat = checked_masks(array.reshape(-1, *array.shape[2:]), policy.action_space, shape[0] * shape[1])
    masks_by_step: Tensor = torch.as_tensor(flat, device=policy.device).unflatten(0, shape)
    return masks_by_step
