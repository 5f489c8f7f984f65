"""`ctrl/RareCue-v0`: Recall with Zipf frequencies, and the groups for which success is reported."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ctrl.envs import TASKS
from ctrl.envs.randomness import seed_keys
from ctrl.envs.tasks.rare_cue import RareCueRules, RareCueVectorEnv

TASK = TASKS["ctrl/RareCue-v0"]


def watch(episodes: int, **arguments: Any) -> npt.NDArray[np.float32]:
    """Return the observations [episodes, length + 1, num_cues + 2] of one episode of each copy."""
    envs = RareCueVectorEnv(episodes, **arguments)
    seen = [envs.reset(seed=0)[0]]
    seen.extend(envs.step(np.zeros(episodes, dtype=np.int64))[0] for _ in range(arguments["length"]))
    return np.stack(seen, axis=1)


@pytest.mark.parametrize(
    ("exponent", "expected"),
    [(0, [1 / 3, 1 / 3, 1 / 3]), (1, [6 / 11, 3 / 11, 2 / 11]), (2.0, [36 / 49, 9 / 49, 4 / 49])],
)
def test_cues_and_noise_follow_zipf_and_are_independent(exponent: float, expected: list[float]) -> None:
    episodes, noise = 20_000, 0.4
    seen = watch(episodes, length=2, num_cues=3, noise=noise, exponent=exponent)
    np.testing.assert_allclose(RareCueRules(num_cues=3, exponent=exponent).probabilities, expected)
    cue, between = seen[:, 0, :3], seen[:, 1, :3]
    variance = np.array(expected) * (1 - np.array(expected))
    assert (np.abs(cue.mean(0) - expected) < 4.5 * (variance / episodes) ** 0.5).all()
    joint = noise * np.outer(expected, expected)
    assert (np.abs(cue.T @ between / episodes - joint) < 4.5 * (joint / episodes) ** 0.5).all()


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 3.0])
def test_every_cue_is_drawn_with_its_probability(exponent: float) -> None:
    """The sum of squared deviations is chi-squared with num_cues - 1 degrees of freedom, so rare cues count, too."""
    rules, count = RareCueRules(num_cues=12, exponent=exponent), 200_000
    drawn = np.bincount(rules.draw(seed_keys(0, count)), minlength=12)
    expected = rules.probabilities * count
    statistic = ((drawn - expected) ** 2 / expected).sum()
    assert len(drawn) == 12
    assert statistic < 11 + 4.5 * (2 * 11) ** 0.5


def test_groups_are_octaves_of_ranks() -> None:
    for num_cues, names in (
        (2, ("rank 1", "rank 2")),
        (3, ("rank 1", "ranks 2–3")),
        (8, ("rank 1", "ranks 2–3", "ranks 4–7", "rank 8")),
        (11, ("rank 1", "ranks 2–3", "ranks 4–7", "ranks 8–11")),
    ):
        assert RareCueRules(num_cues=num_cues).group_names == names
    rules = RareCueRules(num_cues=17)
    state = rules.begin(seed_keys(0, 17), np.zeros(17))._replace(cue=np.arange(17))
    assert rules.group(state).tolist() == [0] + 2 * [1] + 4 * [2] + 8 * [3] + 2 * [4]
    assert len(rules.group_names) == 5


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_last_info_tells_the_group_of_the_cue_just_asked_for(mode: str) -> None:
    """It is not the group of the next episode's cue, which the state may already hold."""
    copies = 50
    envs = RareCueVectorEnv(copies, length=1, num_cues=7, stagger=True, autoreset_mode=mode)
    cues = envs.reset(seed=0)[0][:, :7].argmax(1)
    assert envs.step(cues)[4] == {}
    infos = envs.step(cues)[4]
    facts = infos["final_info"] if mode == "SameStep" else infos
    assert facts["group"].tolist() == np.array([0, 1, 1, 2, 2, 2, 2])[cues].tolist()
    assert facts["_group"].all()
    assert facts["is_success"].all()
    assert set(facts["group"].tolist()) == {0, 1, 2}


def test_the_best_guess_is_the_first_cue() -> None:
    shares = watch(3000, length=1, num_cues=5)[:, 0, :5].mean(0)
    assert shares.argmax() == 0
