"""Compatibility of `MemoryPPO` with stable-baselines3: envs of all kinds, wrappers, callbacks, logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_toys import (
    STAGGERED,
    AtRolloutEnd,
    ToldEpisodes,
    make_model,
    makers,
    same_weights,
    staggered_env,
    weights_of,
)
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ctrl.envs  # noqa: F401  registers the task
from ctrl.agents import GymnasiumVecEnv, MemoryPPO

STEPS = 24 * 3


def told(length: int = 5, **options: Any) -> Monitor[Any, Any]:
    return Monitor(ToldEpisodes((length,), **options))


# Envs


@pytest.mark.parametrize("kind", ["id", "env", "vec env", "vector env", "vector env of an id", "vector env, native"])
def test_envs_of_all_kinds(kind: str) -> None:
    env: Any = {
        "id": lambda: "CartPole-v1",
        "env": lambda: gym.make("CartPole-v1"),
        "vec env": lambda: make_vec_env("CartPole-v1", n_envs=3),
        "vector env": lambda: SyncVectorEnv(makers(), autoreset_mode=AutoresetMode.NEXT_STEP),
        "vector env of an id": lambda: gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync"),
        "vector env, native": lambda: gym.make_vec("ctrl/Recall-v0", num_envs=3, length=8),
    }[kind]()
    model = make_model(env)
    assert model.n_envs == (1 if kind in ("id", "env") else 3)
    assert isinstance(model.get_env(), GymnasiumVecEnv) == kind.startswith("vector env")
    model.learn(2 * 24 * model.n_envs)
    assert model.num_timesteps == 2 * 24 * model.n_envs
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) > 0
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5


def test_an_env_is_monitored_by_itself() -> None:
    """Episodes of 5 steps have the return 1 + 2 + 3 + 4 + 5."""
    model = make_model(ToldEpisodes((5,))).learn(24)
    assert [(info["r"], info["l"]) for info in model.ep_info_buffer or []] == [(15, 5)] * 4
    assert list(model.ep_success_buffer or []) == [True, False, True, False]


# Evaluation


def test_evaluate_policy_with_more_and_fewer_envs_than_in_training() -> None:
    model = make_model(staggered_env())
    for lengths in ([(5,)], [(5,), (3, 4), (7,), (2,), (9, 1)]):
        env = VecMonitor(DummyVecEnv(makers(lengths)))  # type: ignore[arg-type]
        returns, counted = evaluate_policy(model, env, n_eval_episodes=6, return_episode_rewards=True)  # type: ignore[arg-type]
        assert isinstance(counted, list)
        assert returns == [length * (length + 1) / 2 for length in counted]


def test_evaluate_policy_never_tells_the_reward() -> None:
    """The previous reward is off by default, because an agent trained with it would be evaluated without it.

    `evaluate_policy` passes an observation, a state and episode starts to `predict`. So the default agent works with it
    unchanged. An agent that needs rewards gets an error instead of zeros.
    """
    env = DummyVecEnv([lambda: told()] * 1)
    evaluate_policy(make_model(env), env, n_eval_episodes=2)
    with pytest.raises(ValueError, match="previous_reward=True, so predict.* needs reward=, got None"):
        evaluate_policy(make_model(env, policy_kwargs={"previous_reward": True}), env, n_eval_episodes=2)


def test_evaluate_policy_resets_the_memory_of_ended_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(staggered_env())
    seen: list[tuple[Any, ...]] = []
    predict = model.policy.predict

    def spy(observation: Any, state: Any, episode_start: Any, deterministic: bool, reward: Any = None) -> Any:
        actions, after = predict(observation, state, episode_start, deterministic, reward)
        assert after is not None
        seen.append((observation, after[0]))
        return actions, after

    monkeypatch.setattr(model.policy, "predict", spy)
    env = VecMonitor(DummyVecEnv(makers()))  # type: ignore[arg-type]
    evaluate_policy(model, env, n_eval_episodes=9)  # type: ignore[arg-type]
    compared = 0
    for observation, clock in seen:
        asked = observation[:, 1] < 3  # each env for 3 episodes; SB3 reports no more starts to those that are through
        assert clock[asked].tolist() == (observation[asked, 2] + 1).tolist()
        compared += int(asked.sum())
    assert compared == (5 + 3 + 11) + 3 * 7 + (2 + 19 + 2)


# Callbacks


def test_eval_callback_keeps_the_best_model(tmp_path: Path) -> None:
    callback = EvalCallback(
        told(), eval_freq=24, n_eval_episodes=3, best_model_save_path=str(tmp_path), log_path=str(tmp_path), verbose=0
    )
    make_model(told()).learn(48, callback)
    assert callback.best_mean_reward == 15.0
    assert np.load(tmp_path / "evaluations.npz")["ep_lengths"].tolist() == [[5, 5, 5]] * 2
    assert MemoryPPO.load(tmp_path / "best_model", device="cpu").num_timesteps == 24


def test_eval_callback_can_stop_training() -> None:
    threshold = StopTrainingOnRewardThreshold(reward_threshold=14.0, verbose=0)
    callback = EvalCallback(told(), callback_on_new_best=threshold, eval_freq=10, n_eval_episodes=1, verbose=0)
    assert make_model(told()).learn(240, callback).num_timesteps == 10


def test_checkpoints_are_the_agent_at_that_time(tmp_path: Path) -> None:
    kept: list[Any] = []
    callbacks: list[BaseCallback] = [
        CheckpointCallback(save_freq=30, save_path=str(tmp_path), name_prefix="agent"),
        AtRolloutEnd(lambda model: kept.append(weights_of(model))),
    ]
    make_model(told()).learn(72, callbacks)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent_30_steps.zip", "agent_60_steps.zip"]
    for steps, rollout in ((30, 1), (60, 2)):
        loaded = MemoryPPO.load(tmp_path / f"agent_{steps}_steps", device="cpu")
        assert loaded.num_timesteps == steps
        assert same_weights(weights_of(loaded), kept[rollout])


def test_stop_on_episodes() -> None:
    model = make_model(told()).learn(240, StopTrainingOnMaxEpisodes(max_episodes=3, verbose=0))
    assert model.num_timesteps == 15


def test_a_function_is_a_callback_and_sees_the_step() -> None:
    """The names in `locals` are those that callbacks written for SB3's PPO look for."""
    seen: list[set[str]] = []

    def callback(local: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append(set(local))
        return True

    make_model(told()).learn(24, callback)
    assert len(seen) == 24
    assert all({"actions", "rewards", "dones", "infos", "new_obs", "env"} <= names for names in seen)


@pytest.mark.filterwarnings("ignore:rich is experimental")  # by tqdm, of itself
def test_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []
    end = ProgressBarCallback._on_training_end

    def spy(callback: ProgressBarCallback) -> None:
        bars.append((callback.pbar.n, callback.pbar.total))
        end(callback)

    monkeypatch.setattr(ProgressBarCallback, "_on_training_end", spy)
    make_model(told()).learn(48, progress_bar=True)
    assert bars == [(48, 48)]


def test_logs_are_written_as_often_and_over_as_many_episodes_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model(told(), verbose=1, stats_window_size=2)
    model.learn(4 * 24, log_interval=2)
    assert capsys.readouterr().out.count("total_timesteps") == 2
    assert model.ep_info_buffer is not None and model.ep_info_buffer.maxlen == 2


def test_verbose_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    make_model(told(), verbose=1).learn(48)
    printed = capsys.readouterr().out
    for word in ("ep_rew_mean", "first_ratio_deviation", "state_bytes", "success_rate"):
        assert word in printed


# VecNormalize


def test_vec_normalize() -> None:
    env = VecNormalize(VecMonitor(staggered_env()), gamma=0.9)
    model = make_model(env, learning_rate=1e-2, policy_kwargs={"previous_reward": True})
    model.learn(3 * STEPS)
    assert model.get_vec_normalize_env() is env
    assert env.obs_rms.count > 3 * STEPS  # type: ignore[union-attr]
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5
    assert np.abs(model.rollout_buffer.observations).max() <= env.clip_obs


def test_a_time_limit_bootstraps_from_the_normalised_terminal_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    env = VecNormalize(DummyVecEnv(makers(STAGGERED, ends=("truncated",))), norm_reward=False)  # type: ignore[arg-type]
    model = make_model(env)
    seen: list[float] = []
    values_after = model.policy.values_after

    def spy(obs: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.append(float(obs.abs().max()))
        return values_after(obs, *args)

    monkeypatch.setattr(model.policy, "values_after", spy)
    terminal: list[np.ndarray] = []

    def keep(local: dict[str, Any], _: dict[str, Any]) -> bool:
        terminal.extend(info["terminal_observation"] for info in local["infos"] if "terminal_observation" in info)
        return True

    model.learn(STEPS, keep)
    assert len(terminal) > 5 and len(seen) > 3
    assert max(seen) == pytest.approx(max(float(np.abs(obs).max()) for obs in terminal), rel=1e-5)
    assert max(seen) < 10 < max(max(lengths) for lengths in STAGGERED), "the last step of an episode, unnormalised"


def test_eval_callback_takes_the_statistics_over(tmp_path: Path) -> None:
    def normalized(**options: Any) -> VecNormalize:
        return VecNormalize(DummyVecEnv([told]), **options)  # type: ignore[list-item]

    evaluation = normalized(training=False, norm_reward=False)
    callback = EvalCallback(evaluation, eval_freq=24, n_eval_episodes=2, verbose=0)
    model = make_model(normalized()).learn(48, callback)
    assert callback.last_mean_reward == 15.0
    training = model.get_vec_normalize_env()
    assert training is not None
    np.testing.assert_array_equal(evaluation.obs_rms.mean, training.obs_rms.mean)  # type: ignore[union-attr]


# TensorBoard


def test_tensorboard(tmp_path: Path) -> None:
    model = make_model(VecMonitor(staggered_env()), tensorboard_log=str(tmp_path), clip_range_vf=0.2)
    model.learn(3 * STEPS)
    events = EventAccumulator(str(tmp_path / "MemoryPPO_1")).Reload()
    tags = events.Tags()
    scalars = set(tags["scalars"])
    train = "approx_kl clip_fraction clip_range clip_range_vf entropy_loss explained_variance first_ratio_deviation "
    train += "grad_norm learning_rate loss policy_gradient_loss value_loss"
    places = [f"{layer}/{tier}" for layer in ("layer0", "layer1") for tier in ("tier0", "tier1")]
    assert scalars >= {f"train/{name}" for name in train.split()}
    assert scalars >= {"rollout/ep_rew_mean", "rollout/ep_len_mean", "rollout/success_rate", "time/fps"}
    assert scalars >= {"memory/grad_norm", "memory/learning_rate", "memory/state_bytes", "memory/staleness"}
    assert scalars >= {f"memory/attention_mass/{place}" for place in places}
    assert scalars >= {f"memory/reconstruction_loss/{place}" for place in places if place.endswith("tier1")}
    assert scalars >= {"memory/attended_age/layer0", "memory/attended_age/layer1"}
    assert [event.step for event in events.Scalars("rollout/ep_rew_mean")] == [STEPS, 2 * STEPS, 3 * STEPS]

    masses = [events.Scalars(f"memory/attention_mass/layer0/{tier}")[-1].value for tier in ("tier0", "tier1")]
    assert sum(masses) == pytest.approx(1, abs=1e-5) and min(masses) > 0
    assert "_hparams_/session_start_info" in events.summary_metadata
    hparams = hparams_of(events)
    assert hparams["core"] == "compressive" and hparams["window"] == 8 and hparams["core/width"] == "8"
    assert hparams["refresh"] == "none"
    assert hparams["learning_rate"] == pytest.approx(3e-4) and hparams["memory_learning_rate"] == pytest.approx(5e-3)
    assert hparams["parameters"] == sum(parameter.numel() for parameter in model.policy.parameters())


def hparams_of(events: EventAccumulator) -> dict[str, Any]:
    from tensorboard.plugins.hparams import plugin_data_pb2

    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}
