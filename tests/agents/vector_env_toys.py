"""Envs of the tests of `GymnasiumVecEnv`: random walks as single envs, and a native vector env with given episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space

from ctrl.agents.vec_envs.vector_env import GymnasiumVecEnv

COPIES = 3
SAME_STEP, NEXT_STEP, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED

OBSERVATION_SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-9.0, 9.0, (2,), np.float32),
    "image": spaces.Box(0, 255, (4, 5, 1), np.uint8),
    "discrete": spaces.Discrete(7),
    "multi_discrete": spaces.MultiDiscrete([3, 4]),
    "multi_binary": spaces.MultiBinary(6),
    "dict": spaces.Dict({"position": spaces.Box(-9.0, 9.0, (2,), np.float32), "room": spaces.Discrete(5)}),
}
ACTION_SPACES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4),
    "box": spaces.Box(-1.0, 1.0, (2, 3), np.float32),
    "multi_discrete": spaces.MultiDiscrete([2, 5]),
    "multi_binary": spaces.MultiBinary(3),
}


class Walk(gym.Env[Any, Any]):
    """Env with episodes of 1 to 6 random steps that are terminated, truncated or both, and infos of all kinds."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, observation: str = "box", action: str = "discrete", render_mode: str | None = None) -> None:
        self.observation_space = OBSERVATION_SPACES[observation]
        self.action_space = ACTION_SPACES[action]
        self.render_mode = render_mode
        self.speed = 1
        self.options: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_count, self.options = 0, options
        self.limit, self.end = int(self.np_random.integers(1, 7)), int(self.np_random.integers(3))
        info = {"limit": self.limit, "start": "here"}
        return self._observe(), info if self.limit % 2 else {"even": True, **info}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.step_count += 1
        ended = self.step_count >= self.limit
        info: dict[str, Any] = {"count": self.step_count, "place": self.np_random.random(2), "deep": {"kind": "walk"}}
        if self.step_count % 2:
            info["odd"] = float(self.step_count)
            info["deep"]["odd"] = True
        if ended:
            info["is_success"] = self.end == 0
        reward = float(self.np_random.normal() + np.sum(action))
        return self._observe(), reward, ended and self.end != 1, ended and self.end != 0, info

    def _observe(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def hello(self, name: str, loud: bool = False) -> str:
        return f"hello {name}" + "!" * loud

    def render(self) -> Any:
        return np.full((4, 6, 3), self.step_count, dtype=np.uint8)


class Ends(Walk):
    """Env whose episodes have two steps and the given end: 0 terminated, 1 truncated, 2 both."""

    def __init__(self, end: int) -> None:
        super().__init__()
        self.told = end

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        result = super().reset(**kwargs)
        self.limit, self.end = 2, self.told
        return result


class Pulse(VectorEnv[Any, Any, Any]):
    """Native vector env. Env i has episodes of i + 2 steps; it observes (episode, step), its reward is action + step.

    It returns the same buffers at each step, `final_obs` is a batch (of dicts), and no info has a mask.
    """

    def __init__(self, mode: Any, as_dict: bool = False) -> None:
        self.num_envs, self.as_dict = COPIES, as_dict
        self.metadata = {"autoreset_mode": mode}
        box = spaces.Box(0.0, 99.0, (2,), np.float32)
        self.single_observation_space = spaces.Dict({"seen": box}) if as_dict else box
        self.observation_space = batch_space(self.single_observation_space, COPIES)
        self.single_action_space = spaces.Discrete(9)
        self.action_space = batch_space(self.single_action_space, COPIES)
        self.seen, self.final = np.zeros((COPIES, 2), np.float32), np.zeros((COPIES, 2), np.float32)
        self.rewards = np.zeros(COPIES)
        self.ended, self.level = np.zeros(COPIES, dtype=bool), 3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        mask = (options or {}).get("reset_mask")
        if mask is None:
            self.seen[:] = 0
            self.ended[:] = False
            return self._form(self.seen), {"level": 3}
        self._restart(mask)
        rubbish = np.where(mask[:, None], self.seen, np.float32(77))  # the wrapper must keep the other envs' rows
        return self._form(rubbish), {"level": 3}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        mode = self.metadata["autoreset_mode"]
        late = self.ended.copy() if mode == NEXT_STEP else np.zeros(COPIES, dtype=bool)
        self.seen[~late, 1] += 1
        self.rewards[:] = np.where(late, 0, actions + self.seen[:, 1])
        self.ended[:] = ~late & (self.seen[:, 1] == np.arange(COPIES) + 2)
        infos: dict[str, Any] = {"level": 3, "steps": self.seen[:, 1], "seen": self.seen}
        if mode == SAME_STEP and self.ended.any():
            self.final[:] = self.seen
            infos = {
                "final_obs": self._form(self.final),
                "final_info": {**infos, "steps": self.final[:, 1], "seen": self.final},
                **infos,
            }
            late = self.ended
        self._restart(late)
        return self._form(self.seen), self.rewards, self.ended & True, self.ended & False, infos

    def _restart(self, mask: npt.NDArray[np.bool_]) -> None:
        self.seen[mask, 0] += 1
        self.seen[mask, 1] = 0

    def _form(self, seen: npt.NDArray[np.float32]) -> Any:
        return {"seen": seen} if self.as_dict else seen

    def names(self) -> list[str]:
        return ["a", "b", "c"]

    def silent(self) -> None:
        return None


def sync(mode: AutoresetMode, make: Callable[[], gym.Env[Any, Any]] = Walk, **options: Any) -> GymnasiumVecEnv:
    return GymnasiumVecEnv(SyncVectorEnv([make] * COPIES, autoreset_mode=mode, **options))


class Constant:
    """Model for `evaluate_policy` that always takes action 2."""

    def predict(self, observations: Any, state: Any = None, **_: Any) -> tuple[Any, Any]:
        count = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
        return np.full(count, 2), state
