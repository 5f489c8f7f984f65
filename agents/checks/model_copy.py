"""Copy of a model for checks: same classes and weights, but its own policy, buffer, env and counters."""

from __future__ import annotations

import copy
import time
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.utils.validation import check_env_id
from ctrl.agents.utils.value_normalisation import ValueNormalisation
from ctrl.checks.laws.trial import shake

MOST_ROLLOUTS = 8
"""Largest number of rollouts collected until an episode has ended; none is begun after `PATIENCE` seconds."""
PATIENCE = 5.0


class RecordingVecEnv(VecEnvWrapper):
    """Env wrapper that records everything between agent and env: entry t of each list is of the agent's step t."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.observations: list[Any] = []
        """[B, ...] observations."""
        self.starts: list[np.ndarray] = []
        """[B] bool, true where the observation is the first of an episode."""
        self.actions: list[np.ndarray] = []
        """[B, ...] actions chosen from the observations."""
        self.rewards: list[np.ndarray] = []
        """[B] rewards of the actions."""

    def reset(self) -> Any:
        """Reset all envs; each of them starts an episode."""
        return self._seen(self.venv.reset(), np.ones(self.num_envs, dtype=bool))

    def step_async(self, actions: np.ndarray) -> None:
        """Record the actions and pass them on."""
        self.actions.append(np.array(actions))
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Record and return the env's step; where `dones` is true, the observation is the first of the next episode."""
        observations, rewards, dones, infos = self.venv.step_wait()
        self.rewards.append(np.array(rewards))
        return self._seen(observations, np.array(dones, dtype=bool)), rewards, dones, infos

    def _seen(self, observations: Any, starts: np.ndarray) -> Any:
        self.observations.append(copy.deepcopy(observations))
        self.starts.append(starts)
        return observations


class Rollout(NamedTuple):
    """Log-probabilities and values of a rollout of T steps of B envs, from learning and from acting."""

    evaluated: dict[str, tuple[Tensor, Tensor]]
    """Results by name, from learning and from acting, each [T, B]."""
    counts: Tensor
    """[T, B] bool, steps that count for the losses."""
    starts: Tensor
    """[T, B] bool, steps that are the first of an episode."""


class ModelCopy:
    """Copy of a model that checks can run and train, while the model itself stays unchanged.

    :param model: algorithm with a `MemoryPolicy` and a buffer of windows, such as `MemoryPPO`
    :param env: env for the copy; None for a copy of the model's own
    :param noise: how far the copy's parameters are moved, see `ctrl.checks.laws.trial.shake`
    :param tolerance: largest difference, relative to 1 + size, between results that must agree up to rounding
    :param seed: seed of the noise
    :raises ValueError: where the model is of another kind or the env does not fit it
    """

    def __init__(self, model: OnPolicyAlgorithm, env: Any, *, noise: float, tolerance: float, seed: int) -> None:
        if not isinstance(model, OnPolicyAlgorithm) or not isinstance(getattr(model, "policy", None), MemoryPolicy):
            raise ValueError(f"model must be an agent with a MemoryPolicy, such as MemoryPPO, got {model!r}")
        self.env, self.tolerance = RecordingVecEnv(_env_for(model, env)), tolerance
        self.model = copy.copy(model)
        # Its distribution may hold tensors with a graph, which can't be copied; it gets new ones before each use.
        shallow = {id(model.policy.action_dist): copy.copy(model.policy.action_dist)}
        try:
            self.model.policy = copy.deepcopy(model.policy, shallow)
        except Exception as error:
            raise ValueError(f"model must have a policy that can be copied: {error}") from error
        generator = torch.Generator().manual_seed(seed)
        shake(self.policy, noise, generator)
        self._see_previous(generator)
        self.model.env, self.model._vec_normalize_env = self.env, unwrap_vec_normalize(self.env)
        self.model._current_progress_remaining = 1.0
        self._unnormalise()
        self.model.rollout_buffer = copy.copy(model.rollout_buffer)
        self.buffer.buffer_size = min(self.buffer.buffer_size, 2 * self.buffer.window)
        self.buffer.burn_in = min(self.buffer.burn_in, self.buffer.buffer_size)
        self.buffer.full = False  # what precedes the copy's first rollout is not known
        self.buffer.reset()
        for acting in ("_actor", "_actors"):
            if hasattr(model, acting):
                setattr(self.model, acting, None)
        self.model.set_logger(Logger(None, []))
        self._callback = self.model._setup_learn(total_timesteps=1, reset_num_timesteps=True)[1]
        self.first = 0
        """First step of the last rollout."""

    def _see_previous(self, generator: torch.Generator) -> None:
        """Add noise to the weights of previous actions and rewards: they may still be 0, which hides mistakes."""
        with torch.no_grad():
            weights = self.policy.previous_weights()
            weights.add_(torch.randn(weights.shape, generator=generator).to(weights) / max(1, weights.shape[1]) ** 0.5)

    def _unnormalise(self) -> None:
        """Turn value normalisation off: it makes all values 0 at first, and changes them later without training."""
        self.policy.value_normalisation = ValueNormalisation(scale=1.0).to(self.policy.device)
        self.model.normalize_values = False  # type: ignore[attr-defined]

    @property
    def policy(self) -> MemoryPolicy:
        """Policy of the copy."""
        return cast(MemoryPolicy, self.model.policy)

    @property
    def buffer(self) -> Any:
        """Buffer of the copy."""
        return self.model.rollout_buffer

    def ended(self) -> bool:
        """Return True if an episode has ended in some env before the last step."""
        return any(bool(starts.any()) for starts in self.env.starts[1 : len(self.env.actions)])

    def collect(self) -> Rollout:
        """Collect a rollout as the model does, and evaluate it."""
        self.first = len(self.env.actions)
        self.model.collect_rollouts(self.env, self._callback, self.buffer, self.buffer.buffer_size)
        return self.evaluate()

    def collect_until_an_end(self) -> list[Rollout]:
        """Collect at least two rollouts, and more until an episode has ended, within `MOST_ROLLOUTS` and `PATIENCE`."""
        begun, rollouts = time.monotonic(), [self.collect(), self.collect()]
        while not self.ended() and len(rollouts) < MOST_ROLLOUTS and time.monotonic() < begun + PATIENCE:
            rollouts.append(self.collect())
        return rollouts

    def evaluate(self) -> Rollout:
        """Evaluate the rollout in the buffer as training does, but without dropout and without changing weights."""
        batch = self.buffer.all_windows(self.policy)
        self.policy.set_training_mode(False)
        with torch.no_grad():
            evaluated = self.policy.evaluate_windows(batch.windows)
        pairs = {
            "log_prob": (evaluated.log_prob, batch.old_log_prob),
            "value": (evaluated.values, batch.old_values),
        }
        return Rollout(
            {name: (self._by_step(one), self._by_step(other)) for name, (one, other) in pairs.items()},
            self._by_step(batch.loss_mask),
            self._by_step(batch.windows.reset),
        )

    def _by_step(self, windows: Tensor) -> Tensor:
        """Rearrange [windows * B, T] to [steps, B]."""
        length = windows.shape[1]
        return windows.reshape(-1, self.env.num_envs, length).transpose(1, 2).reshape(-1, self.env.num_envs)


def _env_for(model: OnPolicyAlgorithm, env: Any) -> VecEnv:
    """Return an env for the copy, with as many copies as the model's."""
    if env is None:
        return _copied_env(model)
    if isinstance(env, str):
        check_env_id(env)
        env = make_vec_env(env, n_envs=model.n_envs)
    if not isinstance(env, gym.Env | gym.vector.VectorEnv | VecEnv):
        raise ValueError(f"env must be a gymnasium id, env or VectorEnv or a VecEnv, got {env!r}")
    wrapped: VecEnv = model._wrap_env(env, verbose=0)  # type: ignore[arg-type]
    check_for_correct_spaces(wrapped, model.observation_space, model.action_space)
    if wrapped.num_envs != model.n_envs:
        raise ValueError(f"env must have as many copies as the model's, {model.n_envs}, got {wrapped.num_envs}")
    return wrapped


def _copied_env(model: OnPolicyAlgorithm) -> VecEnv:
    if model.env is None:
        raise ValueError("model has no env, so env must be given, got None")
    try:
        return _deep_copy(model.env)
    except Exception as error:
        raise ValueError(f"env must be given, since the model's own cannot be copied: {error}") from error


def _deep_copy(env: VecEnv) -> VecEnv:
    """Copy an env, wrapper by wrapper, since copies of `VecNormalize` leave out the env that it wraps."""
    if not isinstance(env, VecEnvWrapper):
        return copy.deepcopy(env)
    inner = _deep_copy(env.venv)
    of_class: dict[str, Any] = env.class_attributes  # which can't be copied, and need not be
    outer = copy.deepcopy(env, {id(env.venv): inner, id(of_class): of_class})
    if isinstance(outer, VecNormalize):
        outer.set_venv(inner)
    return outer
