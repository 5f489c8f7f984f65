"""`check_memory` with sound agents: it passes them and does not change them."""

from __future__ import annotations

import copy
import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_toys import CORES, ToldEpisodes, make_model, makers, same_weights, staggered_env, vectorized, weights_of
from checking_toys import build
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from ctrl.agents import check_memory
from ctrl.agents.checks.checking import LAWS

# Sound agents


@pytest.mark.parametrize("core", CORES)
def test_sound_agents_keep_all_laws(core: str) -> None:
    model = make_model(staggered_env(), core, learning_rate=1e-2).learn(24 * 3)
    findings = check_memory(model)
    assert [finding.law for finding in findings[-len(LAWS) :]] == [law.name for law in LAWS]
    assert all(finding.status == "kept" and not finding.detail for finding in findings[-len(LAWS) :])


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_sound_on_vector_envs(mode: AutoresetMode) -> None:
    check_memory(make_model(vectorized(makers(), mode), "gru", policy_kwargs={"previous_reward": True}))


@pytest.mark.parametrize(
    "action_space", [spaces.Box(-0.3, 0.4, (2, 2), np.float32), spaces.MultiDiscrete([2, 5]), spaces.MultiBinary(3)]
)
def test_sound_for_other_actions(action_space: spaces.Space[Any]) -> None:
    model = make_model(staggered_env(action_space=action_space), "gru")
    model.learn(24 * 3)
    check_memory(model)


def test_sound_on_normalised_envs_and_on_those_that_are_given() -> None:
    model = make_model(VecNormalize(staggered_env()), "gru")
    model.learn(24 * 3)
    check_memory(model)
    check_memory(model, staggered_env())
    one = make_model("CartPole-v1", "gru")
    check_memory(one, "CartPole-v1")
    check_memory(one, gym.make("CartPole-v1"))


@pytest.mark.parametrize("refresh", [5, "recompute"])
def test_sound_with_states_that_are_refreshed(refresh: int | str) -> None:
    model = make_model(staggered_env(), "gru", refresh=refresh)
    model.learn(24 * 3)
    check_memory(model)


def test_episodes_that_do_not_end_are_told() -> None:
    model = make_model(DummyVecEnv(makers([(1000,)])), "gru")  # type: ignore[arg-type]
    details = {finding.law: finding.detail for finding in check_memory(model)}
    assert details[LAWS[0].name] == "no episode ended within 128 steps"


def test_compressors_with_nothing_to_compress_are_told() -> None:
    model = make_model(DummyVecEnv(makers([(2,), (3,)])), "compressive")  # type: ignore[arg-type]
    details = {finding.law: finding.detail for finding in check_memory(model)}
    found = details["agent: training moves everything and freezes nothing"]
    assert found == "nothing in these episodes trains core.compressors.0.0.weight, core.compressors.1.0.weight"


# Nothing is changed


def test_the_model_its_env_and_the_random_numbers_are_left_alone() -> None:
    model, other = (make_model(staggered_env(), learning_rate=1e-2) for _ in range(2))
    for each in (model, other):
        torch.manual_seed(4)
        each.learn(24 * 3)
    before, buffer, steps = weights_of(model), copy.deepcopy(model.rollout_buffer.values), model.num_timesteps
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(3)
    drawn = [float(torch.rand(1)), np.random.random(), random.random()]  # noqa: NPY002
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(3)
    check_memory(model)
    assert [float(torch.rand(1)), np.random.random(), random.random()] == drawn  # noqa: NPY002
    assert same_weights(weights_of(model), before)
    assert np.array_equal(model.rollout_buffer.values, buffer) and model.num_timesteps == steps
    assert all(parameter.requires_grad for parameter in model.policy.parameters())
    for each in (model, other):  # go on as if nothing had been
        torch.manual_seed(5)
        each.learn(24 * 3, reset_num_timesteps=False)
    assert same_weights(weights_of(model), weights_of(other))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="model must be an agent with a MemoryPolicy"):
        check_memory(PPO("MlpPolicy", "CartPole-v1", device="cpu"))
    with pytest.raises(ValueError, match="model must be an agent with a MemoryPolicy.*got 3"):
        check_memory(3)  # type: ignore[arg-type]
    model = build()
    with pytest.raises(ValueError, match="unknown env id 'CartPol-v1'"):
        check_memory(model, "CartPol-v1")
    with pytest.raises(ValueError, match="env must be a gymnasium id, env or VectorEnv or a VecEnv, got 5"):
        check_memory(model, 5)
    with pytest.raises(ValueError, match="as many copies as the model's, 3, got 1"):
        check_memory(model, ToldEpisodes())
    with pytest.raises(ValueError, match="[Oo]bservation space"):
        check_memory(model, "CartPole-v1")
    with pytest.raises(ValueError, match="tolerance must be from 0 to 1, got 2"):
        check_memory(model, tolerance=2)
    model.policy.core.last = model.policy.action_net.weight * 2
    with pytest.raises(ValueError, match="a policy that can be copied.*deepcopy"):
        check_memory(model)
    model.env = None
    with pytest.raises(ValueError, match="model has no env, so env must be given"):
        check_memory(model)


def test_an_env_that_cannot_be_copied_must_be_given() -> None:
    class Uncopied(ToldEpisodes):
        def __deepcopy__(self, memo: dict[int, Any]) -> Uncopied:
            raise TypeError("cannot pickle 'SwigPyObject' object")

    model = make_model(DummyVecEnv([Uncopied]), "gru")
    with pytest.raises(ValueError, match="env must be given.*SwigPyObject"):
        check_memory(model)
    check_memory(model, Uncopied())
