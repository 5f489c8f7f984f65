"""`ctrl/EndlessCopy-v0`: a sequence that grows by one symbol a round, and the best score without memory."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from ctrl.envs import TASKS
from ctrl.envs.tasks.endless_copy import EndlessCopyEnv, EndlessCopyVectorEnv

TASK = TASKS["ctrl/EndlessCopy-v0"]


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
