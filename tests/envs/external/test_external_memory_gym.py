"""Memory Gym: its images and parameters, its single window, and the steps from seeing a command to executing it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from ctrl.envs.external import EXTERNAL_TASKS, make


def towards(position: float, target: float) -> int:
    """Return the move along one axis: 0 stays, 1 goes down, 2 goes up."""
    return 0 if position == target else 1 if target < position else 2


def obey(inner: Any) -> Any:
    """Return the action for the current command. On the grid, where turns take steps, move the agent there at once."""
    if hasattr(inner.agent, "reset_position"):
        inner.agent.reset_position(inner._target_pos)
        return 0
    return [towards(p, t) for p, t in zip(inner.normalized_agent_position, inner._target_pos, strict=True)]


@pytest.mark.parametrize("name", ["MortarMayhem", "MortarMayhem-Grid", "MortarMayhemB", "MortarMayhemB-Grid"])
def test_an_agent_that_knows_all_commands_measures_length_memory_and_best_score(name: str) -> None:
    task, env = EXTERNAL_TASKS[f"{name}-v0"], make(f"{name}-v0")
    env.reset(seed=0)
    inner: Any = env.unwrapped
    later = inner._command_visualization or []  # the next observations' commands; B has them in a vector
    shown = [step for step, command in enumerate(["first", *later]) if command]
    return_, steps, turn, ended = 0.0, 0, 0, False
    while not ended:
        if inner._current_command == 9 and not inner.arena.tiles_on and not turn:
            turn = steps  # the tenth command's turn has come
        _, reward, ended, _, _ = env.step(obey(inner))
        return_, steps = return_ + float(reward), steps + 1
    assert steps == task.length
    assert return_ == pytest.approx(task.best)
    assert task.memory_steps in (None, turn - max(shown))


def test_images_are_images() -> None:
    assert make("MysteryPath-v0").observation_space == spaces.Box(0, 255, (84, 84, 3), np.uint8)
    seen = make("MortarMayhemB-v0").observation_space
    assert isinstance(seen, spaces.Dict)
    assert seen["visual_observation"] == spaces.Box(0, 255, (84, 84, 3), np.uint8)


def test_closing_one_copy_leaves_the_others_their_window() -> None:
    env, other = make("SearingSpotlights-v0"), make("Endless-MysteryPath-v0")
    env.reset(seed=1)
    other.close()
    observation, *_ = env.step(env.action_space.sample())
    assert observation.any()


def test_arguments_are_reset_parameters() -> None:
    env = make("MortarMayhem-v0", command_count=[3])
    for _ in range(2):
        env.reset()
        assert len(env.get_wrapper_attr("_commands")) == 3
    env.reset(options={"command_count": [5]})
    assert len(env.get_wrapper_attr("_commands")) == 5


def test_an_argument_that_is_no_reset_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"MortarMayhem-v0 .*comand_count"):
        make("MortarMayhem-v0", comand_count=[3])
