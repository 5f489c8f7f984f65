"""Numbers that are not finite: the first one stops training, the error says where, and no weight has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_toys import STAGGERED, ToldEpisodes, make_model, makers, same_weights, staggered_env, vectorized, weights_of
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import DummyVecEnv

from ctrl.agents import MemoryPPO, NonFiniteError
from ctrl.agents.utils.nan_checks import check_finite


class Spoiled(ToldEpisodes):
    """Env with a bad value at one step of its first episode.

    :param what: kind of the bad value, "observation" or "reward"
    """

    def __init__(self, what: str, at: int, value: float, **options: Any) -> None:
        super().__init__(**options)
        self.what, self.at, self.value = what, at, value

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.step_count == self.at and self.episode == 0:
            if self.what == "observation":
                obs[1] = self.value
            else:
                reward = self.value
        return obs, reward, terminated, truncated, info


def spoiled(what: str, at: int, value: float = np.nan, **options: Any) -> list[Callable[[], ToldEpisodes]]:
    """Return three copies, of which number 1 is spoiled."""
    told: dict[str, Any] = {"lengths": (40,), "copy": 1, **options}
    return [*makers(STAGGERED[:1]), lambda: Spoiled(what, at, value, **told), *makers(STAGGERED[2:])]


def parameters_of(model: MemoryPPO) -> dict[str, torch.Tensor]:
    """Return the learned parameters, without the statistics of returns, which have counted the finite returns."""
    return {name: parameter.detach().clone() for name, parameter in model.policy.named_parameters()}


def assert_stops(model: MemoryPPO, message: str) -> None:
    """Expect the error in the first rollout, or in the update after it, and unchanged weights."""
    before = parameters_of(model)
    with pytest.raises(NonFiniteError, match=message) as caught:
        model.learn(24 * 3)
    assert isinstance(caught.value, ValueError)
    assert same_weights(parameters_of(model), before)
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_observation(value: float) -> None:
    """The bad value is seen after the 5th of 24 steps of 3 envs."""
    model = make_model(DummyVecEnv(spoiled("observation", 5, value)))
    assert_stops(model, r"^observation is not finite at step 15: env 1, index \[1\]$")


def test_bad_observation_at_the_end_of_a_rollout() -> None:
    model = make_model(DummyVecEnv(spoiled("observation", 24)))
    assert_stops(model, r"^observation is not finite at step 72: env 1, index \[1\]$")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("mode", [None, *AutoresetMode], ids=lambda mode: getattr(mode, "name", "dummy"))
def test_bad_reward(mode: AutoresetMode | None, value: float) -> None:
    assert_stops(make_model(vectorized(spoiled("reward", 5, value), mode)), r"^reward is not finite at step 15: env 1")


def test_bad_terminal_observation_of_a_truncated_episode() -> None:
    model = make_model(DummyVecEnv(spoiled("observation", 4, lengths=(4,), ends=("truncated",))))
    assert_stops(model, r"^terminal_observation of env 1 is not finite at step 12$")


def test_bad_terminal_observation_of_a_terminated_episode_is_never_seen() -> None:
    model = make_model(DummyVecEnv(spoiled("observation", 4, lengths=(4,), ends=("terminated",))))
    model.learn(24 * 3)


class Huge(gym.RewardWrapper[Any, Any]):
    """Wrapper that gives a reward near the largest float32 at each step."""

    def reward(self, reward: Any) -> float:
        return 3e38


class SpoiledDict(gym.ObservationWrapper[Any, Any, Any]):
    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"number": spaces.Discrete(2), "place": env.observation_space})

    def observation(self, observation: Any) -> Any:
        return {"number": 1, "place": observation}


def test_bad_part_of_a_dict_observation_is_named() -> None:
    makes: list[Any] = [lambda make=make: SpoiledDict(make()) for make in spoiled("observation", 5)]
    model = make_model(DummyVecEnv(makes), policy="MultiInputMemoryPolicy")
    assert_stops(model, r"^observation\['place'\] is not finite at step 15: env 1, index \[1\]$")


def test_bad_loss() -> None:
    """The reward is finite, but its square is not."""
    model = make_model(DummyVecEnv(spoiled("reward", 5, 1e30)), batch_size=72, normalize_values=False)
    assert_stops(model, r"^loss is not finite at step 72$")


def test_a_huge_reward_is_no_bad_loss_where_values_are_normalised() -> None:
    model = make_model(DummyVecEnv(spoiled("reward", 5, 1e30)), batch_size=72)
    with np.errstate(over="ignore", invalid="ignore"):  # the explained variance, which is only logged
        model.learn(24 * 3)
    assert 1e26 < float(model.policy.value_normalisation.scale) < 1e30


def test_bad_returns() -> None:
    """The rewards are finite, but their sum is not. The statistics have counted nothing."""
    makes: list[Any] = [lambda make=make: Huge(make()) for make in makers()]
    model = make_model(DummyVecEnv(makes))
    with np.errstate(over="ignore", invalid="ignore"):
        assert_stops(model, r"^returns is not finite at step 72$")
    assert not bool(model.policy.value_normalisation.scale)


def test_bad_reconstruction_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(staggered_env())
    unroll = model.policy.core.unroll

    def spoiled_unroll(*args: Any, **kwargs: Any) -> Any:
        unrolled = unroll(*args, **kwargs)
        return unrolled._replace(reconstruction_loss=unrolled.reconstruction_loss * torch.nan)

    monkeypatch.setattr(model.policy.core, "unroll", spoiled_unroll)
    assert_stops(model, r"^reconstruction_loss is not finite at step 72$")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["value_net.weight", "core.compressors.1.0.weight"])
def test_bad_gradient_names_the_parameter(name: str, value: float) -> None:
    """The optimizer of the other group takes no step either."""
    model = make_model(staggered_env())
    parameter = dict(model.policy.named_parameters())[name]
    parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), value))
    assert_stops(model, rf"^gradient of {name} is not finite at step 72$")


def test_the_error_comes_before_the_weights_of_later_updates_too() -> None:
    """The weights are those of the last good update, and can be saved."""
    model = make_model(DummyVecEnv(spoiled("observation", 30))).learn(24 * 3)
    before = weights_of(model)
    with pytest.raises(NonFiniteError, match=r"observation is not finite at step 90: env 1"):
        model.learn(2 * 24 * 3, reset_num_timesteps=False)
    assert same_weights(weights_of(model), before)


def test_what_is_finite_passes() -> None:
    check_finite(np.array([[1.0, -1e30]]), "x", 0)
    check_finite(np.array([[255, 0]], dtype=np.uint8), "x", 0)
    check_finite({"a": np.zeros((1, 2)), "b": torch.zeros(3)}, "x", 0)
    check_finite(torch.tensor(1.0), "x", 0)
    with pytest.raises(NonFiniteError, match=r"x\['b'\] is not finite at step 7"):
        check_finite({"a": np.zeros((1, 2)), "b": torch.tensor([0.0, torch.inf])}, "x", 7)


def test_what_float32_cannot_hold_is_named() -> None:
    with pytest.raises(NonFiniteError, match=r"observation is not finite at step 7: env 1, index \[0\]"):
        check_finite(np.array([[1.0], [1e300]]), "observation", 7)
