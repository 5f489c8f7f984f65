"""`ctrl/Recall-v0`: observations, rewards, and a cue that is the only information about the answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ctrl.envs import TASKS, RandomAgent, RecallEnv, RecallVectorEnv, play

TASK = TASKS["ctrl/Recall-v0"]


def watch(episodes: int, **arguments: Any) -> npt.NDArray[np.float32]:
    """Return the observations [episodes, length + 1, num_cues + 2] of one copy's first episodes."""
    envs = RecallVectorEnv(episodes, **arguments)
    seen = [envs.reset(seed=0)[0]]
    seen.extend(envs.step(np.zeros(episodes, dtype=np.int64))[0] for _ in range(arguments["length"]))
    return np.stack(seen, axis=1)


def test_cue_and_noise_are_uniform_and_independent() -> None:
    """So neither the noise symbols nor their number give information about the cue."""
    episodes, noise = 20_000, 0.3
    seen = watch(episodes, length=4, num_cues=3, noise=noise)
    cue, between = seen[:, 0, :3], seen[:, 1:4, :3].reshape(episodes, 9)
    assert np.abs(cue.mean(0) - 1 / 3).max() < 4.5 * (2 / 9 / episodes) ** 0.5
    joint = cue.T @ between / episodes  # [3, 9], each entry a probability of cue and symbol
    assert np.abs(joint - noise / 9).max() < 4.5 * (noise / 9 / episodes) ** 0.5
    assert np.abs(seen[:, 1:4, :3].sum(-1).mean(0) - noise).max() < 4.5 * (noise * (1 - noise) / episodes) ** 0.5


def test_episodes_of_a_copy_and_copies_of_an_episode_are_independent() -> None:
    """Neighbouring seeds and neighbouring episodes don't repeat each other's cues."""
    copies, episodes = 200, 100
    envs = RecallVectorEnv(copies, length=1, num_cues=4)
    cues = [envs.reset(seed=0)[0][:, :4].argmax(1)]
    for step in range(2 * episodes):
        observations = envs.step(np.zeros(copies, dtype=np.int64))[0]
        if step % 2 == 1:
            cues.append(observations[:, :4].argmax(1))
    table = np.stack(cues)
    for one, other in ((table[1:], table[:-1]), (table[:, 1:], table[:, :-1]), (table[1:, :-1], table[:-1, 1:])):
        assert abs((one == other).mean() - 0.25) < 4.5 * (3 / 16 / one.size) ** 0.5


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_noise_can_be_never_or_always(noise: float) -> None:
    assert (watch(30, length=9, noise=noise)[:, 1:9, :-2].sum(-1) == noise).all()


def test_last_observation_is_blank_where_it_ends() -> None:
    envs = RecallVectorEnv(4, length=8, noise=1.0, stagger=True)
    envs.reset(seed=0)
    finals = [envs.step(np.zeros(4, dtype=np.int64))[4].get("final_obs", []) for _ in range(20)]
    found = [final for row in finals for final in row if final is not None]
    assert len(found) > 4
    assert not np.any(found)


def test_play_counts_the_first_episodes_of_each_copy() -> None:
    envs = RecallVectorEnv(3, length=4, num_cues=2, stagger=True)
    returns = play(TASK.agents["memoryless"](envs), envs, episodes=6, seed=8)
    singles = [RecallEnv(length=4, num_cues=2) for _ in range(3)]
    cues = [[int(env.reset(seed=8 + i if n == 0 else None)[0][1]) for n in range(6)] for i, env in enumerate(singles)]
    np.testing.assert_array_equal(returns, 1 - np.array(cues).T)


def test_play_refuses_another_autoreset() -> None:
    from gymnasium.vector import SyncVectorEnv

    envs = SyncVectorEnv([RecallEnv] * 2)
    with pytest.raises(ValueError, match=r"SAME_STEP autoreset, got AutoresetMode\.NEXT_STEP"):
        play(RandomAgent(envs), envs, episodes=1)


def test_picture_grows_by_rows_and_frames_the_answer() -> None:
    shapes = []
    for num_cues in (2, 8, 9):
        env = RecallEnv(length=1, num_cues=num_cues, render_mode="rgb_array")
        env.reset(seed=0)
        shapes.append(env.render().shape)
    assert shapes == [(108, 72, 3), (108, 288, 3), (144, 288, 3)]
    for right, colour in ((True, (60, 220, 90)), (False, (235, 60, 60))):
        env = RecallEnv(length=1, num_cues=2, render_mode="rgb_array")
        cue = int(env.reset(seed=0)[0][:2].argmax())
        env.step(np.int64(cue))
        assert not (env.render() == colour).all(-1).any()
        env.step(np.int64(cue if right else 1 - cue))
        columns = np.flatnonzero((env.render() == colour).all(-1).any(0))
        assert columns[0] // 36 == (cue if right else 1 - cue)


def test_a_copy_that_was_reset_after_its_end_is_not_restarted_again() -> None:
    """With NEXT_STEP, both copies wait for their restart. The reset restarts copy 0, and the step restarts copy 1."""
    envs, actions = RecallVectorEnv(2, length=1, autoreset_mode="NextStep"), np.zeros(2, dtype=np.int64)
    envs.reset(seed=0)
    envs.step(actions)
    assert envs.step(actions)[2].all()
    envs.reset(options={"reset_mask": np.array([True, False])})
    assert envs.step(actions)[0][:, -2:].tolist() == [[0, 1], [1, 0]]  # the query, and the cue
