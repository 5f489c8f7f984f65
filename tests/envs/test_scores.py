"""Scale of the scores, and the expected number of right answers in a row, by hand and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from ctrl.envs.scores import Scores, until_first_mistake


def test_normalised_has_random_at_0_and_perfect_at_1() -> None:
    scores = Scores(random=-2.0, memoryless=1.0, perfect=8.0)
    assert [scores.normalised(score) for score in (-2.0, 8.0, 3.0, 1.0)] == [0, 1, 0.5, pytest.approx(0.3)]
    assert scores.normalised(-7.0) == -0.5


def test_until_first_mistake_by_hand() -> None:
    assert until_first_mistake(0.25, 1) == 0.25
    assert until_first_mistake(0.5, 3) == 0.5 + 0.25 + 0.125
    assert until_first_mistake(0.2, 2) == pytest.approx(0.2 + 0.04)
    assert until_first_mistake(0.5, 10_000) == 1.0


@pytest.mark.parametrize(("chance", "answers"), [(0.3, 4), (0.9, 7)])
def test_until_first_mistake_by_simulation(chance: float, answers: int) -> None:
    right = np.random.default_rng(0).random((50_000, answers)) < chance
    runs = np.where(right.all(1), answers, right.argmin(1))
    assert abs(runs.mean() - until_first_mistake(chance, answers)) < 4.5 * runs.std() / len(runs) ** 0.5
