"""A `VecEnv` as the agents step it: what it returns is checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from ctrl.agents.utils.nan_checks import NonFiniteError, check_finite, check_observations
from ctrl.agents.vec_envs.env_contract import (
    EnvContractError,
    at_step,
    check_batch,
    check_flags,
    check_infos,
    check_rewards,
)
from ctrl.agents.vec_envs.env_watch import EnvWatch, note, unwrapped
from ctrl.agents.vec_envs.vector_env import GymnasiumVecEnv


class EnvResult(NamedTuple):
    """Checked result of one step of all B envs."""

    observations: Any
    """[B, ...] in the dtype of the space. The env may fill the same array in its next step."""
    rewards: np.ndarray
    """[B]"""
    ends: np.ndarray
    """[B] bool, true where the observation is the first of an episode."""
    infos: Any
    """B dicts."""
    ignored: np.ndarray
    """[B] bool, true where the env spent the step on its reset and ignored the action."""
    over: np.ndarray
    """[B] bool, true where an episode was terminated but `GymnasiumVecEnv` reports its end one step later."""


class CheckedEnv:
    """A `VecEnv` whose steps and resets are checked: kinds, shapes, dtypes and finite numbers.

    :param env: the env, which stays as it is
    """

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        base = unwrapped(env)
        self._adapter = base if isinstance(base, GymnasiumVecEnv) else None
        self._normalize = unwrap_vec_normalize(env)
        # Running means would keep a NaN for good, so it must be found before `VecNormalize` sees it.
        before_normalisation = self._normalize is not None
        self._watch = EnvWatch(env, finite=before_normalisation)
        if self._adapter is not None:
            self._adapter.refuses_nan = before_normalisation
        self._nowhere = np.zeros(env.num_envs, dtype=bool)

    def reset(self, step: int) -> Any:
        """Reset all envs and return their first observations.

        :param step: number of the training step, for messages
        :raises EnvContractError: where an env returns what no env may return
        :raises NonFiniteError: where an observation is not finite
        """
        with self.checking(step):
            return self.checked_observations(self.env.reset(), step)

    def step(self, actions: np.ndarray, step: int) -> EnvResult:
        """Step all envs; arguments and errors as for `reset`."""
        with self.checking(step):
            result = self.env.step(actions)
            if not isinstance(result, tuple) or len(result) != 4:
                raise EnvContractError(
                    f"the VecEnv must return (observations, rewards, dones, infos), got {len(result)} values"
                )
            observations, rewards, dones, infos = result
            rewards = check_rewards(rewards, self.env.num_envs)
            ends = check_flags(dones, self.env.num_envs, "dones")
            check_infos(infos, self.env.num_envs)
            observations = self.checked_observations(observations, step)
            self._find_in_rewards(rewards, step)
        adapter = self._adapter
        ignored, over = (self._nowhere,) * 2 if adapter is None else (adapter.reset_steps, adapter.ended_unreported)
        return EnvResult(observations, rewards, ends, infos, ignored, over)

    @contextmanager
    def checking(self, step: int) -> Iterator[None]:
        """Check what single envs return in this context, and put the training step into messages."""
        try:
            with self._watch.watching():
                yield
        except (EnvContractError, NonFiniteError) as error:
            at_step(error, step)
            raise
        except Exception as error:
            note(error, f"at training step {step}")
            raise

    def checked_observations(self, observations: Any, step: int) -> Any:
        """Return observations [B, ...] in the dtype of their space, once they are known to fit it."""
        observations = check_batch(observations, self.env.observation_space, self.env.num_envs)
        try:
            check_observations(observations, "observation", step)
        except NonFiniteError:
            if self._normalize is not None and hasattr(self._normalize, "old_obs"):
                check_observations(self._normalize.old_obs, "observation", step)  # names the env that began it
            raise
        return observations

    def _find_in_rewards(self, rewards: np.ndarray, step: int) -> None:
        try:
            check_finite(rewards, "reward", step)
        except NonFiniteError:
            if self._normalize is not None and len(self._normalize.old_reward):
                check_finite(self._normalize.old_reward, "reward", step)
            raise
