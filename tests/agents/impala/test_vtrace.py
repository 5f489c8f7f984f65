"""V-trace compared with the formulas of its paper, written out as sums and products, and with its special cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ctrl.agents.impala.vtrace import VTrace, vtrace

N, T = 3, 7


def random_window(**changes: Any) -> dict[str, Any]:
    """Return arguments in float64. Env 1 starts another episode at step 3, env 2 right after the window."""
    draw = torch.Generator().manual_seed(0)
    window = {
        name: torch.randn(N, T, generator=draw, dtype=torch.float64)
        for name in ("behaviour_log_prob", "target_log_prob", "rewards", "values")
    }
    window["discounts"] = torch.full((N, T), 0.9, dtype=torch.float64)
    window["discounts"][1, 2] = window["discounts"][2, T - 1] = 0.0
    window["bootstrap_value"] = torch.randn(N, generator=draw, dtype=torch.float64)
    return {**window, **changes}


def on_policy(**changes: Any) -> dict[str, Any]:
    window = random_window(**changes)
    return {**window, "target_log_prob": window["behaviour_log_prob"]}


def by_the_formula(
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
) -> tuple[list[list[float]], list[list[float]]]:
    """Compute equation 1 as printed, env by env: v_s = V(x_s) + sum_t gamma^{t-s} (prod_{i=s}^{t-1} c_i) delta_t."""
    all_vs, all_advantages = [], []
    for n in range(N):
        v = [*values[n].tolist(), float(bootstrap_value[n])]
        ratio = [math.exp(float(target_log_prob[n, t]) - float(behaviour_log_prob[n, t])) for t in range(T)]
        gamma, r = discounts[n].tolist(), rewards[n].tolist()
        delta = [min(rho_bar, ratio[t]) * (r[t] + gamma[t] * v[t + 1] - v[t]) for t in range(T)]
        vs = []
        for s in range(T):
            total = v[s]
            for t in range(s, T):
                weight = 1.0
                for i in range(s, t):
                    weight *= gamma[i] * lambda_ * min(c_bar, ratio[i])
                total += weight * delta[t]
            vs.append(total)
        vs.append(v[T])
        all_vs.append(vs[:T])
        all_advantages.append(
            [min(pg_rho_bar, ratio[s]) * (r[s] + gamma[s] * vs[s + 1] - v[s]) for s in range(T)],
        )
    return all_vs, all_advantages


def assert_close(found: Tensor, expected: Any) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "bars",
    [
        {},
        {"rho_bar": 0.5, "c_bar": 0.3, "pg_rho_bar": 0.7},
        {"rho_bar": 3.0, "c_bar": 1.5, "pg_rho_bar": 2.0, "lambda_": 0.8},
        {"rho_bar": math.inf, "c_bar": math.inf, "pg_rho_bar": math.inf},
        {"lambda_": 0.0},
    ],
    ids=["ones", "below 1", "above 1", "no clipping", "one step"],
)
def test_it_is_the_formula_of_the_paper(bars: dict[str, float]) -> None:
    window = random_window(**bars)
    found = vtrace(**window)
    vs, advantages = by_the_formula(**window)
    assert_close(found.vs, vs)
    assert_close(found.pg_advantages, advantages)


def test_on_policy_targets_are_n_step_returns() -> None:
    window = on_policy()
    expected = torch.empty(N, T, dtype=torch.float64)
    following = window["bootstrap_value"]
    for t in reversed(range(T)):
        following = window["rewards"][:, t] + window["discounts"][:, t] * following
        expected[:, t] = following
    assert_close(vtrace(**window).vs, expected)


def test_on_policy_targets_are_the_lambda_returns_of_gae() -> None:
    window = on_policy(lambda_=0.7)
    values = torch.cat([window["values"], window["bootstrap_value"][:, None]], dim=1)
    advantage = torch.zeros(N, dtype=torch.float64)
    expected = torch.empty(N, T, dtype=torch.float64)
    for t in reversed(range(T)):
        delta = window["rewards"][:, t] + window["discounts"][:, t] * values[:, t + 1] - values[:, t]
        advantage = delta + window["discounts"][:, t] * 0.7 * advantage
        expected[:, t] = values[:, t] + advantage
    assert_close(vtrace(**window).vs, expected)


def test_importance_weights_without_clipping_correct_a_bandit() -> None:
    """One step, two actions: the mean of the target over the actions of mu is the expected reward of pi."""
    mu, pi, earned = torch.tensor([0.8, 0.2]), torch.tensor([0.1, 0.9]), torch.tensor([1.0, 5.0])
    column = {"values": torch.zeros(2, 1), "discounts": torch.zeros(2, 1), "bootstrap_value": torch.full((2,), 7.0)}
    found = vtrace(
        behaviour_log_prob=mu.log()[:, None],
        target_log_prob=pi.log()[:, None],
        rewards=earned[:, None],
        rho_bar=math.inf,
        **column,
    )
    assert float((mu * found.vs[:, 0]).sum()) == pytest.approx(float((pi * earned).sum()))


def test_golden_numbers() -> None:
    """Two steps by hand: ratios 2 and 1/4, discount 1/2, V = 1 and 2, and V = 4 after the window.

    delta_1 = 1/4 (3 + 2 - 2) = 0.75, v_1 = 2.75; delta_0 = 1 (1 + 1 - 1) = 1, v_0 = 1 + 1 + 1/2 · 1 · 0.75 = 2.375;
    advantages: 1 (1 + 2.75/2 - 1) = 1.375 and 1/4 (3 + 4/2 - 2) = 0.75.
    """
    found = vtrace(
        behaviour_log_prob=torch.zeros(1, 2),
        target_log_prob=torch.tensor([[2.0, 0.25]]).log(),
        rewards=torch.tensor([[1.0, 3.0]]),
        discounts=torch.full((1, 2), 0.5),
        values=torch.tensor([[1.0, 2.0]]),
        bootstrap_value=torch.tensor([4.0]),
    )
    assert found.vs[0].tolist() == pytest.approx([2.375, 2.75])
    assert found.pg_advantages[0].tolist() == pytest.approx([1.375, 0.75])
    assert found.rhos[0].tolist() == pytest.approx([2.0, 0.25])


def test_nothing_crosses_the_end_of_an_episode() -> None:
    window = random_window()
    before = vtrace(**window)
    for name in ("rewards", "values", "behaviour_log_prob"):
        window[name] = window[name].clone()
        window[name][1, 3:] += 5.0
    window["bootstrap_value"] = window["bootstrap_value"] + 3.0
    after = vtrace(**window)
    assert torch.equal(before.vs[1, :3], after.vs[1, :3])
    assert torch.equal(before.pg_advantages[1, :3], after.pg_advantages[1, :3])
    assert not torch.isclose(before.vs[1, 3:], after.vs[1, 3:]).any()
    assert torch.equal(before.vs[2], after.vs[2]), "its episode ended with the window"
    assert not torch.isclose(before.vs[0, -1], after.vs[0, -1])


def test_results_carry_no_graph() -> None:
    window = random_window()
    window["values"].requires_grad_()
    window["target_log_prob"].requires_grad_()
    found: VTrace = vtrace(**window)
    assert not any(part.requires_grad for part in found)
