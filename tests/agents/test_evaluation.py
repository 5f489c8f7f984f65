"""`evaluate_policy` and `EvalCallback` of our own: vector envs, action masks, and policies that see rewards."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from actor_toys import BOTH, make_impala
from agent_toys import MODES, ToldEpisodes, make_model, makers, staggered_env
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from mask_toys import MostlyIllegal, mask_makers
from stable_baselines3.common.callbacks import StopTrainingOnRewardThreshold
from stable_baselines3.common.evaluation import evaluate_policy as of_sb3
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from ctrl.agents import EvalCallback, MemoryPPO, as_vec_env, evaluate_policy

LENGTHS = ((5, 3), (7,), (2, 9))


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_a_vector_env_gives_whole_episodes(mode: AutoresetMode) -> None:
    """The return of an episode of n steps is 1 + 2 + … + n."""
    envs = SyncVectorEnv(makers(LENGTHS), autoreset_mode=mode)
    returns, lengths = evaluate_policy(make_model(staggered_env()), envs, 6, return_episode_rewards=True)
    assert isinstance(lengths, list)
    assert sorted(lengths) == [2, 3, 5, 7, 7, 9]
    assert returns == [length * (length + 1) / 2 for length in lengths]


def test_the_env_of_as_vec_env_goes_into_stable_baselines3s_own_function() -> None:
    envs = as_vec_env(SyncVectorEnv(makers(LENGTHS), autoreset_mode=AutoresetMode.SAME_STEP))
    model = make_model(staggered_env())
    theirs = of_sb3(model, envs, 6, return_episode_rewards=True)
    again = as_vec_env(SyncVectorEnv(makers(LENGTHS), autoreset_mode=AutoresetMode.SAME_STEP))
    assert theirs == evaluate_policy(model, again, 6, return_episode_rewards=True)


@pytest.mark.parametrize("kind", ["env", "monitored", "vec env", "native"])
def test_envs_of_other_kinds(kind: str) -> None:
    env: Any = {
        "env": lambda: ToldEpisodes((5,)),
        "monitored": lambda: Monitor(ToldEpisodes((5,))),
        "vec env": lambda: VecMonitor(DummyVecEnv(makers(((5,), (5,))))),  # type: ignore[arg-type]
        "native": lambda: gym.make_vec("ctrl.envs:ctrl/Recall-v0", num_envs=3, length=4),
    }[kind]()
    model = make_model(env)
    mean, _ = evaluate_policy(model, env, 3)
    assert isinstance(mean, float) and (mean == 15.0 or kind == "native")
    assert evaluate_policy(model.policy, env, 3)[0] == mean or kind == "native"


def test_any_other_model_with_predict_is_evaluated_too() -> None:
    class Still:
        def predict(self, observation: Any, **_: Any) -> tuple[np.ndarray, None]:
            return np.zeros(len(observation), dtype=np.int64), None

    assert evaluate_policy(Still(), SyncVectorEnv(makers(((4,),)), autoreset_mode=AutoresetMode.SAME_STEP), 2)[0] == 10


def test_what_is_no_env_is_refused() -> None:
    with pytest.raises(ValueError, match="env must be a gymnasium env"):
        evaluate_policy(make_model(staggered_env()), 3)


def test_callbacks_and_thresholds_are_passed_on() -> None:
    seen: list[float] = []
    model, env = make_model(staggered_env()), ToldEpisodes((5,))
    evaluate_policy(model, env, 1, callback=lambda local, _: seen.append(local["reward"]))
    assert seen == [1, 2, 3, 4, 5]
    with pytest.raises(AssertionError, match="below threshold"):
        evaluate_policy(model, ToldEpisodes((5,)), 1, reward_threshold=16)


@BOTH
def test_masks_are_kept_to(make: Any) -> None:
    """The env raises an error at the first illegal action."""
    model = make(DummyVecEnv(mask_makers(spaces.Discrete(9))))
    evaluate_policy(model, SyncVectorEnv(mask_makers(spaces.Discrete(9)), autoreset_mode=AutoresetMode.NEXT_STEP), 6)
    free = make(DummyVecEnv(mask_makers(spaces.Discrete(9), strict=False)), use_masking=False)
    env = DummyVecEnv([lambda: MostlyIllegal(spaces.Discrete(9))])
    with pytest.raises(AssertionError, match="illegal"):
        evaluate_policy(free, env, 6, deterministic=False, warn=False)


def test_rewards_are_told_to_policies_that_see_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(staggered_env(), policy_kwargs={"previous_reward": True})
    seen: list[float] = []
    embed = model.policy.embed
    monkeypatch.setattr(model.policy, "embed", lambda o, a, r: seen.append(r.item()) or embed(o, a, r))  # type: ignore[func-returns-value]
    evaluate_policy(model, ToldEpisodes((5,)), 2)
    assert seen == [0, 1, 2, 3, 4] * 2


# The callback


@MODES
def test_eval_callback_with_a_vector_env(mode: AutoresetMode | None, tmp_path: Path) -> None:
    fives = ((5,), (5,))
    envs: Any = SyncVectorEnv(makers(fives), autoreset_mode=mode) if mode else DummyVecEnv(makers(fives))  # type: ignore[arg-type]
    callback = EvalCallback(
        envs,
        eval_freq=24,
        n_eval_episodes=4,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
        warn=False,
    )
    model = make_model(SyncVectorEnv(makers(), autoreset_mode=AutoresetMode.SAME_STEP))
    with pytest.warns(UserWarning, match="not of the same type") if mode is None else nullcontext():
        model.learn(2 * 72, callback)
    assert callback.best_mean_reward == 15.0
    assert np.load(tmp_path / "evaluations.npz")["ep_lengths"].tolist() == [[5] * 4] * 2
    assert MemoryPPO.load(tmp_path / "best_model", device="cpu").num_timesteps == 72
    assert callback.model is model


def test_eval_callback_keeps_to_masks_tells_rewards_and_stops() -> None:
    train = DummyVecEnv(mask_makers(spaces.Discrete(9)))
    callback = EvalCallback(
        DummyVecEnv(mask_makers(spaces.Discrete(9))),
        callback_on_new_best=StopTrainingOnRewardThreshold(reward_threshold=-1.0, verbose=0),
        eval_freq=10,
        n_eval_episodes=3,
        verbose=0,
        warn=False,
    )
    model = make_impala(train, policy_kwargs={"previous_reward": True})
    assert model.learn(240, callback).num_timesteps == 30


def test_eval_callback_follows_normalisation() -> None:
    train = VecNormalize(as_vec_env(SyncVectorEnv(makers(), autoreset_mode=AutoresetMode.SAME_STEP)))
    held_out = SyncVectorEnv(makers(LENGTHS), autoreset_mode=AutoresetMode.SAME_STEP)
    normalised = VecNormalize(as_vec_env(held_out), training=False, norm_reward=False)
    callback = EvalCallback(normalised, eval_freq=24, n_eval_episodes=3, verbose=0)
    make_model(train).learn(72, callback)
    np.testing.assert_array_equal(normalised.obs_rms.mean, train.obs_rms.mean)  # type: ignore[union-attr]
