"""Advantages by hand, and against the sum of discounted errors that defines them."""

from __future__ import annotations

import numpy as np
import pytest

from ctrl.agents.gae import gae

T, B = 5, 3


def random_steps(seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {
        "rewards": draw.normal(size=(T, B)),
        "values": draw.normal(size=(T, B)),
        "last_values": draw.normal(size=B),
        "ends": draw.random((T, B)) < 0.3,
    }


def test_advantages_by_hand() -> None:
    """In env 0 no episode ends, in env 1 one ends with the first step, in env 2 one ends with the last."""
    found = gae(
        rewards=np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]),
        values=np.array([[4.0, 4.0, 4.0], [8.0, 8.0, 8.0]]),
        last_values=np.array([16.0, 16.0, 16.0]),
        ends=np.array([[False, True, False], [False, False, True]]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    last, ended = 2 + 0.5 * 16 - 8, 2 - 8
    assert found.tolist() == [
        [1 + 0.5 * 8 - 4 + 0.25 * last, 1 - 4, 1 + 0.5 * 8 - 4 + 0.25 * ended],
        [last, last, ended],
    ]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.9, 0.8), (0.9, 1.0), (0.9, 0.0), (1.0, 1.0), (0.0, 0.8)])
def test_advantages_are_discounted_sums_of_errors(gamma: float, gae_lambda: float) -> None:
    steps = random_steps()
    found = gae(**steps, gamma=gamma, gae_lambda=gae_lambda)
    for env in range(B):
        rewards, ends = steps["rewards"][:, env], steps["ends"][:, env]
        values = [*steps["values"][:, env], steps["last_values"][env]]
        for t in range(T):
            expected, factor = 0.0, 1.0
            for k in range(t, T):
                expected += factor * (rewards[k] + gamma * values[k + 1] * (not ends[k]) - values[k])
                factor *= gamma * gae_lambda
                if ends[k]:
                    break
            assert found[t, env] == pytest.approx(expected)


def test_with_lambda_1_it_is_the_return_minus_the_value() -> None:
    steps = {**random_steps(), "ends": np.zeros((T, B), dtype=bool)}
    discounts = 0.9 ** np.arange(T + 1)[:, None]
    returns = (discounts[:T] * steps["rewards"]).sum(axis=0) + discounts[T] * steps["last_values"]
    np.testing.assert_allclose(gae(**steps, gamma=0.9, gae_lambda=1.0)[0], returns - steps["values"][0])
