"""Evaluation as in stable-baselines3, also with gymnasium vector envs, action masks, and policies that see rewards.

mean, std = evaluate_policy(model, gym.make_vec("CartPole-v1", num_envs=8), n_eval_episodes=20)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from stable_baselines3.common import callbacks, evaluation
from stable_baselines3.common.vec_env import VecEnv

from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.utils.nan_checks import check_acted, check_observations
from ctrl.agents.vec_envs.action_masks import mask_size, read_masks
from ctrl.agents.vec_envs.vector_env import as_vec_env

Locals = dict[str, Any]


class Player:
    """Policy that plays with its state kept in place between steps, as in training.

    The policy's own `predict` passes the state as numpy arrays, which takes several times as long.

    :param env: env that is asked for action masks, where it has them; None for none
    :param use_masking: as in `MemoryPPO`
    """

    def __init__(self, policy: MemoryPolicy, env: VecEnv | None = None, use_masking: bool | None = None) -> None:
        self.policy, self.env = policy, env
        self.masks: np.ndarray | None = None
        """[B, M] the action masks of the last call; None where there are none."""
        self._masked = mask_size(env, policy.action_space, use_masking) > 0
        self._steps = 0

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, tuple[()]]:
        """Choose actions as the policy's own `predict` does; a call without `state` starts from the initial state."""
        check_observations(observation, "observation", self._steps)
        if state is None:
            self.policy.set_training_mode(False)
            self._actor = self.policy.actor(self.policy.initial_state(len(episode_start)))
        reset = torch.as_tensor(episode_start, device=self.policy.device)
        acted = self._actor.act(self.policy.obs_to_tensor(observation)[0], reset, deterministic, self._read_masks())
        check_acted(acted.values, acted.log_prob, observation, self._steps)
        self._steps += len(episode_start)
        return self.policy.env_actions(acted.actions), ()

    def _read_masks(self) -> torch.Tensor | None:
        if not self._masked:
            return None
        self.masks = read_masks(cast(VecEnv, self.env), self.policy.action_space, self._steps)
        return torch.as_tensor(self.masks, device=self.policy.device)

    def tell_rewards(self, rewards: Any) -> None:
        """Pass on the rewards [B] of the last actions, which some policies take as input."""
        self._actor.tell_rewards(rewards)


def player_of(model: Any, env: VecEnv) -> Player | None:
    """Return a player for one of our agents or policies; None for any other model."""
    if isinstance(model, MemoryAlgorithm):
        return Player(model.policy, env, model.use_masking)
    return Player(model, env) if isinstance(model, MemoryPolicy) else None


def evaluate_policy(
    model: Any,
    env: Any,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    render: bool = False,
    callback: Callable[[Locals, Locals], None] | None = None,
    reward_threshold: float | None = None,
    return_episode_rewards: bool = False,
    warn: bool = True,
) -> tuple[float, float] | tuple[list[float], list[int]]:
    """Play episodes and return mean and standard deviation of their returns, as stable-baselines3's function does.

    It also takes a gymnasium `VectorEnv`, keeps to the env's action masks where the model does so in training, and
    tells rewards to policies with `previous_reward=True`.

    :param model: one of our agents or policies, or any other object with stable-baselines3's `predict`
    :param env: in any form that `MemoryPPO` takes, but for an id
    :return: mean and standard deviation, or with `return_episode_rewards` the returns and lengths of all episodes
    :raises ValueError: where `env` is no env, or its spaces or masks do not fit
    :raises AssertionError: where the mean is not above `reward_threshold`, as in stable-baselines3
    """
    env = as_vec_env(env)
    player = player_of(model, env)

    def after_step(local: Locals, of_module: Locals) -> None:
        if player is not None:
            player.tell_rewards(local["rewards"])
        if callback is not None:
            callback(local, of_module)

    returns, lengths = evaluation.evaluate_policy(
        player or model, env, n_eval_episodes, deterministic, render, after_step, None, True, warn
    )
    mean, spread = float(np.mean(returns)), float(np.std(returns))
    if reward_threshold is not None and mean <= reward_threshold:
        raise AssertionError(f"Mean reward below threshold: {mean:.2f} < {reward_threshold:.2f}")
    if return_episode_rewards:
        return list(map(float, cast("list[float]", returns))), list(map(int, cast("list[int]", lengths)))
    return mean, spread


class EvalCallback(callbacks.EvalCallback):
    """stable-baselines3's `EvalCallback`, for all that `evaluate_policy` of this module can do.

    :param eval_env: in any form that `MemoryPPO` takes, but for an id
    :param kwargs: as in stable-baselines3
    """

    def __init__(self, eval_env: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(as_vec_env(eval_env), *args, **kwargs)

    def _on_step(self) -> bool:
        model, self._player = self.model, player_of(self.model, self.eval_env)
        if self._player is None:
            return super()._on_step()
        self.model = cast(Any, _Played(model, self._player))  # whose `predict` the inherited method calls
        try:
            return super()._on_step()
        finally:
            self.model = model

    def _log_success_callback(self, locals_: Locals, globals_: Locals) -> None:
        if self._player is not None:
            self._player.tell_rewards(locals_["rewards"])
        super()._log_success_callback(locals_, globals_)


class _Played:
    """Model with a player's `predict`."""

    def __init__(self, model: Any, player: Player) -> None:
        self._model, self.predict = model, player.predict

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)
