"""Envs that break their contract at one step, and a `VecEnv` with nothing but what stable-baselines3 asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from agent_toys import STAGGERED, ToldEpisodes, makers
from stable_baselines3.common.vec_env import VecEnv

AT, STEP = 5, 15
"""Step of the fault in its env, and the number of the training step then: three envs take one step each."""


class Faulty(gym.Wrapper[Any, Any, Any, Any]):
    """Env that returns something else at its `AT`-th step.

    :param change: function from the right result to the wrong one
    """

    def __init__(self, env: gym.Env[Any, Any], change: Callable[..., Any]) -> None:
        super().__init__(env)
        self.change, self.count = change, 0

    def step(self, action: Any) -> Any:
        self.count += 1
        result = super().step(action)
        return self.change(*result) if self.count == AT else result


def faulty(change: Callable[..., Any], wrap: Callable[[Any], Any] = lambda env: env) -> list[Callable[[], Any]]:
    """Return three copies, of which number 1 is faulty.

    :param wrap: wrapper of all of them
    """
    sound = makers(STAGGERED)
    return [
        lambda: wrap(sound[0]()),
        lambda: wrap(Faulty(ToldEpisodes((40,), copy=1), change)),
        lambda: wrap(sound[2]()),
    ]


class OneArray(ToldEpisodes):
    """`ToldEpisodes` that fills the same array and the same info in each step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.array, self.info = np.zeros(3, np.float32), dict[str, Any]()

    def observe(self) -> np.ndarray:
        array = getattr(self, "array", np.zeros(3, np.float32))
        array[:] = super().observe()
        return array

    def step(self, action: Any) -> Any:
        *rest, info = super().step(action)
        self.info.pop("is_success", None)
        self.info.update(info)
        return (*rest, self.info)


class BareVecEnv(VecEnv):
    """`VecEnv` that lacks all that stable-baselines3 can do without, and fills the same arrays in each step.

    :param lengths: of the episodes of each copy; all end by termination
    :param change: function from a step's result to what is returned instead
    """

    def __init__(
        self, lengths: Sequence[Sequence[int]] = STAGGERED, change: Callable[..., Any] = lambda *result: result
    ) -> None:
        # No call of the base class: no reset_infos, no seeds, no options, no render_mode, no metadata.
        self.envs_inside = [make() for make in makers(lengths, ends=("terminated",))]
        self.num_envs, self.change = len(self.envs_inside), change
        self.observation_space = self.envs_inside[0].observation_space
        self.action_space = self.envs_inside[0].action_space
        self.seen, self.rewards = np.zeros((self.num_envs, 3), np.float64), np.zeros(self.num_envs, np.float64)
        self.dones = np.zeros(self.num_envs, np.uint8)

    def reset(self) -> Any:
        for env, inside in enumerate(self.envs_inside):
            self.seen[env] = inside.reset()[0]
        return self.seen

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        infos = []
        for env, inside in enumerate(self.envs_inside):
            self.seen[env], self.rewards[env], self.dones[env], _, info = inside.step(self.actions[env])
            if self.dones[env]:
                self.seen[env] = inside.reset()[0]
            infos.append(info)
        return self.change(self.seen, self.rewards, self.dones, tuple(infos))

    def seed(self, seed: int | None = None) -> Any:
        raise NotImplementedError

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        raise NotImplementedError

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass
