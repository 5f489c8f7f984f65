"""bsuite's memory tasks: perfect play, and the number of steps from the bits to the query."""

from __future__ import annotations

import numpy as np
import pytest

from ctrl.envs.external import EXTERNAL_TASKS, make


@pytest.mark.parametrize("env_id", [task.id for task in EXTERNAL_TASKS.values() if task.family.name == "bsuite"])
def test_perfect_play_remembers_the_bits_for_as_long_as_stated(env_id: str) -> None:
    task, env = EXTERNAL_TASKS[env_id], make(env_id)
    for seed in range(5):
        history, ended, reward = [env.reset(seed=seed)[0]], False, 0.0
        while not ended:
            bit = history[0][2 + int(history[-1][1])]
            observation, reward, ended, _, _ = env.step(int(bit > 0))
            history.append(observation)
        decisions = history[:-1]
        last_seen = max(step for step, observation in enumerate(decisions) if observation[2:].any())
        assert reward == task.best
        assert len(decisions) == task.length
        assert len(decisions) - 1 - last_seen == task.memory_steps


def test_arguments_replace_the_stated_ones() -> None:
    assert make("bsuite/memory_size-v0").observation_space.shape == (42,)
    env = make("bsuite/memory_len-v0", memory_length=3)
    assert env.observation_space.shape == (3,)
    env.reset(seed=0)
    assert [env.step(0)[2] for _ in range(4)] == [False, False, False, True]
    assert env.observation_space.contains(np.zeros(3, np.float32))
