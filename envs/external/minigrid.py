"""MiniGrid's Memory tasks: see an object, walk down a hallway, turn to the same object at its end.

With the package's default view of 7 × 7 cells, the first object and those at the end can be seen together, so no memory
is needed. Here the view is 3 × 3 (`agent_view_size=3`).

Observation: the cells of the view, one-hot and flattened (180 numbers). The package codes object, colour and state as
small integers, which an agent must not read as the pixels of an image. The mission and the direction are left out: the
mission is the same text in each episode, and the view turns with the agent.

Memory: `size - 2` steps, the shortest walk from the last cell in which the first object is visible to the first view of
an object at the end. In the tasks named Random the hallway's length is drawn for each episode, so there is no fixed
number.

Best score: the mean return over all starts, on the shortest path past the first object to the matching one. In half of
the episodes the agent looks at the wrong object first, which costs two turns.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.wrappers import FlattenObservation

from ctrl.envs.external.task import PERFECT_PLAY, ExternalTask, Family


def _build(env_id: str, arguments: dict[str, Any]) -> gym.Env[Any, Any]:
    from minigrid.wrappers import ImgObsWrapper, OneHotPartialObsWrapper

    env = gym.make(env_id, disable_env_checker=True, **arguments)
    return FlattenObservation(ImgObsWrapper(OneHotPartialObsWrapper(env)))


FAMILY = Family(
    name="minigrid",
    distributions={"minigrid": None},
    modules=("minigrid",),
    install=('pip install "ctrl-memory[minigrid]"',),
    build=_build,
)


def _task(name: str, size: int, *, random: float, best: float) -> ExternalTask:
    return ExternalTask(
        id=f"MiniGrid-Memory{name}-v0",
        family=FAMILY,
        arguments={"agent_view_size": 3},
        length=5 * size**2,
        memory_steps=None if name.endswith("Random") else size - 2,
        random=random,
        best=best,
        source=PERFECT_PLAY,
    )


TASKS = (
    _task("S7", 7, random=0.15, best=0.969),
    _task("S9", 9, random=0.19, best=0.974),
    _task("S11", 11, random=0.19, best=0.978),
    _task("S13", 13, random=0.19, best=0.981),
    _task("S13Random", 13, random=0.25, best=0.986),
    _task("S17Random", 17, random=0.26, best=0.99),
)
