"""`ctrl/TMaze-v0`: episodes of the three variants by hand, and the score of the random agent."""

from __future__ import annotations

from itertools import product
from typing import Any, Literal

import numpy as np
import pytest

from ctrl.envs import TASKS
from ctrl.envs.tasks.t_maze import ACTIONS, TMazeEnv, TMazeVectorEnv

TASK = TASKS["ctrl/TMaze-v0"]
Walk = Literal["passive", "active", "original"]
NORTH, SOUTH, START, CORRIDOR, JUNCTION = [1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]


def seed_of(sign: str) -> int:
    """Return a seed whose first sign is `sign`."""
    env = TMazeEnv(length=1)
    return next(seed for seed in range(100) if (env.reset(seed=seed)[0].tolist() == NORTH) == (sign == "north"))


def walk(rules: Walk, actions: str, *, sign: str, length: int = 2) -> list[tuple[Any, ...]]:
    """Take the named actions; return (observation, reward, terminated) of the reset and each step, until the end."""
    env = TMazeEnv(length=length, rules=rules)
    steps: list[tuple[Any, ...]] = [(env.reset(seed=seed_of(sign))[0].tolist(), 0.0, False)]
    for name in actions.split():
        observation, reward, terminated, truncated, info = env.step(np.int64(ACTIONS[rules].index(name)))
        steps.append((observation.tolist(), reward, terminated))
        assert not truncated
        assert info == ({"is_success": reward == 1} if terminated else {})
        if terminated:
            break
    return steps


@pytest.mark.parametrize("sign", ["north", "south"])
@pytest.mark.parametrize("turn", ["north", "south"])
def test_passive_step_by_step(sign: str, turn: str) -> None:
    """The agent is carried along, whatever its actions are."""
    for before in ("north north", "south north"):
        assert walk("passive", f"{before} {turn}", sign=sign) == [
            (NORTH if sign == "north" else SOUTH, 0.0, False),
            (CORRIDOR, 0.0, False),
            (JUNCTION, 0.0, False),
            (CORRIDOR, float(sign == turn), True),
        ]


@pytest.mark.parametrize("sign", ["north", "south"])
def test_active_without_looking_never_sees_the_sign(sign: str) -> None:
    """Looking later than at the first step does nothing."""
    for before in ("north look", "south north"):
        assert walk("active", f"{before} north", sign=sign) == [
            (START, 0.0, False),
            (CORRIDOR, 0.0, False),
            (JUNCTION, 0.0, False),
            (CORRIDOR, float(sign == "north"), True),
        ]


@pytest.mark.parametrize("sign", ["north", "south"])
@pytest.mark.parametrize("second", ["north", "look"])
def test_active_looking_costs_one_step_and_shows_the_sign_once(sign: str, second: str) -> None:
    assert walk("active", f"look {second} north {sign}", sign=sign) == [
        (START, 0.0, False),
        (NORTH if sign == "north" else SOUTH, 0.0, False),
        (CORRIDOR, 0.0, False),
        (JUNCTION, 0.0, False),
        (CORRIDOR, 1.0, True),
    ]


def test_active_looking_at_the_junction_is_no_turn() -> None:
    assert walk("active", "north north look", sign="north")[-1] == (CORRIDOR, 0.0, True)


@pytest.mark.parametrize("sign", ["north", "south"])
def test_original_straight_to_the_junction(sign: str) -> None:
    for turn in ("north", "south", "east", "west"):
        assert walk("original", f"east east {turn}", sign=sign) == [
            (NORTH if sign == "north" else SOUTH, 0.0, False),
            (CORRIDOR, 0.0, False),
            (JUNCTION, 0.0, False),
            (CORRIDOR, float(sign == turn), True),
        ]


@pytest.mark.parametrize(
    ("actions", "places", "rewards"),
    [
        ("east north east east north", "CCCC", [0, -0.25, -0.25, -0.25, 0]),  # a lost step can't be caught up
        ("west west east east north", "SSCC", [-0.25, -0.25, -0.25, -0.25, 0]),  # nothing is west of the start
        ("east west east east north", "CSCC", [0, -0.25, -0.25, -0.25, 0]),  # and back is two lost steps
        ("east east east south north", "CCCC", [0, 0, 0, -0.25, 0]),
    ],
)
def test_original_each_step_behind_costs_its_share(actions: str, places: str, rewards: list[float]) -> None:
    """The episode ends after `length + 1` steps, wherever the agent is. It can turn only at the junction."""
    steps = walk("original", actions, sign="north", length=4)
    at = {"S": START, "C": CORRIDOR}
    assert [step[0] for step in steps] == [NORTH, *(at[place] for place in places), CORRIDOR]
    assert [step[1] for step in steps[1:]] == rewards
    assert [step[2] for step in steps[1:]] == [False] * 4 + [True]


@pytest.mark.parametrize("rules", ["passive", "active", "original"])
@pytest.mark.parametrize("length", [1, 2])
def test_random_score_by_enumeration_of_all_walks(rules: Walk, length: int) -> None:
    """A walk that ends early is counted once for each of its continuations, which gives it its right probability."""
    steps = TASK.rules(rules=rules, length=length).max_episode_steps
    returns = [
        sum(step[1] for step in walk(rules, " ".join(names), sign=sign, length=length))
        for sign in ("north", "south")
        for names in product(ACTIONS[rules], repeat=steps)
    ]
    assert TASK.scores(rules=rules, length=length).random == pytest.approx(np.mean(returns))


@pytest.mark.parametrize(("rules", "looks"), [("passive", 0), ("active", 1), ("original", 0)])
def test_memory_and_steps_of_the_perfect_agent(rules: Walk, looks: int) -> None:
    copies, length = 400, 5
    envs = TMazeVectorEnv(copies, length=length, rules=rules)
    agent, observations, none = TASK.agents["perfect"](envs), envs.reset(seed=0)[0], np.zeros(copies, dtype=np.bool_)
    seen = []
    for step in range(1, length + looks + 2):
        seen.append(observations)
        observations, rewards, terminated, truncated, _ = envs.step(agent(observations, none))
        assert (terminated == (step == length + looks + 1)).all()
        assert not truncated.any()
    signs, junction = np.array(seen)[:, :, :2], np.array(seen)[:, :, 3]  # [steps, copies, 2], [steps, copies]
    assert rewards.all()
    assert (signs.sum((0, 2)) == 1).all()
    assert (junction.argmax(0) - signs.sum(2).argmax(0) == TASK.memory_steps(length=length, rules=rules)).all()
    assert TASK.rules(length=length, rules=rules).max_episode_steps == length + looks + 1
    assert abs(signs[:, :, 0].sum(0).mean() - 0.5) < 4.5 * (0.25 / copies) ** 0.5


def test_stagger_leaves_the_look_at_the_start() -> None:
    envs = TMazeVectorEnv(2, length=8, rules="active", stagger=True)
    agent, observations, none = TASK.agents["perfect"](envs), envs.reset(seed=0)[0], np.zeros(2, dtype=np.bool_)
    seen, ends = [], []
    for _ in range(10):
        seen.append(observations)
        observations, _, terminated, _, _ = envs.step(agent(observations, none))
        ends.append(terminated)
    assert np.array(seen)[:3, :, 2].tolist() == [[1, 1], [1, 1], [0, 0]]
    assert np.array(ends).argmax(0).tolist() == [9, 5]


def test_text_tells_the_story() -> None:
    env = TMazeEnv(length=2, rules="active", render_mode="ansi")
    env.reset(seed=seed_of("south"))
    lines = [env.render()]
    for action in (2, 0, 0, 0):
        env.step(np.int64(action))
        lines.append(env.render())
    assert lines == [
        "step 0, cell 0/2  start  (sign south)",
        "step 1, cell 0/2  start, sees the sign  (sign south)",
        "step 2, cell 1/2  corridor  (sign south)",
        "step 3, cell 2/2  junction  (sign south)",
        "step 4, cell 2/2  turned north, wrong  (sign south)",
    ]
    env.reset(seed=seed_of("south"))
    for action in (0, 0, 2):
        env.step(np.int64(action))
    assert env.render() == "step 3, cell 2/2  the end  (sign south)"


@pytest.mark.parametrize(("turn", "colour"), [("north", (60, 220, 90)), ("south", (235, 60, 60))])
def test_picture_colours_the_arm_and_stays_small(turn: str, colour: tuple[int, int, int]) -> None:
    shapes = []
    for length in (1, 14, 500):
        env = TMazeEnv(length=length, render_mode="rgb_array")
        env.reset(seed=seed_of("north"))
        shapes.append(env.render().shape)
    assert shapes == [(120, 96, 3), (120, 408, 3), (120, 408, 3)]
    env = TMazeEnv(length=1, render_mode="rgb_array")
    env.reset(seed=seed_of("north"))
    bright = (env.render() == (255, 205, 60)).all(-1)
    assert bright[24:48, 24:48].any()
    assert not bright[48:].any()
    env.step(np.int64(0))
    assert not (env.render() == (255, 205, 60)).all(-1).any()
    assert not (env.render() == colour).all(-1).any()
    env.step(np.int64(ACTIONS["passive"].index(turn)))
    rows, columns = np.nonzero((env.render() == colour).all(-1))
    assert set((rows // 24).tolist()) == {1 if turn == "north" else 3}
    assert set((columns // 24).tolist()) == {2}
