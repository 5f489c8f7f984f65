"""`ctrl/EndlessCopy-v0`: a sequence that grows by one symbol a round, and the best score without memory."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from ctrl.envs import TASKS
from ctrl.envs.tasks.endless_copy import EndlessCopyEnv, EndlessCopyVectorEnv
from ctrl.envs.tasks.symbols import AllCues

TASK = TASKS["ctrl/EndlessCopy-v0"]
BLANK, QUERY = [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]  # of 3 symbols
GO_ON = (False, False, {})


def cue_seen(symbol: int) -> list[float]:
    return [*np.eye(3)[symbol], 1, 0]


def plain(step: Any) -> Any:
    return (step[0].tolist(), *step[1:])


def second_round() -> tuple[EndlessCopyEnv, int, int]:
    """Return an env that asks for two symbols, and the symbols, which differ."""
    env = EndlessCopyEnv(delay=1, num_symbols=3, max_length=2)
    observation, info = env.reset(seed=0)
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


def test_the_last_answer_of_the_last_round_cuts_the_episode_off() -> None:
    env, first, second = second_round()
    assert plain(env.step(np.int64(first))) == (QUERY, 1.0, *GO_ON)
    assert plain(env.step(np.int64(second))) == (BLANK, 1.0, False, True, {"is_success": True})


def test_a_mistake_ends_the_episode() -> None:
    end = (BLANK, 0.0, True, False, {"is_success": False})
    env, _, second = second_round()
    assert plain(env.step(np.int64(second))) == end  # the newest symbol is not the first that is asked for
    env, first, _ = second_round()
    env.step(np.int64(first))
    assert plain(env.step(np.int64(first))) == end


def test_flags_distances_and_length_of_the_perfect_episode() -> None:
    """Round r shows one cue, `delay` blanks and r queries. The first cue must be remembered until the last round."""
    arguments = {"delay": 2, "num_symbols": 3, "max_length": 3}
    envs = EndlessCopyVectorEnv(20, **arguments)
    agent, observations, reset = AllCues(envs), envs.reset(seed=0)[0], np.ones(20, dtype=np.bool_)
    seen, rewards, ends = [], [], []
    for _ in range(2 * TASK.rules(**arguments).max_episode_steps):
        seen.append(observations)
        observations, reward, terminated, truncated, _ = envs.step(agent(observations, reset))
        reset = truncated
        rewards.append(reward)
        ends.append(truncated)
        assert not terminated.any()
    story = np.array(list("C..?C..??C..???" * 2))
    flags = np.array(seen)
    assert (flags[:, :, -2] == (story == "C")[:, None]).all()
    assert (flags[:, :, -1] == (story == "?")[:, None]).all()
    assert (flags[:, :, :3].sum(-1) == (story == "C")[:, None]).all()
    assert (np.array(rewards) == (story == "?")[:, None]).all()
    assert (np.array(ends) == np.isin(np.arange(30), [14, 29])[:, None]).all()
    assert TASK.memory_steps(**arguments) == "C..?C..??C..???".rindex("???")


def test_symbols_are_uniform_and_independent() -> None:
    copies = 10_000
    envs = EndlessCopyVectorEnv(copies, delay=0, num_symbols=3, max_length=2)
    first = envs.reset(seed=0)[0][:, :3]
    envs.step(np.zeros(copies, dtype=np.int64))
    second = envs.step(first.argmax(1))[0][:, :3]
    joint = first.T @ second / copies  # [3, 3]
    assert np.abs(joint - 1 / 9).max() < 4.5 * (1 / 9 / copies) ** 0.5


def right_answers(asked: list[int], answers: tuple[int, ...]) -> int:
    """Return the number of right answers before the first wrong one."""
    right = [given == wanted for given, wanted in zip(answers, asked, strict=True)]
    return right.index(False) if False in right else len(right)


@pytest.mark.parametrize(("num_symbols", "max_length"), [(2, 1), (2, 3), (3, 2)])
def test_scores_by_enumeration_of_all_sequences_and_answers(num_symbols: int, max_length: int) -> None:
    games = [
        [symbol for length in range(1, max_length + 1) for symbol in sequence[:length]]
        for sequence in product(range(num_symbols), repeat=max_length)
    ]
    answers = list(product(range(num_symbols), repeat=len(games[0])))
    scores = TASK.scores(num_symbols=num_symbols, max_length=max_length)
    assert scores.random == pytest.approx(np.mean([right_answers(game, given) for game in games for given in answers]))
    assert scores.memoryless == pytest.approx(np.mean([right_answers(game, (0,) * len(game)) for game in games]))
    assert scores.perfect == len(games[0])


def test_no_memoryless_agent_is_better_than_naming_one_symbol() -> None:
    """All queries look alike, so such an agent is a probability for each symbol: here for 2, and up to 4 rounds."""
    best = []
    for max_length in (1, 2, 3, 4):
        games = [
            [symbol for length in range(1, max_length + 1) for symbol in sequence[:length]]
            for sequence in product((0, 1), repeat=max_length)
        ]
        for share in np.linspace(0, 1, 21):
            expected = np.mean([np.cumprod(np.array([share, 1 - share])[game]).sum() for game in games])
            best.append(expected - TASK.scores(num_symbols=2, max_length=max_length).memoryless)
    assert max(best) == pytest.approx(0, abs=1e-12)


def test_stagger_shortens_only_the_first_gap() -> None:
    envs = EndlessCopyVectorEnv(4, delay=4, num_symbols=2, max_length=2, stagger=True)
    agent, observations, reset = AllCues(envs), envs.reset(seed=0)[0], np.ones(4, dtype=np.bool_)
    ends = []
    for _ in range(26):
        observations, _, terminated, reset, _ = envs.step(agent(observations, reset))
        ends.append(reset)
        assert not terminated.any()
    found = [np.flatnonzero(np.array(ends)[:, copy]).tolist() for copy in range(4)]
    assert found == [[12, 25], [11, 24], [10, 23], [9, 22]]


def test_text_tells_which_symbol_is_asked_for() -> None:
    env = EndlessCopyEnv(delay=1, num_symbols=2, max_length=3, render_mode="ansi")
    first = int(env.reset(seed=1)[0][:2].argmax())
    lines = [env.render()]
    for _ in range(2):
        env.step(np.int64(0))
        lines.append(env.render())
    second = int(env.step(np.int64(first))[0][:2].argmax())
    lines.append(env.render())
    for action in (0, 0, first):
        env.step(np.int64(action))
    third = int(env.step(np.int64(second))[0][:2].argmax())
    lines.append(env.render())
    for action in (0, 0, first, 1 - second):
        env.step(np.int64(action))
    lines.append(env.render())
    assert second != third
    assert lines == [
        f"step 0/12  cue {first}  (cue {first})",
        f"step 1/12  blank  (cue {first})",
        f"step 2/12  answer now  (cue {first})",
        f"step 3/12  answered {first}, right; cue {second}  (cue {first})",
        f"step 7/12  answered {second}, right; cue {third}  (cue {first})",
        f"step 11/12  answered {1 - second}, wrong  (cue {second})",
    ]


def test_picture_frames_a_wrong_answer_red() -> None:
    env = EndlessCopyEnv(delay=0, num_symbols=9, render_mode="rgb_array")
    symbol = int(env.reset(seed=0)[0][:9].argmax())
    env.step(np.int64(0))
    wrong = (symbol + 1) % 9
    env.step(np.int64(wrong))
    picture = env.render()
    assert picture.shape == (144, 288, 3)
    rows, columns = np.nonzero((picture == (235, 60, 60)).all(-1))
    assert set(zip((rows // 36).tolist(), (columns // 36).tolist(), strict=True)) == {(1 + wrong // 8, wrong % 8)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"delay": -1}, "delay must be an integer of at least 0, got -1"),
        ({"num_symbols": 1}, "num_symbols must be an integer of at least 2, got 1"),
        ({"max_length": 0}, "max_length must be an integer of at least 1, got 0"),
        ({"max_length": "many"}, "max_length must be an integer of at least 1, got 'many'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    for make in (EndlessCopyEnv, EndlessCopyVectorEnv):
        with pytest.raises(ValueError, match=message):
            make(**arguments)
