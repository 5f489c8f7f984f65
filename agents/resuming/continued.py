"""Base class of algorithms whose training goes on after a stop, in the same process or from a file."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.policy.actor import Actor
from ctrl.agents.resuming.training_state import SavedTraining, take_up
from ctrl.agents.rollout import EnvStep, keep_step
from ctrl.agents.saving.saved_algorithm import SavedAlgorithm
from ctrl.agents.vec_envs.action_masks import mask_size
from ctrl.agents.vec_envs.checked_env import CheckedEnv
from ctrl.agents.vec_envs.infos import note_episodes


class ContinuedAlgorithm(SavedAlgorithm):
    """Algorithm that knows whether episodes and a rollout are in progress, and takes them up or drops them."""

    rollout_buffer: WindowBuffer  # type: ignore[assignment]
    use_masking: bool | None = None
    _actor: Actor | None = None
    _checked_env: CheckedEnv | None = None
    _in_rollout: bool = False
    """True while the buffer holds a rollout that is not complete, and that the next call of `learn` may go on with."""
    _step_in_flight: tuple[EnvStep, np.ndarray] | None = None
    """A step that callbacks see and that is not stored yet, and [B] bool, true where it began an episode."""
    _saved_state: SavedTraining | None = None
    """State of training from the file that the model was loaded from, until `learn` takes it up."""
    _logged_before: dict[str, Any] = {}
    """What the logger had taken and not written when the model was saved."""

    def _take_up_training(self, reset_num_timesteps: bool) -> None:
        """Prepare to go on where training ended, here or in the file that the model was loaded from, or to begin."""
        if self._saved_state is not None and not reset_num_timesteps:
            take_up(self, self._saved_state)
        self._saved_state = None
        if reset_num_timesteps or self._last_obs is None:
            self._in_rollout = False

    def _drop_rollout(self) -> None:
        """Forget the episodes in progress and their unfinished rollout: an error may have left both half done."""
        self._last_obs, self._actor, self._step_in_flight = None, None, None
        self._in_rollout = self.rollout_buffer.full = False

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Go on in another env. Its episodes begin anew, unless `force_reset` is False.

        After `load`, `force_reset=False` makes `learn(reset_num_timesteps=False)` go on in the saved episodes.
        """
        super().set_env(env, force_reset)
        if self.rollout_buffer.mask_size != self._mask_size():
            self._setup_buffer()
        if force_reset and self._saved_state is not None:
            self._saved_state = self._saved_state.without_episodes()

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed all random generators and the env; warn of an env that takes no seed.

        After `load`, training then does not go on with the saved generators.
        """
        try:
            super().set_random_seed(seed)
        except (AttributeError, NotImplementedError) as error:
            warnings.warn(f"the env takes no seed, so a run can't be repeated: {error!r}", stacklevel=2)
        if self._saved_state is not None:
            self._saved_state = self._saved_state.without_random_state()

    def _actor_in(self, n_envs: int) -> Actor:
        """Return the actor, which continues after the last step; a new one starts an episode in every env."""
        if self._actor is None:
            self._actor = self.policy.actor(self.policy.initial_state(n_envs))
            self._last_episode_starts = np.ones(n_envs, dtype=bool)
        return self._actor

    def _finish_step(self) -> None:
        """Store the step that callbacks have seen."""
        if self._step_in_flight is None:
            return
        (step, starts), self._step_in_flight = self._step_in_flight, None
        actor, result = self._actor_in(len(starts)), step.result
        actor.tell_rewards(result.rewards)
        self._last_obs, self._last_episode_starts = result.observations, result.ends
        self._update_info_buffer(result.infos, result.ends)
        keep_step(step, starts, actor, self.rollout_buffer, self.gamma, self.num_timesteps)

    def _update_info_buffer(self, infos: Any, dones: np.ndarray | None = None) -> None:
        assert self.ep_info_buffer is not None and self.ep_success_buffer is not None
        note_episodes(infos, dones, self.ep_info_buffer, self.ep_success_buffer)

    def _checking_env(self, env: VecEnv) -> CheckedEnv:
        """Return the env with checks of its steps."""
        if self._checked_env is None or self._checked_env.env is not env:
            self._checked_env = CheckedEnv(env)
        return self._checked_env

    def _env_to_learn_in(self) -> VecEnv:
        if self.env is None:
            raise ValueError("this model has no env to learn in: give load one (env=...), or call set_env")
        return self.env

    def _mask_size(self) -> int:
        """Return M, the number of entries of an action mask; 0 where the env has none or they are not used."""
        return mask_size(self.env, self.action_space, self.use_masking)

    def _setup_buffer(self) -> None:
        """Make an empty `rollout_buffer` for the algorithm's arguments and env."""
        raise NotImplementedError
