"""bsuite's memory tasks: `memory_len` shows one bit and asks for it later, `memory_size` shows many and asks for one.

bsuite's environments have the interface of dm_env; shimmy wraps and registers them. The arguments here are the hardest
settings of bsuite's own sweeps (`memory_length` 1 to 100, `num_bits` 1 to 40). Any others can be given.

What is seen: the time that is left, which bit is asked for, and the bits, flattened from [1, n] to [n].

Memory: an episode of memory_len has `memory_length + 1` steps, and shows the bits in its first two observations (also
after the first step), so the last decision needs what was seen `memory_length - 1` steps before. In memory_size that is
1 step: it asks how much fits into a memory, not how long it lasts.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.wrappers import FlattenObservation

from ctrl.envs.field.task import PERFECT_PLAY, Family, FieldTask


def _build(env_id: str, arguments: dict[str, Any]) -> gym.Env[Any, Any]:
    return FlattenObservation(gym.make(env_id, disable_env_checker=True, **arguments))


FAMILY = Family(
    name="bsuite",
    distributions={"bsuite": None, "shimmy": None},
    modules=("shimmy",),
    install=('pip install "ctrl-memory[bsuite]"',),
    build=_build,
)

TASKS = (
    FieldTask(
        id="bsuite/memory_len-v0",
        family=FAMILY,
        arguments={"memory_length": 100},
        length=101,
        memory_steps=99,
        random=0.0,
        best=1.0,
        source=PERFECT_PLAY,
    ),
    FieldTask(
        id="bsuite/memory_size-v0",
        family=FAMILY,
        arguments={"num_bits": 40},
        length=3,
        memory_steps=1,
        random=0.0,
        best=1.0,
        source=PERFECT_PLAY,
    ),
)
