"""Change of `MemoryPPO` to `MemoryImpala` in a script: only this word changes, and most logged values are the same."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from agent_toys import CORES, Scalars, ToldEpisodes, staggered_env
from stable_baselines3.common.callbacks import CallbackList, EvalCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from ctrl.agents import MemoryImpala, MemoryPPO

Algorithm = type[MemoryPPO] | type[MemoryImpala]

PPO_ONLY = {
    *("window", "refresh", "n_epochs", "gae_lambda"),
    *("clip_range", "clip_range_vf", "normalize_advantage", "target_kl"),
}


def test_arguments_of_ppo_that_impala_does_not_take() -> None:
    ppo, impala = (inspect.signature(kind).parameters for kind in (MemoryPPO, MemoryImpala))
    assert ppo.keys() - impala.keys() == PPO_ONLY
    differing = [name for name in ppo.keys() & impala.keys() if ppo[name].default != impala[name].default]
    assert differing == ["vf_coef"]  # V-trace needs good values


def script(algorithm: Algorithm, folder: Path) -> set[str]:
    """Run a typical user's script, the same for both algorithms; return the names of the logged values."""
    env = VecNormalize(VecMonitor(staggered_env()))
    held_out = VecNormalize(VecMonitor(DummyVecEnv([ToldEpisodes])), training=False, norm_reward=False)
    small = {"core": "compressive", "core_kwargs": CORES["compressive"], "encoder_arch": [8], "net_arch": [8]}
    model = algorithm("MlpMemoryPolicy", env, n_steps=12, gamma=0.9, policy_kwargs=small, seed=0, device="cpu")
    scalars = Scalars()
    model.set_logger(Logger(None, [scalars]))
    evaluation = EvalCallback(held_out, eval_freq=24, n_eval_episodes=2, verbose=0)
    model.learn(500, CallbackList([evaluation]))
    assert evaluation.last_mean_reward == 15.0
    assert held_out.obs_rms.count > 400, "of what training has seen"  # type: ignore[union-attr]
    model.save(folder / "agent")
    loaded = algorithm.load(folder / "agent", env, device="cpu")
    seen = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    (action, state), (again, _) = (agent.predict(seen, deterministic=True) for agent in (model, loaded))
    np.testing.assert_array_equal(action, again)
    action, _ = loaded.predict(seen, state, np.zeros(3, dtype=bool))
    assert all(env.action_space.contains(each) for each in action)
    return {key for key in scalars.values if key.startswith(("train/", "rollout/", "memory/"))}


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[Algorithm, set[str]]:
    return {kind: script(kind, tmp_path_factory.mktemp(kind.__name__)) for kind in (MemoryPPO, MemoryImpala)}


def test_the_same_script_logs_the_same_of_both(logged: dict[Algorithm, set[str]]) -> None:
    shared = logged[MemoryPPO] & logged[MemoryImpala]
    train = "loss value_loss policy_gradient_loss entropy_loss explained_variance grad_norm learning_rate n_updates "
    train += "value_mean value_scale"
    memory = "state_bytes reconstruction_loss/layer0/tier1 attention_mass/layer1/tier0 attended_age/layer0 grad_norm"
    rollout = "ep_rew_mean ep_len_mean success_rate"
    for part, names in (("train", train), ("memory", memory), ("rollout", rollout)):
        assert shared >= {f"{part}/{name}" for name in names.split()}


def test_what_only_one_of_them_logs(logged: dict[Algorithm, set[str]]) -> None:
    """All windows of actors may be older than the weights. Then no first ratio is logged."""
    ppo, impala = logged[MemoryPPO], logged[MemoryImpala] - {"train/first_ratio_deviation"}
    clipping = {f"train/{name}" for name in ("approx_kl", "clip_fraction", "clip_range", "first_ratio_deviation")}
    assert ppo - impala == clipping | {"memory/staleness"}
    assert impala - ppo == {"train/policy_lag", "train/rho_mean", "train/rho_clip_fraction"}
