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


def test_an_episode_step_by_step() -> None:
    env = RecallEnv(length=3, num_cues=4, noise=0.0)
    observation, info = env.reset(seed=2)
    cue = int(observation[:4].argmax())
    assert observation.tolist() == [*np.eye(4)[cue], 1, 0]
    assert info == {}
    for _ in range(2):
        assert _plain(env.step(np.int64(cue))) == ([0, 0, 0, 0, 0, 0], 0.0, False, False, {})
    assert _plain(env.step(np.int64(cue))) == ([0, 0, 0, 0, 0, 1], 0.0, False, False, {})
    assert _plain(env.step(np.int64(cue))) == ([0, 0, 0, 0, 0, 0], 1.0, True, False, {"is_success": True})


def _plain(step: Any) -> Any:
    return (step[0].tolist(), *step[1:])


@pytest.mark.parametrize("answer_at", [0, 1, 2, 3])
def test_only_the_action_at_the_query_counts(answer_at: int) -> None:
    env = RecallEnv(length=3, num_cues=4)
    cue = int(env.reset(seed=5)[0][:4].argmax())
    steps = [env.step(np.int64(cue if step == answer_at else (cue + 1) % 4)) for step in range(4)]
    assert [step[2] for step in steps] == [False, False, False, True]
    assert [step[1] for step in steps] == [0, 0, 0, float(answer_at == 3)]
    assert steps[-1][4] == {"is_success": answer_at == 3}


def test_defaults_and_shortest_episode() -> None:
    assert TASK.defaults == {"length": 64, "num_cues": 4, "noise": 0.5}
    env = RecallEnv(length=1)
    assert env.reset(seed=0)[0][-2:].tolist() == [1, 0]
    assert env.step(np.int64(0))[0][-2:].tolist() == [0, 1]
    assert env.step(np.int64(0))[2]


def test_flags_mark_the_first_and_the_last_step() -> None:
    seen = watch(50, length=7, num_cues=3, noise=0.5)
    steps = np.arange(8)
    assert (seen[:, :, -2] == (steps == 0)).all()
    assert (seen[:, :, -1] == (steps == 7)).all()
    assert not seen[:, 7, :3].any()
    assert (seen[:, 0, :3].sum(-1) == 1).all()


def test_memory_needed_is_from_the_cue_to_the_query() -> None:
    for length in (1, 6):
        flags = watch(1, length=length)[0, :, -2:]
        assert flags[:, 1].argmax() - flags[:, 0].argmax() == TASK.memory_steps(length=length)


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


def test_stagger_shortens_only_the_first_episodes() -> None:
    envs = RecallVectorEnv(4, length=8, stagger=True)
    envs.reset(seed=0)
    ends = np.array([envs.step(np.zeros(4, dtype=np.int64))[2] for _ in range(27)])
    assert [np.flatnonzero(ends[:, copy]).tolist() for copy in range(4)] == [
        [8, 17, 26],
        [6, 15, 24],
        [4, 13, 22],
        [2, 11, 20],
    ]
    envs.reset(seed=1)
    assert [envs.step(np.zeros(4, dtype=np.int64))[2].argmax() for _ in range(3)][-1] == 3


def test_last_observation_is_blank_where_it_ends() -> None:
    envs = RecallVectorEnv(4, length=8, noise=1.0, stagger=True)
    envs.reset(seed=0)
    finals = [envs.step(np.zeros(4, dtype=np.int64))[4].get("final_obs", []) for _ in range(20)]
    found = [final for row in finals for final in row if final is not None]
    assert len(found) > 4
    assert not np.any(found)


def test_scores_follow_the_number_of_cues() -> None:
    assert TASK.scores(num_cues=5).random == 0.2
    assert TASK.scores().memoryless == 0.25
    assert TASK.scores().perfect == 1.0


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


def test_text_tells_the_story() -> None:
    env = RecallEnv(length=2, num_cues=2, noise=1.0, render_mode="ansi")
    cue = int(env.reset(seed=0)[0][:2].argmax())
    lines = [env.render()]
    noise = int(env.step(np.int64(0))[0][:2].argmax())
    lines.append(env.render())
    env.step(np.int64(0))
    lines.append(env.render())
    env.step(np.int64(1 - cue))
    lines.append(env.render())
    assert lines == [
        f"step 0/2  cue {cue}  (cue {cue})",
        f"step 1/2  noise {noise}  (cue {cue})",
        f"step 2/2  answer now  (cue {cue})",
        f"step 2/2  answered {1 - cue}, wrong  (cue {cue})",
    ]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length must be an integer of at least 1, got 0"),
        ({"length": 3.0}, r"length must be an integer of at least 1, got 3\.0"),
        ({"length": True}, "length must be an integer of at least 1, got True"),
        ({"num_cues": 1}, "num_cues must be an integer of at least 2, got 1"),
        ({"noise": -0.1}, r"noise must be a number from 0 to 1, got -0\.1"),
        ({"noise": 1.5}, r"noise must be a number from 0 to 1, got 1\.5"),
        ({"noise": float("nan")}, "noise must be a number from 0 to 1, got nan"),
        ({"noise": "much"}, "noise must be a number from 0 to 1, got 'much'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    for make in (RecallEnv, RecallVectorEnv):
        with pytest.raises(ValueError, match=message):
            make(**arguments)


def test_a_copy_that_was_reset_after_its_end_is_not_restarted_again() -> None:
    """With NEXT_STEP, both copies wait for their restart. The reset restarts copy 0, and the step restarts copy 1."""
    envs, actions = RecallVectorEnv(2, length=1, autoreset_mode="NextStep"), np.zeros(2, dtype=np.int64)
    envs.reset(seed=0)
    envs.step(actions)
    assert envs.step(actions)[2].all()
    envs.reset(options={"reset_mask": np.array([True, False])})
    assert envs.step(actions)[0][:, -2:].tolist() == [[0, 1], [1, 0]]  # the query, and the cue
