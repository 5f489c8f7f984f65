"""Training data of IMPALA: windows with behaviour log-probs, rewards and the observation after each, and their targets.

Targets and advantages are not stored. They depend on the current policy, so the learner computes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.impala.vtrace import VTrace, vtrace
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.policy.policy_data import Evaluated, PolicyState, Windows, each_part

REWARD_CLIPPING: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda rewards: rewards,
    "abs_one": lambda rewards: rewards.clamp(-1, 1),
    "soft_asymmetric": lambda rewards: 5 * torch.where(rewards < 0, 0.3, 1.0) * torch.tanh(rewards / 5),
}
"""Reward clipping by name, as in the original's code; applied to rewards before any discounting."""


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
    ends: Tensor
    """[N, T] bool, true where the next step is the first of another episode."""
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


def trajectory_batch(buffer: WindowBuffer, policy: MemoryPolicy) -> TrajectoryBatch:
    """Return a whole rollout as one batch, ordered by window, then by env.

    :param policy: encodes the previous actions and rewards; its core makes the plan of the unroll
    """

    def flat(array: np.ndarray) -> Tensor:  # [windows, B, ...] -> [windows * B, ...]
        return torch.as_tensor(array.reshape(-1, *array.shape[2:]).copy(), device=buffer.device)

    return TrajectoryBatch(
        windows=buffer.windows(policy),
        old_values=buffer.sequences(buffer.values),
        old_log_prob=buffer.sequences(buffer.log_probs),
        rewards=buffer.sequences(buffer.rewards),
        bootstraps=buffer.sequences(buffer.bootstraps),
        ends=buffer.sequences(buffer.ends),
        over=buffer.sequences(buffer.over),
        loss_mask=buffer.sequences(buffer.loss_mask),
        following=each_part(flat, buffer.following),
        following_starts=flat(buffer.following_starts),
        following_over=flat(buffer.following_over),
    )


@torch.no_grad()
def vtrace_targets(
    policy: MemoryPolicy,
    batch: TrajectoryBatch,
    evaluated: Evaluated,
    *,
    gamma: float,
    reward_clipping: str | None,
    rho_bar: float,
    c_bar: float,
    lambda_: float,
) -> VTrace:
    """Return V-trace targets and advantages [N, T] under the current policy.

    At a step whose action the env ignored, the observation was the last of an episode. The step's target is the value
    of that observation, or 0 if the episode was terminated, and nothing from later steps reaches it.

    :param evaluated: the policy's evaluation of `batch.windows`
    :param reward_clipping: key of `REWARD_CLIPPING`; the other numbers are as in `vtrace`
    """
    last_action, last_reward = batch.windows.actions[:, -1], batch.rewards[:, -1]
    state = PolicyState(evaluated.unrolled.state, policy.encode_action(last_action), policy.encode_reward(last_reward))
    bootstrap_value = policy.values_after(batch.following, state, batch.following_starts)
    values = evaluated.values.masked_fill(batch.over, 0.0)
    rewards = REWARD_CLIPPING[reward_clipping](batch.rewards) + batch.bootstraps
    log_ratio = torch.where(batch.loss_mask, evaluated.log_prob - batch.old_log_prob, 0.0)
    return vtrace(
        behaviour_log_prob=torch.zeros_like(log_ratio),
        target_log_prob=log_ratio,
        rewards=torch.where(batch.loss_mask, rewards, values),
        discounts=gamma * (~batch.ends).float(),
        values=values,
        bootstrap_value=bootstrap_value.masked_fill(batch.following_over, 0.0),
        rho_bar=rho_bar,
        c_bar=c_bar,
        pg_rho_bar=rho_bar,
        lambda_=lambda_,
    )
