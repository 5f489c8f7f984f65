"""V-trace: value targets and policy-gradient advantages from the steps of an older policy.

Espeholt et al. 2018, *IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures*,
https://arxiv.org/abs/1802.01561, section 4. Names are the paper's. A window has T steps x_0 … x_{T-1}, followed by x_T.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class VTrace(NamedTuple):
    """Result of `vtrace`, without a graph."""

    vs: Tensor
    """[N, T] value targets v_s."""
    pg_advantages: Tensor
    """[N, T] min(pg_rho_bar, rho_s) (r_s + discount_s v_{s+1} - V(x_s)), the weights of the policy gradient."""
    rhos: Tensor
    """[N, T] importance weights pi(a_s | x_s) / mu(a_s | x_s), not clipped."""


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

    If both policies are equal and all bars are at least 1, the targets are n-step returns for `lambda_` = 1, and the
    lambda-returns of GAE for any other `lambda_`.

    :param behaviour_log_prob: [N, T] log mu(a_t | x_t), of the policy that acted
    :param target_log_prob: [N, T] log pi(a_t | x_t), of the policy that learns
    :param rewards: [N, T] r_t
    :param discounts: [N, T] gamma, and 0 where step t ended its episode, since x_{t+1} then belongs to another one.
        Where the episode was truncated, r_t must include the discounted value of its terminal observation
    :param values: [N, T] V(x_t)
    :param bootstrap_value: [N] V(x_T)
    :param rho_bar: clip of rho_t; decides which policy's value the targets estimate, with `inf` the target policy's own
    :param c_bar: clip of c_t; decides how far the temporal differences of later steps reach back
    :param pg_rho_bar: clip of the importance weights in the policy gradient
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
