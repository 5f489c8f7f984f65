"""Memory Gym: Mortar Mayhem, Mystery Path and Searing Spotlights, each in a finite and an endless form.

The metadata of memory-gym 1.0.2 requires gymnasium 0.29.0 and pygame 2.4.0, but the package works with current
versions. If a current gymnasium is installed, pip silently picks memory-gym 0.3.0, which registers no ids. So the
package is installed by two commands, the second without dependencies. pygame-ce replaces pygame: both install the same
import package, and minigrid needs pygame-ce.

Observation: an image of 84 × 84 pixels (uint8, 0 to 255, channels last). MortarMayhemB adds a vector that shows all
commands at every step. A task's arguments are the package's reset parameters, for example `command_count=[5]`.

All copies in a process share one window of pygame. Closing a copy would close the window for the others, so the window
stays open until the process ends.

Memory: the tenth and last command of Mortar Mayhem is last seen at step 38. It must be executed at step 256, or at step
112 in the grid variant. In all other tasks the number of steps depends on the play.

Best scores of the endless tasks are those of the GRU in the Memory Gym paper; a command of Mortar Mayhem brings 0.1.
For Endless Searing Spotlights the paper states 23.9. It is unclear if this number counts coins or is a return, so no
best score is stated here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from ctrl.envs.external.task import PERFECT_PLAY, ExternalTask, Family

PAPER = "Memory Gym paper, arXiv 2309.17207"


class ResetParameters(gym.Wrapper[Any, Any, Any, Any]):
    """Wrapper that resets the env with the same parameters each time, and leaves pygame's window open on `close`."""

    def __init__(self, env: gym.Env[Any, Any], parameters: Mapping[str, Any]) -> None:
        super().__init__(env)
        self.parameters = dict(parameters)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode; `options` override the wrapper's own parameters."""
        return self.env.reset(seed=seed, options={**self.parameters, **(options or {})})

    def close(self) -> None:
        """Do nothing: closing the env would end pygame for all other envs in this process."""


def _build(env_id: str, arguments: dict[str, Any]) -> gym.Env[Any, Any]:
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")  # pygame looks for a sound card otherwise; the tasks are silent
    render_mode = arguments.pop("render_mode", None)
    env = gym.make(env_id, disable_env_checker=True, render_mode=render_mode)
    try:
        type(env.unwrapped).process_reset_params(arguments)  # type: ignore[attr-defined]
    except AssertionError as error:
        raise ValueError(f"{env_id} got {arguments}: {error}") from error
    return ResetParameters(env, arguments)


FAMILY = Family(
    name="memory-gym",
    distributions={"memory-gym": "1.0.2"},
    modules=("memory_gym",),
    install=('pip install "pygame-ce>=2.4,<3"', "pip install --no-deps memory-gym==1.0.2"),
    build=_build,
)


def _task(
    name: str,
    length: int | None,
    random: float,
    *,
    memory_steps: int | None = None,
    best: float | None = None,
    source: str | None = None,
) -> ExternalTask:
    return ExternalTask(
        id=f"{name}-v0",
        family=FAMILY,
        length=length,
        memory_steps=memory_steps,
        random=random,
        best=best,
        source=source,
    )


TASKS = (
    _task("MortarMayhem", 274, 0.02, memory_steps=218, best=1.0, source=f"{PAPER}, TrXL with reconstruction"),
    _task("MortarMayhem-Grid", 118, 0.02, memory_steps=74, best=1.0, source=PERFECT_PLAY),
    _task("MortarMayhemB", 235, 0.018, best=1.0, source=PERFECT_PLAY),
    _task("MortarMayhemB-Grid", 79, 0.02, best=1.0, source=PERFECT_PLAY),
    _task("MysteryPath", 512, 0.22),
    _task("MysteryPath-Grid", 128, 0.012),
    _task("SearingSpotlights", 256, 0.01),
    _task("Endless-MortarMayhem", None, 0.009, best=10.7, source=f"{PAPER}, GRU"),
    _task("Endless-MysteryPath", None, 0.1, best=2.68, source=f"{PAPER}, GRU"),
    _task("Endless-SearingSpotlights", None, 0.046),
)
