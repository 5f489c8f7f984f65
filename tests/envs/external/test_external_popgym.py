"""POPGym: observations, the steps back to the oldest observation of a decision, and the randomness of labyrinths."""

from __future__ import annotations

import random
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from ctrl.envs.external import EXTERNAL_TASKS, make

History = list[np.ndarray]
"""All observations of the episode so far, the current one last."""
SECONDS = 0.02
"""Duration of a cart-pole's step, in seconds."""
Choice = tuple[int, int]
"""Action, and index in the history of the oldest observation that it depends on."""


def repeat_first(history: History) -> Choice:
    return int(history[0].argmax()), 0


def repeat_previous(back: int) -> Callable[[History], Choice]:
    def choose(history: History) -> Choice:
        index = max(len(history) - 1 - back, 0)
        return int(history[index].argmax()), index

    return choose


def autoencode(history: History) -> Choice:
    now = len(history) - 1
    if history[-1][0] == 0:  # cards are still dealt, the action does not matter
        return 0, now
    first_answer = next(step for step, seen in enumerate(history) if seen[0] == 1)
    index = 2 * first_answer - now
    return int(history[index][2:].argmax()), index


def count_recall(history: History) -> Choice:
    values = [int(seen[:2].argmax()) for seen in history]
    return values.count(int(history[-1][2:].argmax())), 0


def balance(positions: np.ndarray, speeds: np.ndarray) -> int:
    """Return the push that keeps a cart near the middle and its pole upright; arguments hold cart and pole."""
    return int(positions @ (0.1, 4.0) + speeds @ (0.3, 1.0) > 0)


def balance_by_positions(history: History) -> Choice:
    oldest = max(len(history) - 2, 0)
    return balance(history[-1], (history[-1] - history[oldest]) / SECONDS), oldest


def balance_by_speeds(history: History) -> Choice:
    """The first observation holds the positions at the start."""
    positions = history[0] + SECONDS * np.sum(history[1:-1], axis=0)
    return balance(positions, history[-1] * (len(history) > 1)), 0


@pytest.mark.parametrize(
    ("env_id", "choose"),
    [
        ("popgym-RepeatFirstEasy-v0", repeat_first),
        ("popgym-RepeatFirstMedium-v0", repeat_first),
        ("popgym-RepeatPreviousEasy-v0", repeat_previous(3)),
        ("popgym-RepeatPreviousHard-v0", repeat_previous(63)),
        ("popgym-AutoencodeEasy-v0", autoencode),
        ("popgym-AutoencodeHard-v0", autoencode),
        ("popgym-CountRecallEasy-v0", count_recall),
        ("popgym-PositionOnlyCartPoleHard-v0", balance_by_positions),
        ("popgym-VelocityOnlyCartpoleHard-v0", balance_by_speeds),
    ],
)
def test_perfect_play_reaches_the_best_score_and_looks_back_as_far_as_stated(
    env_id: str, choose: Callable[[History], Choice]
) -> None:
    task, env = EXTERNAL_TASKS[env_id], make(env_id)
    history, return_, back, ended = [env.reset(seed=4)[0]], 0.0, 0, False
    while not ended:
        action, oldest = choose(history)
        back = max(back, len(history) - 1 - oldest)
        observation, reward, terminated, truncated, _ = env.step(action)
        history.append(observation)
        return_ += float(reward)
        ended = terminated or truncated
    assert return_ == pytest.approx(task.best)
    assert task.memory_steps in (None, back)
    assert len(history) - 1 == task.length


@pytest.mark.parametrize("env_id", [task.id for task in EXTERNAL_TASKS.values() if task.family.name == "popgym"])
def test_the_previous_action_is_seen_only_where_the_package_asks_for_it(env_id: str) -> None:
    env = make(env_id)
    own = spaces.flatten_space(env.unwrapped.observation_space)
    assert isinstance(own, spaces.Box) and isinstance(env.observation_space, spaces.Box)
    added = env.observation_space.shape[0] - own.shape[0]
    asked = env.unwrapped.obs_requires_prev_action  # type: ignore[attr-defined]
    first_step_flag = 2
    assert added == (spaces.flatdim(env.action_space) + first_step_flag if asked else 0)
    assert env.observation_space.dtype == np.float32


def mazes(env: gym.Env, seed: int, count: int, between: Callable[[], None]) -> list[str]:
    found = [env.reset(seed=seed)[1]["maze"]]
    for _ in range(count):
        between()
        found.append(env.reset()[1]["maze"])
    return found


def disturb() -> None:
    random.random()
    np.random.random()  # noqa: NPY002 - what a labyrinth must not depend on


def test_labyrinths_neither_read_nor_change_the_global_generators() -> None:
    env = make("popgym-LabyrinthExploreEasy-v0")
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    alone = mazes(env, 3, 4, lambda: None)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert mazes(env, 3, 4, disturb) == alone
    assert len(set(alone)) == 5
