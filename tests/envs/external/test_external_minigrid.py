"""MiniGrid's Memory tasks: the view that makes them need memory, and the shortest walk through them."""

from __future__ import annotations

import numpy as np
import pytest

from ctrl.envs.external import EXTERNAL_TASKS, make

LEFT, RIGHT, FORWARD = 0, 1, 2
KEY, BALL = 5, 6


def objects(observation: np.ndarray) -> set[int]:
    """Return the key and the ball, if in view; a cell is one-hot in 11 objects, 6 colours and 3 states."""
    cells = observation.reshape(3, 3, 20)[..., :11].argmax(axis=-1)
    return {KEY, BALL} & set(cells.ravel().tolist())


def to_the_first_object(x: int) -> list[int]:
    """Return the moves from column x, facing right, to a view of the first object and back to facing right."""
    if x == 1:
        return []
    return [LEFT, RIGHT] if x == 2 else [LEFT, LEFT, *[FORWARD] * (x - 3), LEFT, LEFT]


def shortest_walk(size: int, seed: int) -> tuple[float, int]:
    """Walk by memory; return the episode's return, and the steps from the last view of the first object to the next."""
    env = make(f"MiniGrid-MemoryS{size}-v0")
    observation, _ = env.reset(seed=seed)
    x, junction = int(env.unwrapped.agent_pos[0]), size - 2  # type: ignore[attr-defined]
    seen = [objects(observation)]
    for action in (*to_the_first_object(x), *[FORWARD] * (junction - min(x, 3)), LEFT):
        observation, *_ = env.step(action)
        seen.append(objects(observation))
    *before, there = seen
    last = max(step for step, found in enumerate(before) if found)
    for action in [FORWARD] if there == before[last] else [LEFT, LEFT, FORWARD]:
        _, reward, ended, _, _ = env.step(action)
    assert ended
    return float(reward), len(before) - last


@pytest.mark.parametrize("size", [7, 9, 13])
def test_the_shortest_walk_needs_the_stated_memory_and_reaches_the_best_score(size: int) -> None:
    task = EXTERNAL_TASKS[f"MiniGrid-MemoryS{size}-v0"]
    returns, gaps = zip(*(shortest_walk(size, seed) for seed in range(80)), strict=True)
    assert set(gaps) == {task.memory_steps}
    assert task.best is not None
    assert abs(np.mean(returns) - task.best) < 4 * np.std(returns) / len(returns) ** 0.5


@pytest.mark.parametrize("env_id", [task.id for task in EXTERNAL_TASKS.values() if task.family.name == "minigrid"])
def test_the_view_is_3_by_3_and_has_no_text(env_id: str) -> None:
    env = make(env_id)
    assert env.get_wrapper_attr("agent_view_size") == 3
    assert env.observation_space.shape == (3 * 3 * 20,)
    assert env.get_wrapper_attr("max_steps") == EXTERNAL_TASKS[env_id].length


def test_another_view_can_be_asked_for() -> None:
    assert make("MiniGrid-MemoryS7-v0", agent_view_size=7).observation_space.shape == (7 * 7 * 20,)
