"""POPGym: 16 small tasks, each in the levels Easy, Medium and Hard.

Observation: the package's observation as one float32 vector; each number of a discrete part is one-hot. If the package
says that a task needs it (`obs_requires_prev_action`), its own wrappers add the previous action and a flag for the
first step. The package's experiments add both to all tasks. This module does not: an agent that sees its previous
action can store an observation in it, and so solves RepeatFirst without a memory.

The labyrinths draw their mazes from the global generators of Python and numpy. Here each copy has a generator of its
own, and the global ones keep their states.

Memory has no fixed number of steps in three cases. The play decides how long an episode lasts or which facts are useful
(Battleship, Concentration, MineSweeper, labyrinths). Each older observation makes an estimate a little better (the
noisy tasks). A position is the sum of all speeds since the start (VelocityOnlyCartpole; its first observation holds the
positions at the start). In HigherLower and MultiarmedBandit each observation of the episode counts.

Best scores are those of perfect play, if that is known. The POPGym paper (arXiv 2303.01859) states another number, the
maximum of a training curve (MMER), for agents that see their previous action.
"""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import DtypeObservation, FlattenObservation

from ctrl.envs.external.task import PERFECT_PLAY, ExternalTask, Family

LEVELS = ("Easy", "Medium", "Hard")


class OwnRandomness(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that seeds each episode from its own generator, for an env whose reset draws from global ones."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._seeds = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start the first episode of `seed`; without a seed, the next episode."""
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        states = random.getstate(), np.random.get_state()  # noqa: NPY002 - these are what mazelib uses
        try:
            return self.env.reset(seed=int(self._seeds.integers(2**31)), options=options)
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _build(env_id: str, arguments: dict[str, Any]) -> gym.Env[Any, Any]:
    from popgym.wrappers import Antialias, PreviousAction

    env = gym.make(env_id, disable_env_checker=True, **arguments)
    if env.get_wrapper_attr("obs_requires_prev_action"):
        env = Antialias(PreviousAction(env))
    if "Labyrinth" in env_id:
        env = OwnRandomness(env)
    return DtypeObservation(FlattenObservation(env), np.float32)


FAMILY = Family(
    name="popgym",
    distributions={"popgym": None, "mazelib": None},
    modules=("popgym",),
    install=('pip install "ctrl-memory[popgym]"',),
    build=_build,
)

Numbers = tuple[float, float, float]
Steps = tuple[int, int, int]


def _tasks(name: str, length: Steps, memory: Steps | None, random: Numbers, best: float | None) -> list[ExternalTask]:
    """Return the three levels of a task; `length`, `memory` and `random` have an entry for each of `LEVELS`."""
    return [
        ExternalTask(
            id=f"popgym-{name}{level}-v0",
            family=FAMILY,
            length=length[i],
            memory_steps=None if memory is None else memory[i],
            random=random[i],
            best=best,
            source=None if best is None else PERFECT_PLAY,
        )
        for i, level in enumerate(LEVELS)
    ]


# Scores of the random agent are means of 200 to 10,000 episodes. Their standard error is below 0.01; 0.03 in
# LabyrinthEscape.
TASKS = (
    *_tasks("Autoencode", (103, 207, 311), (102, 206, 310), (-0.5, -0.5, -0.5), 1.0),
    *_tasks("Battleship", (64, 100, 144), None, (-0.445, -0.406, -0.393), None),
    *_tasks("Concentration", (104, 208, 104), None, (-0.195, -0.184, -0.834), None),
    *_tasks("CountRecall", (51, 103, 207), (50, 102, 206), (-0.926, -0.926, -0.882), 1.0),
    *_tasks("HigherLower", (51, 103, 155), (50, 102, 154), (0.0, 0.0, 0.0), None),
    *_tasks("LabyrinthEscape", (1023, 1023, 1023), None, (-0.41, -0.84, -0.94), None),
    *_tasks("LabyrinthExplore", (1023, 1023, 1023), None, (-0.37, -0.617, -0.74), None),
    *_tasks("MineSweeper", (14, 30, 54), None, (-0.228, -0.4, -0.433), None),
    *_tasks("MultiarmedBandit", (200, 400, 600), (198, 398, 598), (0.0, 0.0, 0.0), None),
    *_tasks("NoisyPositionOnlyCartPole", (200, 200, 200), None, (0.11, 0.11, 0.11), None),
    *_tasks("NoisyPositionOnlyPendulum", (200, 200, 200), None, (0.24, 0.24, 0.24), None),
    *_tasks("PositionOnlyCartPole", (200, 400, 600), (1, 1, 1), (0.111, 0.056, 0.037), 1.0),
    *_tasks("PositionOnlyPendulum", (200, 150, 100), (1, 1, 1), (0.24, 0.24, 0.24), None),
    *_tasks("RepeatFirst", (51, 415, 831), (50, 414, 830), (-0.5, -0.5, -0.5), 1.0),
    *_tasks("RepeatPrevious", (51, 103, 155), (3, 31, 63), (-0.5, -0.5, -0.5), 1.0),
    *_tasks("VelocityOnlyCartpole", (200, 400, 600), None, (0.111, 0.056, 0.037), 1.0),
)
