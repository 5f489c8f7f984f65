"""Saved and loaded agents: a loaded agent acts and continues to learn exactly like the original."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from actor_toys import BOTH, make_impala
from agent_toys import STAGGERED, make_model, makers, same_weights, staggered_env, vectorized, weights_of
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import DummyVecEnv

from ctrl.agents import MemoryImpala, MemoryPPO, MlpMemoryPolicy
from ctrl.agents.saving.model_file import read_model_file

STEPS = 24 * 3
CORES = pytest.mark.parametrize("core", ["compressive", "lstm"])


def trained(core: str = "compressive", make: Any = make_model, **options: Any) -> Any:
    kwargs = {"previous_reward": True}
    return make(staggered_env(), core, memory_learning_rate=2e-3, policy_kwargs=kwargs, **options).learn(2 * STEPS)


def assert_same_optimizer(one: torch.optim.Optimizer | None, other: torch.optim.Optimizer | None) -> None:
    if one is None or other is None:
        assert one is other
        return
    first, second = one.state_dict(), other.state_dict()
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys() and first["state"]
    for key, entry in first["state"].items():
        assert all(torch.equal(entry[name], second["state"][key][name]) for name in entry)
        assert float(entry["step"]) > 0


def predictions(model: MemoryPPO, envs: int = 4, steps: int = 12) -> list[Any]:
    """Return all results of `predict` on a stream of observations, states included."""
    random, state, found = np.random.default_rng(0), None, []
    for _ in range(steps):
        obs = random.normal(size=(envs, 3)).astype(np.float32)
        actions, state = model.predict(obs, state, deterministic=True, reward=np.ones(envs))
        found += [actions, *state]  # type: ignore[misc]
    return found


@CORES
def test_all_that_was_learned_is_kept(core: str, tmp_path: Path) -> None:
    model = trained(core)
    model.save(tmp_path / "agent")
    loaded = MemoryPPO.load(tmp_path / "agent", device="cpu")
    assert_same_optimizer(loaded.policy.optimizer, model.policy.optimizer)
    assert_same_optimizer(loaded.policy.memory_optimizer, model.policy.memory_optimizer)
    assert (loaded.policy.memory_optimizer is None) == (core == "lstm")
    for one, other in zip(predictions(loaded), predictions(model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert loaded.num_timesteps == model.num_timesteps


IMPALA: dict[str, Any] = {"reward_clipping": "abs_one", "rho_bar": 2.0, "window_slots": 3}


@pytest.mark.parametrize(
    ("make", "core", "options"),
    [
        (make_model, "compressive", {}),
        (make_model, "lstm", {}),
        (make_impala, "compressive", IMPALA),
        (make_impala, "lstm", {**IMPALA, "use_rms_prop": True}),
    ],
    ids=["ppo-compressive", "ppo-lstm", "impala-compressive", "impala-lstm"],
)
def test_learning_goes_on_as_if_nothing_had_happened(
    make: Any, core: str, options: dict[str, Any], tmp_path: Path
) -> None:
    """Both the loaded and the original agent start over in the same fresh envs, with the same random numbers."""
    model = trained(core, make, **options)
    model.save(tmp_path / "agent")
    loaded = type(model).load(tmp_path / "agent", device="cpu")
    assert same_weights(weights_of(loaded), weights_of(model))
    names = {*model.logged_hparams, *options, "memory_learning_rate", "memory_max_grad_norm"}
    names |= {"actor_timeout", "max_restarts"} if make is make_impala else set()
    assert {name: getattr(loaded, name) for name in names} == {name: getattr(model, name) for name in names}
    results = []
    for agent in (model, loaded):
        agent.set_env(staggered_env())
        agent.set_random_seed(5)
        agent.learn(2 * STEPS, reset_num_timesteps=False)
        results.append(weights_of(agent))
        assert agent.num_timesteps == 4 * STEPS
    assert same_weights(*results)


@BOTH
def test_forgetting_an_optimizer_would_be_noticed(make: Any, tmp_path: Path) -> None:
    model = trained(make=make)
    model.save(tmp_path / "agent")
    results = []
    for forgotten in (None, "optimizer", "memory_optimizer"):
        loaded = type(model).load(tmp_path / "agent", staggered_env(), device="cpu")
        loaded.set_random_seed(5)
        if forgotten:
            getattr(loaded.policy, forgotten).state.clear()
        results.append(weights_of(loaded.learn(STEPS)))
    assert not same_weights(results[0], results[1]) and not same_weights(results[0], results[2])


@BOTH
@CORES
@pytest.mark.parametrize("envs", [1, 5])
def test_load_with_another_number_of_envs(core: str, envs: int, make: Any, tmp_path: Path) -> None:
    model = trained(core, make)
    model.save(tmp_path / "agent")
    env = DummyVecEnv(makers((STAGGERED * 2)[:envs]))  # type: ignore[arg-type]
    loaded = type(model).load(tmp_path / "agent", env, device="cpu")
    before = weights_of(loaded)
    loaded.learn(24 * envs)
    assert loaded.n_envs == envs and loaded.rollout_buffer.n_envs == envs
    assert loaded.num_timesteps == 24 * envs
    assert loaded.logger.name_to_value["train/first_ratio_deviation"] < 1e-5
    assert not same_weights(weights_of(loaded), before)


def test_load_with_a_gymnasium_vector_env(tmp_path: Path) -> None:
    trained().save(tmp_path / "agent")
    envs = vectorized(makers(), AutoresetMode.NEXT_STEP).env  # type: ignore[union-attr]
    loaded = MemoryPPO.load(tmp_path / "agent", envs, device="cpu")  # type: ignore[arg-type]
    assert loaded.learn(STEPS).num_timesteps == STEPS


def test_load_without_an_env_then_set_one(tmp_path: Path) -> None:
    trained().save(tmp_path / "agent")
    loaded = MemoryPPO.load(tmp_path / "agent", device="cpu")
    assert loaded.get_env() is None
    predictions(loaded)
    loaded.set_env(staggered_env())
    loaded.learn(STEPS)
    assert loaded.logger.name_to_value["train/first_ratio_deviation"] < 1e-5


def test_set_env_starts_new_episodes() -> None:
    """The memory of the old env's episodes does not reach the new env."""
    model = trained()
    model.set_env(staggered_env())
    model.learn(STEPS, reset_num_timesteps=False)
    assert model.num_timesteps == 3 * STEPS
    assert model.rollout_buffer.episode_starts[0].all()
    assert model.rollout_buffer.observations[0, :, 1:].tolist() == [[0, 0]] * 3


def test_set_env_refuses_what_does_not_fit() -> None:
    model = trained()
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(DummyVecEnv(makers(STAGGERED[:2])))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Action spaces do not match"):
        model.set_env(staggered_env(action_space=spaces.Discrete(5)))
    with pytest.raises(ValueError, match=r"Action spaces do not match: Discrete\(3\) != Discrete\(3, start=1\)"):
        model.set_env(staggered_env(action_space=spaces.Discrete(3, start=1)))


def test_weights_of_another_core_are_refused(tmp_path: Path) -> None:
    trained("lstm").save(tmp_path / "agent")
    with pytest.raises(Exception, match="memory_optimizer|Missing key|do not match"):
        make_model(staggered_env()).set_parameters(tmp_path / "agent")


def test_a_saved_file_holds_no_memory_of_episodes(tmp_path: Path) -> None:
    model = trained()
    model.save(tmp_path / "agent")
    assert model._actor is not None
    assert "_actor" not in read_model_file(tmp_path / "agent", trust=False).data["attributes"]
    assert MemoryPPO.load(tmp_path / "agent", device="cpu")._actor is None


@CORES
def test_what_is_saved(core: str, tmp_path: Path) -> None:
    """The file has weights and optimizers by name, and no pickle."""
    model = trained(core)
    model.save(tmp_path / "agent")
    expected = {"policy", "policy.optimizer"} | ({"policy.memory_optimizer"} if core == "compressive" else set())
    file = read_model_file(tmp_path / "agent", trust=False)
    assert set(model.get_parameters()) == expected == {"policy", *file.data["optimizers"]}
    assert set(file.tensors) == {"policy", "optimizer", "attributes", "training"} and set(file.json) == {"training"}
    assert not file.pickled
    assert {name.rpartition("/")[2] for name in file.tensors["optimizer"]} == {"step", "exp_avg", "exp_avg_sq"}
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        assert "trusted.pickle" not in archive.namelist()


@CORES
def test_a_policy_alone_can_be_saved(core: str, tmp_path: Path) -> None:
    model = trained(core)
    model.policy.save(str(tmp_path / "policy"))
    policy = MlpMemoryPolicy.load(str(tmp_path / "policy"), device="cpu")
    assert all(torch.equal(tensor, policy.state_dict()[name]) for name, tensor in model.policy.state_dict().items())
    assert policy._get_constructor_parameters()["memory_lr"] == model.memory_learning_rate
    obs = np.zeros((2, 3), dtype=np.float32)
    actions, state = policy.predict(obs, deterministic=True)
    again, _ = policy.predict(obs, state, deterministic=True, reward=np.ones(2))
    expected, state = model.predict(obs, deterministic=True)
    assert actions.tolist() == expected.tolist()
    assert again.tolist() == model.predict(obs, state, deterministic=True, reward=np.ones(2))[0].tolist()


def test_with_burn_in_learning_goes_on(tmp_path: Path) -> None:
    model = make_model(staggered_env(), "gru", refresh=13).learn(2 * STEPS)
    model.save(tmp_path / "agent")
    loaded = MemoryPPO.load(tmp_path / "agent", device="cpu")
    assert loaded.refresh == 13 and loaded.rollout_buffer.burn_in == 13
    weights = []
    for agent in (model, loaded):
        agent.set_env(staggered_env())
        agent.set_random_seed(5)
        weights.append(weights_of(agent.learn(STEPS, reset_num_timesteps=False)))
    for name, tensor in weights[0].items():  # a reset removes the difference of their histories
        torch.testing.assert_close(tensor, weights[1][name], atol=1e-4, rtol=0)


def test_an_old_agent_has_no_burn_in(tmp_path: Path) -> None:
    """An old agent was saved before the option `refresh` existed."""
    model = make_model(staggered_env(), "gru")
    del model.refresh
    model.save(tmp_path / "agent")
    assert MemoryPPO.load(tmp_path / "agent", device="cpu").refresh == "none"


def test_learning_rate_functions_survive(tmp_path: Path) -> None:
    model = make_model(gym.make("CartPole-v1"), memory_learning_rate=lambda left: 0.5 * left).learn(24)
    model.save(tmp_path / "agent")
    loaded = MemoryPPO.load(tmp_path / "agent", device="cpu", trust=True)
    assert loaded._memory_lr_schedule(0.5) == 0.25


@pytest.mark.parametrize("kind", [MemoryPPO, MemoryImpala])
def test_without_an_env_learning_is_refused(kind: Any, tmp_path: Path) -> None:
    kind("MlpMemoryPolicy", "CartPole-v1", policy_kwargs={"core": "gru"}).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"no env to learn in: give load one \(env=...\), or call set_env"):
        kind.load(tmp_path / "model").learn(1)


@pytest.mark.parametrize("kind", [MemoryPPO, MemoryImpala])
@pytest.mark.parametrize("env", [None, [3]])
def test_what_is_no_env_is_refused(kind: Any, env: Any) -> None:
    with pytest.raises(ValueError, match=rf"env must be a gymnasium env, .*, got {re.escape(repr(env))}"):
        kind("MlpMemoryPolicy", env)


def test_a_function_that_returns_no_env_is_refused() -> None:
    with pytest.raises(ValueError, match="env must be a gymnasium env, .*, got None"):
        MemoryImpala("MlpMemoryPolicy", lambda: None)  # type: ignore[arg-type]
