"""`ctrl/CopySequence-v0`: queries for all symbols in order, each `length + delay` steps after it was seen."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from ctrl.envs import TASKS, play
from ctrl.envs.tasks.copy_sequence import CopySequenceEnv, CopySequenceVectorEnv
from ctrl.envs.tasks.symbols import AllCues

TASK = TASKS["ctrl/CopySequence-v0"]
BLANK, QUERY = [0, 0, 0, 0, 0], [0, 0, 0, 0, 1]  # of 3 symbols
GO_ON = (False, False, {})


def plain(step: Any) -> Any:
    return (step[0].tolist(), *step[1:])


def asked_for(seed: int = 0) -> tuple[CopySequenceEnv, int, int]:
    """Return an env at its first query, after two symbols and a delay of one step, and the two symbols."""
    env = CopySequenceEnv(length=2, delay=1, num_symbols=3)
    first = int(env.reset(seed=seed)[0][:3].argmax())
    seen = env.step(np.int64(first))
    second = int(seen[0][:3].argmax())
    assert plain(seen) == ([*np.eye(3)[second], 1, 0], 0.0, *GO_ON)
    assert plain(env.step(np.int64(first))) == (BLANK, 0.0, *GO_ON)
    assert plain(env.step(np.int64(first))) == (QUERY, 0.0, *GO_ON)
    return env, first, second


def watch(copies: int, **arguments: Any) -> npt.NDArray[np.float32]:
    """Return the observations of whole episodes, [copies, steps, num_symbols + 2]."""
    envs = CopySequenceVectorEnv(copies, **arguments)
    seen = [envs.reset(seed=0)[0]]
    seen.extend(envs.step(np.zeros(copies, dtype=np.int64))[0] for _ in range(envs.rules.max_episode_steps - 1))
    return np.stack(seen, axis=1)


def test_an_episode_step_by_step() -> None:
    assert CopySequenceEnv(length=2, num_symbols=3).reset(seed=0)[0][-2:].tolist() == [1, 0]
    env, first, second = asked_for()
    assert plain(env.step(np.int64(first))) == (QUERY, 0.5, *GO_ON)
    assert plain(env.step(np.int64(second))) == (BLANK, 0.5, True, False, {"is_success": True})


@pytest.mark.parametrize("wrong_at", [0, 1])
def test_a_mistake_costs_its_share_and_the_success(wrong_at: int) -> None:
    env, *symbols = asked_for()
    symbols[wrong_at] = (symbols[wrong_at] + 1) % 3
    steps = [env.step(np.int64(symbol)) for symbol in symbols]
    assert [step[1] for step in steps] == [0.5 * (wrong_at != 0), 0.5 * (wrong_at != 1)]
    assert [step[2] for step in steps] == [False, True]
    assert steps[-1][4] == {"is_success": False}


def test_another_order_is_wrong() -> None:
    seed = next(seed for seed in range(9) if len(set(asked_for(seed)[1:])) == 2)
    env, first, second = asked_for(seed)
    assert [env.step(np.int64(symbol))[1] for symbol in (second, first)] == [0, 0]


def test_flags_mark_the_symbols_and_the_queries() -> None:
    seen = watch(50, length=3, delay=4, num_symbols=3, noise=1.0)
    steps = np.arange(10)
    assert (seen[:, :, -2] == (steps < 3)).all()
    assert (seen[:, :, -1] == (steps >= 7)).all()
    assert (seen[:, :, :3].sum(-1) == (steps < 7)).all()
    assert not watch(50, length=3, delay=4, noise=0.0)[:, 3:7].any()


@pytest.mark.parametrize("arguments", [{"length": 1, "delay": 0}, {"length": 3, "delay": 2}, {"length": 4, "delay": 0}])
def test_memory_needed_is_from_each_symbol_to_its_query(arguments: dict[str, int]) -> None:
    seen = watch(1, **arguments)[0]
    distances = np.flatnonzero(seen[:, -1]) - np.flatnonzero(seen[:, -2])
    assert distances.tolist() == [TASK.memory_steps(**arguments)] * arguments["length"]


def test_every_episode_has_the_most_steps() -> None:
    envs = CopySequenceVectorEnv(4, length=2, delay=3)
    envs.reset(seed=0)
    ends = [envs.step(np.arange(4))[2].tolist() for _ in range(14)]
    assert TASK.rules(length=2, delay=3).max_episode_steps == 7
    assert ends == ([[False] * 4] * 6 + [[True] * 4]) * 2


def test_symbols_and_noise_are_uniform_and_independent() -> None:
    """So no step gives information about another step."""
    episodes, noise = 20_000, 0.3
    seen = watch(episodes, length=2, delay=2, num_symbols=3, noise=noise)[:, :4, :3].transpose(1, 0, 2)
    rates = [1.0, 1.0, noise, noise]
    for one in range(4):
        for other in range(one):
            joint = seen[one].T @ seen[other] / episodes  # [3, 3]
            expected = rates[one] * rates[other] / 9
            assert np.abs(joint - expected).max() < 4.5 * (expected / episodes) ** 0.5


def test_stagger_shortens_only_the_first_gap() -> None:
    envs = CopySequenceVectorEnv(4, length=2, delay=8, stagger=True)
    envs.reset(seed=0)
    ends = np.array([envs.step(np.zeros(4, dtype=np.int64))[2] for _ in range(24)])
    assert [np.flatnonzero(ends[:, copy]).tolist() for copy in range(4)] == [[11, 23], [9, 21], [7, 19], [5, 17]]
    np.testing.assert_array_equal(play(AllCues(envs), envs, episodes=2, seed=0), 1.0)


def test_stagger_without_a_gap_does_nothing() -> None:
    streams = []
    for stagger in (False, True):
        envs = CopySequenceVectorEnv(4, length=2, delay=0, stagger=stagger)
        observations = [envs.reset(seed=0)[0]]
        observations.extend(envs.step(np.zeros(4, dtype=np.int64))[0] for _ in range(9))
        streams.append(np.array(observations))
    np.testing.assert_array_equal(*streams)


def test_scores_by_hand() -> None:
    assert TASK.defaults == {"length": 8, "delay": 16, "num_symbols": 4, "noise": 0.0}
    scores = TASK.scores(num_symbols=5)
    assert (scores.random, scores.memoryless, scores.perfect) == (0.2, 0.2, 1.0)


def test_text_tells_which_symbol_comes_next() -> None:
    env = CopySequenceEnv(length=2, delay=0, num_symbols=2, render_mode="ansi")
    first = int(env.reset(seed=0)[0][:2].argmax())
    lines = [env.render()]
    second = int(env.step(np.int64(0))[0][:2].argmax())
    lines.append(env.render())
    for action in (0, first, 1 - second):
        env.step(np.int64(action))
        lines.append(env.render())
    assert lines == [
        f"step 0/4  cue {first}  (cue {first})",
        f"step 1/4  cue {second}  (cue {first})",
        f"step 2/4  answer now  (cue {first})",
        f"step 3/4  answered {first}, right; answer now  (cue {second})",
        f"step 4/4  answered {1 - second}, wrong  (cue {second})",
    ]


def test_picture_draws_the_time_as_a_bar() -> None:
    env = CopySequenceEnv(length=1, delay=2, num_symbols=2, render_mode="rgb_array")
    env.reset(seed=0)
    shares = []
    for _ in range(5):
        bar = env.render()[-20, 4:-4]
        shares.append(float((bar == 255).all(-1).mean()))
        if len(shares) < 5:
            env.step(np.int64(0))
    assert env.render().shape == (108, 72, 3)
    assert shares == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length must be an integer of at least 1, got 0"),
        ({"delay": -1}, "delay must be an integer of at least 0, got -1"),
        ({"delay": 1.0}, r"delay must be an integer of at least 0, got 1\.0"),
        ({"num_symbols": 1}, "num_symbols must be an integer of at least 2, got 1"),
        ({"noise": -0.1}, r"noise must be a number from 0 to 1, got -0\.1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    for make in (CopySequenceEnv, CopySequenceVectorEnv):
        with pytest.raises(ValueError, match=message):
            make(**arguments)
