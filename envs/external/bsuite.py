"""bsuite's memory tasks: `memory_len` shows one bit and asks for it later, `memory_size` shows many and asks for one.

bsuite's environments have the interface of dm_env; shimmy wraps and registers them. The default arguments are the
hardest settings of bsuite's own sweeps (`memory_length` 1 to 100, `num_bits` 1 to 40). Other values can be given.

Observation: the time left, the index of the bit that is asked for, and the bits, flattened from [1, n] to [n].

Memory: an episode of memory_len has `memory_length + 1` steps. Its first two observations show the bits, one at the
reset and one after the first step. So the last decision depends on an observation `memory_length - 1` steps before it.
In memory_size this distance is 1 step: the task tests how much a memory holds, not for how long.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.wrappers import FlattenObservation

from ctrl.envs.external.task import PERFECT_PLAY, ExternalTask, Family


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
    ExternalTask(
        id="bsuite/memory_len-v0",
        family=FAMILY,
        arguments={"memory_length": 100},
        length=101,
        memory_steps=99,
        random=0.0,
        best=1.0,
        source=PERFECT_PLAY,
    ),
    ExternalTask(
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
