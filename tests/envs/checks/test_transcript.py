from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ctrl.envs.checks.transcript import Event, Restarting, actions, copy_of, difference, keep, play

NAN = float("nan")


class Counter(gym.Env[np.ndarray, np.int64]):
    """Env that shows the episode and the step; episodes have 3 steps."""

    observation_space = gym.spaces.Box(0.0, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(5)
    episode = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.step_count = (0 if seed is not None else self.episode + 1), 0
        return self.observe(), {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.step_count += 1
        return self.observe(), float(action), False, self.step_count == 3, {"last": self.step_count == 3}

    def observe(self) -> np.ndarray:
        return np.array([self.episode, self.step_count], dtype=np.float32)


def seen(events: list[Event]) -> list[tuple[int, int]]:
    return [tuple(map(int, event.observation)) for event in events]


def test_single_env_restarts_in_the_next_step() -> None:
    events = list(play(Restarting(Counter()), seed=0, calls=6))
    assert seen(events) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    assert [bool(event.ended) for event in events] == [False, False, False, True, False, False, False]
    assert events[4] == (events[4].observation, 0.0, False, False, {}, None)


def test_single_env_restarts_in_the_same_step() -> None:
    events = list(play(Restarting(Counter(), AutoresetMode.SAME_STEP), seed=0, calls=4))
    assert seen(events) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert events[3].truncated and events[3].final.tolist() == [0, 3]
    assert [event.final for event in events[:3]] == [None] * 3


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_copies_of_a_vector_env_are_single_envs_that_restart(mode: AutoresetMode) -> None:
    envs = SyncVectorEnv([Counter] * 3, autoreset_mode=mode)
    for event in play(envs, seed=0, calls=9):
        copies = [copy_of(event, envs, index)._replace(reward=0.0) for index in range(3)]
        assert difference(copies[0], copies[2]) is None
    singles = [event._replace(reward=0.0, info={}) for event in play(Restarting(Counter(), mode), seed=0, calls=9)]
    assert difference(singles[-1], copies[0]) is None
    assert difference(singles[-2], copies[0]) is not None


def test_step_without_all_five_results_is_told_as_gymnasium_does() -> None:
    class Old(Counter):
        def step(self, action: np.int64) -> Any:
            return super().step(action)[1:]

    env = Restarting(Old())
    env.reset(seed=0)
    with pytest.raises(ValueError, match="expected 5, got 4"):
        env.step(np.int64(0))


def test_play_stops_one_step_into_the_next_episode() -> None:
    assert seen(list(play(Restarting(Counter()), seed=0, calls=99, episodes=2)))[-2:] == [(1, 3), (2, 0)]


def test_play_tells_each_step() -> None:
    ticks: list[int] = []
    list(play(Restarting(Counter()), seed=0, calls=5, tick=lambda: ticks.append(1)))
    assert len(ticks) == 5


def test_actions_leave_the_envs_own_space_alone() -> None:
    env = Restarting(Counter())
    env.action_space.seed(1)
    expected = [env.action_space.sample() for _ in range(5)]
    env.action_space.seed(1)
    drawn = actions(env, 0)
    first = [next(drawn) for _ in range(9)]
    again = actions(env, 0)
    assert first == [next(again) for _ in range(9)]
    assert [env.action_space.sample() for _ in range(5)] == expected


def test_what_is_kept_does_not_change() -> None:
    event = Event(np.zeros(2), 0.0, False, False, {"a": [1]})
    kept = keep(event)
    event.observation[0] = 5
    event.info["a"].append(2)
    assert kept.observation.tolist() == [0, 0] and kept.info == {"a": [1]}


class Opaque:
    """Class whose instances compare by identity."""


class Tensor:
    """Array of another library: the comparison of two gives a third, which is neither true nor false."""

    def __init__(self, values: list[float]) -> None:
        self.values = np.array(values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values

    def __eq__(self, other: object) -> Any:
        return self.values == np.asarray(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, np.int64(1)),
        (NAN, np.float32(NAN)),
        (np.array([1.0, NAN]), np.array([1.0, NAN])),
        ({"a": [1, "b"], "c": None}, {"c": None, "a": [1, "b"]}),
        (np.array([None, np.ones(2)], dtype=object), np.array([None, np.ones(2)], dtype=object)),
        (Opaque(), Opaque()),
        ((), ()),
        (deque([1, 2]), deque([1, 2])),
        (Tensor([1.0, NAN]), Tensor([1.0, NAN])),
        (np.float32, np.float32),
        (True, np.array(True)),
    ],
)
def test_equal_values_have_no_difference(one: Any, other: Any) -> None:
    assert difference(one, other, "x") is None


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (1, 2, "x is 1 and 2"),
        (np.float64(1), None, "x is 1.0 and None"),
        (1.0, np.ones(2), "x is 1.0 and array([1., 1.])"),
        (np.zeros((2, 3)), np.eye(2, 3), "x[0, 0] is 0.0 and 1.0"),
        (np.array(2.0), np.array(3.0), "x is 2.0 and 3.0"),
        (np.zeros(2), np.array([0.0, NAN]), "x[1] is 0.0 and nan"),
        (np.zeros(2), np.zeros(2, np.float32), "x is float64 of shape (2,) and float32 of shape (2,)"),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "x['a']['b'] is 1 and 2"),
        ({"a": 1}, {"b": 1}, "x has the keys ['a'] and ['b']"),
        ([1, 2], [1, 3], "x[1] is 2 and 3"),
        ([1, 2], [1], "x has 2 items and 1"),
        ([1, 2], np.array([1, 3]), "x is [1, 2] and array([1, 3])"),
        ([1, 2], np.ones(3), "x is [1, 2] and array([1., 1., 1.])"),
        (None, [[1], 2], "x is None and [[1], 2]"),
        (Tensor([1.0, 2.0]), Tensor([1.0, 3.0]), "x[1] is 2.0 and 3.0"),
        (np.array([1, "a"], dtype=object), np.array([1, "b"], dtype=object), "x[1] is 'a' and 'b'"),
        ("a" * 80, "b", "x is '" + "a" * 56 + "… and 'b'"),
    ],
)
def test_differences_are_told_by_place(one: Any, other: Any, told: str) -> None:
    assert difference(one, other, "x") == told


def test_events_are_compared_by_field() -> None:
    event = Event(np.zeros(2), 1.0, False, False, {})
    assert difference(event, event._replace(reward=2.0)) == "reward is 1.0 and 2.0"
    assert difference(event, event._replace(info={"a": 1})) == "info has the keys [] and ['a']"
