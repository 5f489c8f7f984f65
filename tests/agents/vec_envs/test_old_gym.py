"""Envs of the old gym train through shimmy, and errors say how to get it; gym itself need not be installed."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import gymnasium as gym
import pytest
from agent_toys import ToldEpisodes, make_model
from stable_baselines3.common.vec_env import patch_gym


class OldEnv:
    """Env of the old gym: `reset` returns the observation alone, `step` has one `done`."""

    observation_space = ToldEpisodes.observation_space
    action_space = gym.spaces.Discrete(3)

    def __init__(self) -> None:
        self.inner = ToldEpisodes((5,))
        self.unwrapped = self

    def reset(self) -> Any:
        return self.inner.reset()[0]

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.inner.step(action)
        return observation, reward, terminated or truncated, info


class Compatible(gym.Env[Any, Any]):
    """Stand-in for shimmy's wrapper."""

    def __init__(self, env: OldEnv) -> None:
        self.env, self.observation_space, self.action_space = env, env.observation_space, env.action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.env.reset(), {}

    def step(self, action: Any) -> Any:
        observation, reward, done, info = self.env.step(action)
        return observation, reward, done, False, info


@pytest.fixture
def old_gym(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stable-baselines3 believe that gym is installed, and that `OldEnv` is one of its envs."""
    module = ModuleType("gym")
    module.Env = OldEnv  # type: ignore[attr-defined]
    monkeypatch.setattr(patch_gym, "gym", module, raising=False)
    monkeypatch.setattr(patch_gym, "gym_installed", True)


@pytest.mark.usefixtures("old_gym")
def test_an_env_of_the_old_gym_trains_through_shimmy(monkeypatch: pytest.MonkeyPatch) -> None:
    shimmy = ModuleType("shimmy")
    shimmy.GymV21CompatibilityV0 = Compatible  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shimmy", shimmy)
    with pytest.warns(UserWarning, match="OpenAI Gym environment"):
        model = make_model(OldEnv())
    assert model.learn(24).num_timesteps == 24


@pytest.mark.usefixtures("old_gym")
def test_without_shimmy_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shimmy", None)
    with pytest.raises(ValueError, match=r"old gym \(OldEnv\), which trains through shimmy: pip install 'shimmy>=2.0'"):
        make_model(OldEnv())


def test_without_gym_the_error_names_both() -> None:
    with pytest.raises(ValueError, match="got OldEnv, which inherits from none of them.*pip install gym 'shimmy>=2.0'"):
        make_model(OldEnv())
