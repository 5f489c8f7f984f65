"""`play` and `RandomAgent`, on an env whose copies have episodes of different lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ctrl.envs import RandomAgent, play


class Ladder(VectorEnv[Any, Any, Any]):
    """Vector env. Episodes of copy i have i + 1 steps; the reward of each step is the number of its episode, from 1."""

    num_envs = 3
    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    single_action_space = spaces.MultiDiscrete([2, 3])
    action_space = batch_space(single_action_space, 3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.step_number = np.ones(3), np.zeros(3)
        return self.step_number.copy(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        rewards = self.episode.copy()
        self.step_number += 1
        ended = self.step_number == np.arange(3) + 1
        self.episode += ended
        self.step_number[ended] = 0
        by_limit = ended & (np.arange(3) == 1)
        return self.step_number.copy(), rewards, ended & ~by_limit, by_limit, {}


class FirstSteps:
    """Agent that checks that `reset` marks the first steps, at which the observation is 0."""

    def __call__(self, observations: npt.NDArray[Any], reset: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
        np.testing.assert_array_equal(reset, observations == 0)
        return np.zeros((3, 2))


def test_play_counts_as_many_episodes_of_each_copy() -> None:
    expected = [[episode * (copy + 1) for copy in range(3)] for episode in (1, 2, 3, 4)]
    assert play(FirstSteps(), Ladder(), episodes=4).tolist() == expected


def test_random_agent_takes_each_action_and_repeats_with_its_seed() -> None:
    def actions(seed: int) -> npt.NDArray[Any]:
        agent = RandomAgent(Ladder(), seed)
        return np.array([agent(np.zeros(3), np.zeros(3, dtype=bool)) for _ in range(100)])

    drawn = actions(0)
    assert drawn.shape == (100, 3, 2)
    assert len(np.unique(drawn.reshape(-1, 2), axis=0)) == 6
    np.testing.assert_array_equal(drawn, actions(0))
    assert (drawn != actions(1)).any()
