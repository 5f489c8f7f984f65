"""Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438)."""

from __future__ import annotations

import numpy as np


def gae(
    *,
    rewards: np.ndarray,
    values: np.ndarray,
    last_values: np.ndarray,
    ends: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """Return the advantages [T, B] of T steps in B envs.

        delta_t = r_t + gamma V(x_{t+1}) - V(x_t)
        A_t     = delta_t + gamma gae_lambda A_{t+1}

    Where step t ended its episode, V(x_{t+1}) and A_{t+1} count as 0.

    :param rewards: [T, B] r_t. Where the episode was truncated, r_t must include the discounted value of its terminal
        observation
    :param values: [T, B] V(x_t)
    :param last_values: [B] V(x_T)
    :param ends: [T, B] bool, true where x_{t+1} belongs to another episode
    """
    going_on = (~ends).astype(values.dtype)
    next_values = np.concatenate([values[1:], last_values[None]])
    deltas = rewards + gamma * next_values * going_on - values
    decays = gamma * gae_lambda * going_on
    advantages: np.ndarray = np.empty_like(deltas)
    advantage = np.zeros_like(last_values)
    for t in reversed(range(len(deltas))):
        advantage = deltas[t] + decays[t] * advantage
        advantages[t] = advantage
    return advantages
