"""A run that is stopped, saved, loaded and continued equals the uninterrupted run, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from actor_toys import make_impala
from agent_toys import CORES, StopAfter, make_model, same_weights, staggered_env, vectorized, weights_of
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from resume_toys import (
    SaveAt,
    cart_poles,
    cut_and_resumed,
    differences,
    disturb,
    native_env,
    results,
    single_envs,
    without_clocks,
)
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from ctrl.agents import GymnasiumVecEnv, MemoryImpala, MemoryPPO

ROLLOUT = 24 * 3
STEPS = 3 * ROLLOUT


def normalised() -> VecNormalize:
    return VecNormalize(native_env())


def wrapped() -> VecMonitor:
    return VecMonitor(VecFrameStack(native_env(), 2))


def synchronous() -> GymnasiumVecEnv:
    makers = [lambda n=n: gym.make("ctrl/Recall-v0", length=n) for n in (5, 8, 3)]  # type: ignore[misc]
    return GymnasiumVecEnv(SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP))


def late() -> GymnasiumVecEnv:
    return native_env(autoreset_mode="NextStep")


def assert_same_run(model: Any, whole: Any) -> None:
    assert differences(without_clocks(results(model)), without_clocks(results(whole))) == []


@pytest.mark.parametrize("cut", [1, 29])
@pytest.mark.parametrize("core", CORES)
def test_every_core_goes_on(core: str, cut: int, tmp_path: Path) -> None:
    def make() -> MemoryPPO:
        return make_model(native_env(), core, n_epochs=1, policy_kwargs={"previous_reward": True})

    whole = make().learn(STEPS)
    assert_same_run(cut_and_resumed(make, native_env, STEPS, cut, tmp_path / "model"), whole)


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
@pytest.mark.parametrize("cut", [7, 24, 25])
@pytest.mark.parametrize("make_env", [native_env, normalised, wrapped, synchronous, late, single_envs])
def test_every_kind_of_env_goes_on(make_env: Any, cut: int, tmp_path: Path) -> None:
    """Native tasks, alone and in wrappers of gymnasium and stable-baselines3, need no trust."""

    def make() -> MemoryPPO:
        return make_model(make_env(), "gru", n_epochs=1)

    whole = make().learn(STEPS)
    assert_same_run(cut_and_resumed(make, make_env, STEPS, cut, tmp_path / "model"), whole)


@pytest.mark.parametrize("make_env", [cart_poles, staggered_env, lambda: gym.make_vec("CartPole-v1", num_envs=2)])
def test_envs_that_can_be_pickled_go_on_with_trust(make_env: Any, tmp_path: Path) -> None:
    def make() -> MemoryPPO:
        return make_model(make_env(), "gru", n_epochs=1)

    whole = make().learn(STEPS)
    resumed = cut_and_resumed(make, make_env, STEPS, 31, tmp_path / "model", trust=True)
    assert differences(weights_of(resumed), weights_of(whole)) == []
    with pytest.warns(UserWarning, match=r"episodes begin anew: .*pickle, which only load\(\.\.\., trust=True\) reads"):
        anew = cut_and_resumed(make, make_env, STEPS, 31, tmp_path / "model")
    assert not same_weights(weights_of(anew), weights_of(whole))


def subprocesses() -> SubprocVecEnv:
    return SubprocVecEnv([lambda: gym.make("CartPole-v1")] * 2)


def asynchronous() -> GymnasiumVecEnv:
    return GymnasiumVecEnv(AsyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2))


@pytest.mark.parametrize("make_env", [subprocesses, asynchronous])
def test_envs_in_other_processes_begin_anew(make_env: Any, tmp_path: Path) -> None:
    """New episodes are not those that training began with."""
    env = make_env()
    model = make_model(env, "gru", n_epochs=1).learn(48, StopAfter(3))
    first = np.copy(model.rollout_buffer.observations[0])
    model.save(tmp_path / "model")
    env.close()
    env = make_env()
    loaded = MemoryPPO.load(tmp_path / "model", env=env, device="cpu", trust=True)
    with pytest.warns(UserWarning, match=r"episodes begin anew: .*can't be pickled") as told:
        loaded.learn(48, reset_num_timesteps=False)
    assert len([warning for warning in told if "begin anew" in str(warning.message)]) == 1
    assert loaded.num_timesteps == 2 * 3 + 48 and loaded.rollout_buffer.full
    assert loaded.rollout_buffer.episode_starts.any()
    assert not np.array_equal(first, loaded.rollout_buffer.observations[0])
    env.close()


@pytest.mark.parametrize("cut", [5, 24, 37, 71])
@pytest.mark.parametrize("refresh", [13, "recompute"])
def test_burn_in_goes_on(refresh: Any, cut: int, tmp_path: Path) -> None:
    def make() -> MemoryPPO:
        return make_model(native_env(), n_epochs=1, refresh=refresh)

    whole = make().learn(STEPS)
    assert_same_run(cut_and_resumed(make, native_env, STEPS, cut, tmp_path / "model"), whole)


@pytest.mark.parametrize("cut", [3, 12, 20])
def test_impala_in_this_process_goes_on(cut: int, tmp_path: Path) -> None:
    def make() -> MemoryImpala:
        return make_impala(native_env(), "compressive", num_actors=0)

    whole = make().learn(STEPS)
    assert_same_run(cut_and_resumed(make, native_env, STEPS, cut, tmp_path / "model"), whole)


def test_the_learner_of_impala_with_actors_goes_on(tmp_path: Path) -> None:
    """Actors begin new episodes in each call of `learn`; weights, optimizers and generators go on."""
    model = make_impala(VecNormalize(native_env()), "gru", num_actors=1).learn(ROLLOUT)
    model.save(tmp_path / "model")
    generator = torch.get_rng_state()
    loaded = MemoryImpala.load(tmp_path / "model", env=VecNormalize(native_env()), device="cpu")
    assert loaded.env.obs_rms.count == model.env.obs_rms.count  # type: ignore[union-attr]
    torch.manual_seed(3)
    with pytest.warns(UserWarning, match="episodes begin anew: those of actor processes end with them"):
        loaded._take_up_training(False)
    assert differences(weights_of(loaded), weights_of(model)) == []
    assert torch.equal(torch.get_rng_state(), generator)
    assert loaded.num_timesteps == model.num_timesteps


@pytest.mark.parametrize("call", [1, 8, 24, 40])
@pytest.mark.parametrize("core", ["compressive", "lstm"])
def test_a_file_that_a_callback_saved_goes_on(core: str, call: int, tmp_path: Path) -> None:
    """A callback sees a step that is not stored yet; a killed process leaves only what the callback saved."""

    def make() -> MemoryPPO:
        return make_model(native_env(), core, n_epochs=1, policy_kwargs={"previous_reward": True})

    whole = make().learn(STEPS, SaveAt(call, tmp_path / "model"))
    disturb()
    loaded = MemoryPPO.load(tmp_path / "model", env=native_env(), device="cpu")
    assert loaded.num_timesteps == 3 * call
    assert_same_run(loaded.learn(STEPS - 3 * call, reset_num_timesteps=False), whole)


def test_two_calls_of_learn_are_the_same_with_a_file_between(tmp_path: Path) -> None:
    """The horizon of the second call, and so its learning rates, are those of both calls together."""
    falls: dict[str, Any] = {"learning_rate": lambda left: 1e-3 * left, "clip_range": 0.3, "n_epochs": 1}
    model = make_model(normalised(), **falls).learn(STEPS)
    model.save(tmp_path / "model")
    model.learn(STEPS, reset_num_timesteps=False)  # first, since `load` seeds all generators
    loaded = MemoryPPO.load(tmp_path / "model", env=normalised(), device="cpu", trust=True)
    disturb()
    assert_same_run(loaded.learn(STEPS, reset_num_timesteps=False), model)


def test_a_loaded_model_that_is_saved_again_still_goes_on(tmp_path: Path) -> None:
    def make() -> MemoryPPO:
        return make_model(native_env(), "gru", n_epochs=1)

    whole = make().learn(STEPS)
    make().learn(STEPS, StopAfter(30)).save(tmp_path / "one")
    MemoryPPO.load(tmp_path / "one", device="cpu").save(tmp_path / "two")
    loaded = MemoryPPO.load(tmp_path / "two", env=native_env(), device="cpu")
    assert_same_run(loaded.learn(STEPS - 3 * 30, reset_num_timesteps=False), whole)


def test_without_the_saved_state_a_run_is_another(tmp_path: Path) -> None:
    """The tests above would notice what is forgotten."""

    def make() -> MemoryPPO:
        return make_model(native_env(), "gru", n_epochs=1)

    whole = make().learn(STEPS)
    make().learn(STEPS, StopAfter(30)).save(tmp_path / "model")
    for forget in ("episodes", "random"):
        loaded = MemoryPPO.load(tmp_path / "model", env=native_env(), device="cpu")
        saved = loaded._saved_state
        assert saved is not None
        loaded._saved_state = saved.without_episodes() if forget == "episodes" else saved.without_random_state()
        loaded.learn(STEPS - 3 * 30, reset_num_timesteps=False)
        assert not same_weights(weights_of(loaded), weights_of(whole)), forget


def test_normalisation_is_known_as_soon_as_a_model_is_loaded(tmp_path: Path) -> None:
    model = make_model(normalised(), "gru", n_epochs=1).learn(ROLLOUT)
    model.save(tmp_path / "model")
    env = VecNormalize(native_env(), training=False, norm_reward=False)
    MemoryPPO.load(tmp_path / "model", env=env, device="cpu")
    trained: Any = model.env
    np.testing.assert_array_equal(env.obs_rms.mean, trained.obs_rms.mean)
    assert (env.ret_rms.var, env.obs_rms.count) == (trained.ret_rms.var, trained.obs_rms.count)
    assert not env.training and not env.norm_reward
    with pytest.warns(UserWarning, match="trained in a VecNormalize, and the env that it was loaded with has none"):
        MemoryPPO.load(tmp_path / "model", env=native_env(), device="cpu")


@pytest.mark.parametrize(
    ("make_env", "reason"),
    [
        (lambda: native_env(4), "saved with 3 envs, now there are 4"),
        (lambda: native_env(length=6), "state belongs to RecallRules"),
        (single_envs, "saved with another env"),
        (
            lambda: vectorized([lambda: gym.make("ctrl/Recall-v0", length=5)] * 3, AutoresetMode.SAME_STEP),
            "another env",
        ),
    ],
)
def test_in_another_env_episodes_begin_anew(make_env: Any, reason: str, tmp_path: Path) -> None:
    make_model(native_env(), "gru", n_epochs=1).learn(ROLLOUT).save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", env=make_env(), device="cpu")
    with pytest.warns(UserWarning, match=f"episodes begin anew: .*{reason}"):
        loaded.learn(ROLLOUT, reset_num_timesteps=False)
    assert loaded.rollout_buffer.episode_starts[0].all()


def test_set_env_goes_on_where_it_is_asked_to(tmp_path: Path) -> None:
    whole = make_model(native_env(), "gru", n_epochs=1).learn(STEPS)
    make_model(native_env(), "gru", n_epochs=1).learn(STEPS, StopAfter(20)).save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", device="cpu")
    loaded.set_env(native_env(), force_reset=False)
    assert_same_run(loaded.learn(STEPS - 3 * 20, reset_num_timesteps=False), whole)


def test_learning_from_the_start_forgets_the_saved_episodes(tmp_path: Path) -> None:
    make_model(native_env(), "gru", n_epochs=1).learn(STEPS, StopAfter(20)).save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", env=native_env(), device="cpu").learn(ROLLOUT)
    assert loaded.num_timesteps == ROLLOUT
    assert loaded.rollout_buffer.episode_starts[0].all()
