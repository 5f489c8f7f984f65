"""V-trace: value targets and advantages from what an older policy did.

Espeholt et al. 2018, *IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures*,
https://arxiv.org/abs/1802.01561, section 4. Names are the paper's. A window has T steps x_0 … x_{T-1}, and x_T is what
follows it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class VTrace(NamedTuple):
    """What `vtrace` returns, without a graph."""

    vs: Tensor
    """[N, T] the targets v_s of the values."""
    pg_advantages: Tensor
    """[N, T] min(pg_rho_bar, rho_s) (r_s + discount_s v_{s+1} - V(x_s)), the weights of the policy's gradient."""
    rhos: Tensor
    """[N, T] pi(a_s | x_s) / mu(a_s | x_s), not clipped."""


@torch.no_grad()
def vtrace(
    *,
    behaviour_log_prob: Tensor,
    target_log_prob: Tensor,
    rewards: Tensor,
    discounts: Tensor,
    values: Tensor,
    bootstrap_value: Tensor,
    rho_bar: float = 1.0,
    c_bar: float = 1.0,
    pg_rho_bar: float = 1.0,
    lambda_: float = 1.0,
) -> VTrace:
    """Return V-trace targets (equation 1, by the recursion of remark 1) and policy-gradient advantages (section 4.2).

        rho_t   = min(rho_bar, pi(a_t | x_t) / mu(a_t | x_t))
        c_t     = lambda_ min(c_bar, pi(a_t | x_t) / mu(a_t | x_t))
        delta_t = rho_t (r_t + discount_t V(x_{t+1}) - V(x_t))
        v_s     = V(x_s) + delta_s + discount_s c_s (v_{s+1} - V(x_{s+1}))

    Where policies agree and all bars are at least 1, `lambda_` = 1 gives n-step returns, and any other the
    lambda-returns of GAE.

    :param behaviour_log_prob: [N, T] log mu(a_t | x_t), of the policy that acted
    :param target_log_prob: [N, T] log pi(a_t | x_t), of the policy that learns
    :param rewards: [N, T] r_t
    :param discounts: [N, T] gamma, and 0 where step t ended its episode: x_{t+1} is then of another one. Where a limit
        cut the episode, its reward has to hold what its last observation is worth
    :param values: [N, T] V(x_t)
    :param bootstrap_value: [N] V(x_T)
    :param rho_bar: decides which policy's value the targets aim at; `inf` for the target policy's own
    :param c_bar: decides how far what later steps bring reaches back
    :param pg_rho_bar: clips the weights of the policy's gradient
    :param lambda_: trade-off between bias and variance, from 0 to 1
    """
    rhos = (target_log_prob - behaviour_log_prob).exp()
    discounted_cs = discounts * lambda_ * rhos.clamp(max=c_bar)
    values_next = torch.cat([values[:, 1:], bootstrap_value[:, None]], dim=1)
    deltas = rhos.clamp(max=rho_bar) * (rewards + discounts * values_next - values)
    corrections = _sums_backwards(deltas, discounted_cs)
    vs = values + corrections
    vs_next = torch.cat([vs[:, 1:], bootstrap_value[:, None]], dim=1)
    pg_advantages = rhos.clamp(max=pg_rho_bar) * (rewards + discounts * vs_next - values)
    return VTrace(vs, pg_advantages, rhos)


def _sums_backwards(deltas: Tensor, factors: Tensor) -> Tensor:
    """Return s_t = deltas_t + factors_t s_{t+1} [N, T], with s_T = 0."""
    total = torch.zeros_like(deltas[:, 0])
    sums = []
    for delta, factor in zip(reversed(deltas.unbind(dim=1)), reversed(factors.unbind(dim=1)), strict=True):
        total = torch.addcmul(delta, factor, total)
        sums.append(total)
    return torch.stack(sums[::-1], dim=1)
