"""`ctrl/EndlessRecall-v0`: rounds of Recall, each with its own cue, until the first mistake or the last round."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ctrl.envs import TASKS
from ctrl.envs.tasks.endless_recall import EndlessRecallEnv, EndlessRecallVectorEnv
from ctrl.envs.tasks.symbols import LatestCue

TASK = TASKS["ctrl/EndlessRecall-v0"]
BLANK, QUERY = [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]  # of 3 cues
GO_ON = (False, False, {})


def cue_seen(cue: int) -> list[float]:
    return [*np.eye(3)[cue], 1, 0]


def plain(step: Any) -> Any:
    return (step[0].tolist(), *step[1:])


def two_rounds() -> tuple[EndlessRecallEnv, int, int]:
    """Return an env at its second query, and its two cues, which differ."""
    env = EndlessRecallEnv(length=2, num_cues=3, noise=0.0, max_rounds=2)
    observation, info = env.reset(seed=1)
    first = int(observation[:3].argmax())
    assert (observation.tolist(), info) == (cue_seen(first), {})
    assert plain(env.step(np.int64(first))) == (BLANK, 0.0, *GO_ON)
    assert plain(env.step(np.int64(first))) == (QUERY, 0.0, *GO_ON)
    step = env.step(np.int64(first))
    second = int(step[0][:3].argmax())
    assert plain(step) == (cue_seen(second), 1.0, *GO_ON)
    assert plain(env.step(np.int64(second))) == (BLANK, 0.0, *GO_ON)
    assert plain(env.step(np.int64(second))) == (QUERY, 0.0, *GO_ON)
    assert first != second
    return env, first, second


def watch(copies: int, **arguments: Any) -> npt.NDArray[np.float32]:
    """Return the perfect agent's observations in whole episodes, [copies, steps, num_cues + 2]."""
    envs = EndlessRecallVectorEnv(copies, **arguments)
    agent, seen, running = LatestCue(envs), [envs.reset(seed=0)[0]], np.zeros(copies, dtype=np.bool_)
    for _ in range(envs.rules.max_episode_steps - 1):
        seen.append(envs.step(agent(seen[-1], running))[0])
    return np.stack(seen, axis=1)


def test_the_last_right_answer_cuts_the_episode_off() -> None:
    env, _, second = two_rounds()
    assert plain(env.step(np.int64(second))) == (BLANK, 1.0, False, True, {"is_success": True})


def test_the_cue_of_the_round_before_is_a_mistake_and_the_end() -> None:
    env, first, _ = two_rounds()
    assert plain(env.step(np.int64(first))) == (BLANK, 0.0, True, False, {"is_success": False})


@pytest.mark.parametrize("answer_at", [0, 1, 2, 3])
def test_only_the_action_at_the_query_counts(answer_at: int) -> None:
    env = EndlessRecallEnv(length=3, num_cues=4)
    cue = int(env.reset(seed=5)[0][:4].argmax())
    steps = [env.step(np.int64(cue if step == answer_at else (cue + 1) % 4)) for step in range(4)]
    assert [step[1] for step in steps] == [0, 0, 0, float(answer_at == 3)]
    assert [step[2] for step in steps] == [False, False, False, answer_at != 3]
    assert not any(step[3] for step in steps)


def test_flags_mark_the_ends_of_each_round() -> None:
    seen = watch(50, length=4, num_cues=3, noise=1.0, max_rounds=3)
    in_round = np.arange(15) % 5
    assert (seen[:, :, -2] == (in_round == 0)).all()
    assert (seen[:, :, -1] == (in_round == 4)).all()
    assert (seen[:, :, :3].sum(-1) == (in_round < 4)).all()


@pytest.mark.parametrize("length", [1, 6])
def test_memory_needed_is_from_each_cue_to_its_query(length: int) -> None:
    seen = watch(1, length=length, max_rounds=4)[0]
    distances = np.flatnonzero(seen[:, -1]) - np.flatnonzero(seen[:, -2])
    assert distances.tolist() == [TASK.memory_steps(length=length)] * 4


def test_perfect_agent_takes_the_most_steps() -> None:
    envs = EndlessRecallVectorEnv(20, length=3, max_rounds=5)
    agent, observations, none = LatestCue(envs), envs.reset(seed=0)[0], np.zeros(20, dtype=np.bool_)
    for step in range(1, envs.rules.max_episode_steps + 1):
        observations, _, terminated, truncated, _ = envs.step(agent(observations, none))
        assert not terminated.any()
        assert (truncated == (step == 20)).all()


def test_cues_and_noise_of_all_rounds_are_uniform_and_independent() -> None:
    """So neither noise nor earlier rounds give information about a cue."""
    episodes, noise = 20_000, 0.3
    seen = watch(episodes, length=2, num_cues=3, noise=noise, max_rounds=2)[:, :, :3]
    first, noise_1, _, second, noise_2, _ = seen.transpose(1, 0, 2)
    for one, other, rate in (
        (first, second, 1.0),
        (first, noise_1, noise),
        (second, noise_1, noise),
        (second, noise_2, noise),
    ):
        joint = one.T @ other / episodes  # [3, 3], each entry a probability of two symbols
        assert np.abs(joint - rate / 9).max() < 4.5 * (rate / 9 / episodes) ** 0.5


def test_stagger_shortens_only_the_first_round() -> None:
    envs = EndlessRecallVectorEnv(4, length=8, max_rounds=3, stagger=True)
    agent, observations, none = LatestCue(envs), envs.reset(seed=0)[0], np.zeros(4, dtype=np.bool_)
    queries = []
    for _ in range(27):
        queries.append(observations[:, -1] > 0)
        observations, rewards, terminated, _, _ = envs.step(agent(observations, none))
        assert not terminated.any()
        assert (rewards == queries[-1]).all()
    assert [np.flatnonzero(np.array(queries)[:, copy]).tolist() for copy in range(4)] == [
        [8, 17, 26],
        [6, 15, 24],
        [4, 13, 22],
        [2, 11, 20],
    ]


def test_scores_by_hand() -> None:
    scores = TASK.scores(num_cues=4, max_rounds=2)
    assert scores.random == scores.memoryless == 1 / 4 + 1 / 16
    assert scores.perfect == 2
    assert TASK.defaults == {"length": 32, "num_cues": 4, "noise": 0.5, "max_rounds": 20}


def test_text_tells_the_story() -> None:
    env = EndlessRecallEnv(length=1, num_cues=2, max_rounds=3, render_mode="ansi")
    first = int(env.reset(seed=0)[0][:2].argmax())
    lines = [env.render()]
    env.step(np.int64(0))
    lines.append(env.render())
    second = int(env.step(np.int64(first))[0][:2].argmax())
    lines.append(env.render())
    env.step(np.int64(0))
    env.step(np.int64(1 - second))
    lines.append(env.render())
    assert lines == [
        f"step 0/6  cue {first}  (cue {first})",
        f"step 1/6  answer now  (cue {first})",
        f"step 2/6  answered {first}, right; cue {second}  (cue {second})",
        f"step 4/6  answered {1 - second}, wrong  (cue {second})",
    ]


def test_picture_frames_the_answer_beside_the_next_cue() -> None:
    env = EndlessRecallEnv(length=1, num_cues=3, render_mode="rgb_array")
    first = int(env.reset(seed=1)[0][:3].argmax())
    env.step(np.int64(0))
    second = int(env.step(np.int64(first))[0][:3].argmax())
    picture = env.render()
    assert picture.shape == (108, 108, 3)
    assert first != second
    for tile, colour in ((first, (60, 220, 90)), (second, (255, 255, 255))):
        top_edge = picture[36, tile * 36 : (tile + 1) * 36]
        assert (top_edge == colour).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length must be an integer of at least 1, got 0"),
        ({"num_cues": 1}, "num_cues must be an integer of at least 2, got 1"),
        ({"noise": 1.5}, r"noise must be a number from 0 to 1, got 1\.5"),
        ({"max_rounds": 0}, "max_rounds must be an integer of at least 1, got 0"),
        ({"max_rounds": 2.0}, r"max_rounds must be an integer of at least 1, got 2\.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    for make in (EndlessRecallEnv, EndlessRecallVectorEnv):
        with pytest.raises(ValueError, match=message):
            make(**arguments)
