"""Base class of algorithms for policies with a memory core, in the manner of stable-baselines3."""

from __future__ import annotations

import copy
import warnings
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule, obs_as_tensor, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

import ctrl
from ctrl.agents.attributes import ChangeableArguments
from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.optimizing import optimize
from ctrl.agents.policy.explain import Explanation, explain
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.policy.policies import CnnMemoryPolicy, MlpMemoryPolicy, MultiInputMemoryPolicy
from ctrl.agents.policy.policy_data import Evaluated, Windows, select
from ctrl.agents.policy.serving import PolicySteps
from ctrl.agents.resuming.continued import ContinuedAlgorithm
from ctrl.agents.rollout import take_step
from ctrl.agents.utils.cores import named_core
from ctrl.agents.utils.hparams import hparams
from ctrl.agents.utils.nan_checks import check_finite
from ctrl.agents.utils.other_names import answering_other_names, check_policy_kwargs, policy_hint
from ctrl.agents.utils.statistics import Statistics, drift
from ctrl.agents.utils.validation import check_device
from ctrl.agents.vec_envs.vector_env import as_vec_env

Self = TypeVar("Self", bound="MemoryAlgorithm")

FALLING_RATE = LinearSchedule(1e-3, 0.0, 1.0)
"""Default learning rate: falls from 1e-3 to 0 over `learn(total_timesteps)`."""


class MemoryAlgorithm(ChangeableArguments, ContinuedAlgorithm):
    """Base of `MemoryPPO` and `MemoryImpala`: acting, steps of the two optimizers, logging, saving and `predict`.

    A subclass calls `_make_memory_policy` and `_setup_buffer` in its `_setup_model`, and implements `_setup_buffer`,
    `_finish_rollout` and `train`.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpMemoryPolicy": MlpMemoryPolicy,
        "CnnMemoryPolicy": CnnMemoryPolicy,
        "MultiInputMemoryPolicy": MultiInputMemoryPolicy,
    }
    logged_hparams: ClassVar[tuple[str, ...]] = ()
    """Arguments that TensorBoard lists with the run."""
    normalize_values: bool
    memory_learning_rate: float | Schedule
    memory_max_grad_norm: float | Schedule
    policy: MemoryPolicy
    rollout_buffer: WindowBuffer

    def __init__(
        self,
        policy: str | type[MemoryPolicy],
        env: Any,
        *,
        learning_rate: float | Schedule,
        memory_learning_rate: float | Schedule,
        n_steps: int,
        gamma: float,
        gae_lambda: float | Schedule,
        normalize_values: bool,
        ent_coef: float | Schedule,
        vf_coef: float | Schedule,
        max_grad_norm: float | Schedule,
        memory_max_grad_norm: float | Schedule,
        use_masking: bool | None,
        device: torch.device | str,
        **others: Any,
    ) -> None:
        """Keep what both algorithms have; the subclass builds the model.

        :param others: `stats_window_size`, `tensorboard_log`, `policy_kwargs`, `verbose` and `seed`, as in
            stable-baselines3
        """
        check_device(device)
        scheduled: dict[str, Any] = {"gae_lambda": gae_lambda, "ent_coef": ent_coef, "vf_coef": vf_coef}
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            max_grad_norm=cast(float, max_grad_norm),
            use_sde=False,
            sde_sample_freq=-1,
            device=device,
            _init_setup_model=False,
            **scheduled,
            **others,
        )
        self.memory_learning_rate = memory_learning_rate
        self.normalize_values = normalize_values
        self.memory_max_grad_norm = memory_max_grad_norm
        self.use_masking = use_masking
        self._check_shared()

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        return as_vec_env(env, verbose=verbose, monitor_wrapper=monitor_wrapper)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise _unknown_policy(policy_name)
        return self.policy_aliases[policy_name]

    def _make_memory_policy(self) -> None:
        """Build the policy; the next rollout makes an actor for it."""
        self._memory_lr_schedule = FloatSchedule(self.memory_learning_rate)
        policy_class: Any = self.policy_class
        if not (isinstance(policy_class, type) and issubclass(policy_class, MemoryPolicy)):
            raise _unknown_policy(getattr(policy_class, "__name__", repr(policy_class)))
        policy = self._make_policy(policy_class)
        self.policy = policy.to(self.device)
        self._actor = None

    def _make_policy(self, policy_class: type[MemoryPolicy]) -> MemoryPolicy:
        kwargs = self.policy_kwargs
        if not isinstance(kwargs, dict):
            raise ValueError(f"policy_kwargs must be a dict, got {kwargs!r}")
        check_policy_kwargs(kwargs, policy_class)
        if not isinstance(kwargs.get("core_kwargs") or {}, dict):
            raise ValueError(f"core_kwargs must be a dict, got {kwargs['core_kwargs']!r}")
        memory_lr = self._memory_lr_schedule(1)
        try:
            policy = policy_class(
                self.observation_space,
                self.action_space,
                self.lr_schedule,
                normalize_values=self.normalize_values,
                memory_lr=memory_lr,
                **kwargs,
            )
        except TypeError as error:
            raise ValueError(f"policy_kwargs do not fit {policy_class.__name__}: {error}") from error
        if isinstance(kwargs.get("core"), ctrl.MemoryCore):  # a saved model builds it by name, and has its weights
            name, options = named_core(kwargs["core"])
            self.policy_kwargs = {**kwargs, "core": name, "core_kwargs": options}
        return policy

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Act for `n_rollout_steps` steps in each env and fill the buffer; return False if a callback stopped it."""
        self.policy.set_training_mode(False)
        if not self._in_rollout:
            self.rollout_buffer.reset()
        self._in_rollout = True
        callback.on_rollout_start()
        for _ in range(n_rollout_steps - self.rollout_buffer.pos):
            if not self._collect_step(env, callback):
                return False
        self._finish_rollout()
        callback.update_locals(locals())
        callback.on_rollout_end()
        self._in_rollout = False
        return True

    def _collect_step(self, env: VecEnv, callback: BaseCallback) -> bool:
        """Act once in every env and store the step; return False if a callback stopped training."""
        actor = self._actor_in(env.num_envs)
        obs: Any = self._last_obs
        rollout_buffer = self.rollout_buffer
        n_steps, n_rollout_steps = rollout_buffer.pos, rollout_buffer.buffer_size
        starts = np.asarray(self._last_episode_starts)
        checked = self._checking_env(env)
        step = take_step(actor, checked, rollout_buffer, obs, self._last_reset(), self.num_timesteps)
        # The names of stable-baselines3's locals: callbacks read them.
        obs_tensor, actions = obs_as_tensor(obs, self.device), step.acted.actions.cpu().numpy()
        values, log_probs, clipped_actions = step.acted.values[:, None], step.acted.log_prob, step.actions
        new_obs, rewards, dones, infos, *_ = step.result
        self.num_timesteps += env.num_envs
        self._step_in_flight = step, starts  # a callback may save the model
        callback.update_locals(locals())
        keep_going = callback.on_step()
        self._finish_step()  # also if the callback stops here: the env has moved on, and learning may be resumed
        return keep_going

    def _finish_rollout(self) -> None:
        """Compute from a full buffer what callbacks may read at the rollout's end; here nothing."""

    def _count_returns(self, returns: Tensor) -> None:
        """Update the value normalisation with the returns [K] of an update, before the value head learns from them."""
        if not self.normalize_values or not len(returns):
            return
        check_finite(returns, "returns", self.num_timesteps)
        normalisation = self.policy.value_normalisation
        normalisation.update(returns, self.policy.value_net)
        self.logger.record("train/value_mean", normalisation.mean.item())
        self.logger.record("train/value_scale", normalisation.scale.item())

    def _backward(
        self,
        policy_loss: Tensor,
        value_loss: Tensor,
        entropy_loss: Tensor,
        evaluated: Evaluated,
        statistics: Statistics,
        share: float = 1.0,
    ) -> None:
        """Add the gradients of a minibatch, and note its losses and the core's diagnostics.

        :param share: factor of the gradients
        """
        loss = policy_loss + self.now("ent_coef") * entropy_loss + self.now("vf_coef") * value_loss
        reconstruction_loss = evaluated.unrolled.reconstruction_loss
        check_finite(loss, "loss", self.num_timesteps)
        check_finite(reconstruction_loss, "reconstruction_loss", self.num_timesteps)
        # The two losses share no parameter, so one backward pass serves both.
        (share * (loss + reconstruction_loss)).backward()
        statistics.add("train/policy_gradient_loss", policy_loss)
        statistics.add("train/value_loss", value_loss)
        statistics.add("train/entropy_loss", entropy_loss)
        statistics.add("train/loss", loss)
        for name, value in evaluated.unrolled.diagnostics.items():
            statistics.add(f"memory/{name}", value)

    def _log_update(self, summary: dict[str, float]) -> None:
        for name, value in summary.items():
            self.logger.record(name, value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("memory/state_bytes", self.policy.core.state_bytes)

    def _adapt(self, summary: dict[str, float]) -> None:
        """Let the core adapt its own settings to the update's statistics; they apply from the next rollout on."""
        diagnostics = {name.removeprefix("memory/"): value for name, value in summary.items()}
        for name, value in self.policy.core.adapt(diagnostics).items():
            self.logger.record(f"memory/{name}", value)

    def _log_staleness(self, windows: Windows) -> None:
        """Log the `drift` between the state after the rollout's last window and its recomputation.

        The first is as acting left it, the second comes from the updated weights, over the same steps.
        """
        n_envs = self.n_envs
        envs = np.arange(-(-n_envs // 8))
        rows = torch.as_tensor(len(windows.reset) - n_envs + envs, device=self.device)  # rows of the last window
        last: Windows = select(windows, rows)
        now, then = self.policy.remember(last), self._actor_in(n_envs).state(envs).core
        core = self.policy.core
        staleness = drift(*(core.remembered(state) for state in (last.core_state, then, now)))
        if staleness is not None:
            self.logger.record("memory/staleness", staleness)

    def _optimize(self, statistics: Statistics) -> None:
        limits = self.now("max_grad_norm"), self.now("memory_max_grad_norm")
        optimize(self.policy, *limits, statistics, self.num_timesteps)

    def _update_learning_rates(self) -> None:
        self._update_learning_rate(self.policy.optimizer)
        if self.policy.memory_optimizer is not None:
            rate = float(self._memory_lr_schedule(self._current_progress_remaining))
            update_learning_rate(self.policy.memory_optimizer, rate)
            self.logger.record("memory/learning_rate", rate)

    @answering_other_names
    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for at least `total_timesteps` steps, summed over the envs; arguments as in stable-baselines3.

        Schedules use the progress left after an update's rollout, so one that falls to 0 is 0 in the last update.

        :param tb_log_name: name of the run in TensorBoard; the algorithm's name if None
        :param reset_num_timesteps: False continues the count of steps, and the progress left then refers to all calls
            together: the second of two equal calls begins with half of a falling rate. To train in many short calls,
            give `learning_rate` a number
        :raises ValueError: where the model was loaded without an env
        """
        self._env_to_learn_in()
        self._warn_of_no_rate(total_timesteps)
        self._take_up_training(reset_num_timesteps)
        try:
            return super().learn(
                total_timesteps=total_timesteps,
                callback=callback,
                log_interval=log_interval,
                tb_log_name=tb_log_name or type(self).__name__,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )
        except BaseException:
            self._drop_rollout()
            raise

    def _warn_of_no_rate(self, steps: int) -> None:
        """Warn of a call that would learn nothing: the default learning rate is 0 in its only update."""
        of_update = self.rollout_buffer.buffer_size * self.n_envs
        if 0 < steps <= of_update and self.learning_rate is FALLING_RATE:
            warnings.warn(
                f"learning_rate is 0 in the only update of learn({steps}), after {of_update} steps; "
                "ask for more steps, or give learning_rate a number, which stays as it is",
                stacklevel=3,
            )

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        checked = self._checking_env(self._env_to_learn_in())
        with checked.checking(self.num_timesteps):
            total, callback = super()._setup_learn(*args, **kwargs)
            observations, self._last_obs = self._last_obs, None  # what does not fit is not kept
            self._last_obs = checked.checked_observations(observations, self.num_timesteps)
        self.logger.record("hparams", hparams(self), exclude=("stdout", "log", "json", "csv"))
        for name, (value, excluded) in self._logged_before.items():
            self.logger.record(name, value, excluded)
        self._logged_before = {}
        return total, callback

    @answering_other_names
    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        reward: np.ndarray | float | None = None,
        action_masks: Any = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose actions; see `MemoryPolicy.predict`."""
        masks = {} if action_masks is None else {"action_masks": action_masks}  # for policies whose `predict` has none
        return self.policy.predict(observation, state, episode_start, deterministic, reward, **masks)

    def explain(
        self, observations: Any, actions: Any = None, rewards: Any = None, action_masks: Any = None
    ) -> Explanation:
        """Say what the agent looks at in an episode: attention by age, layer, head and tier, actions and values.

        :param observations: [T, ...] of a whole episode, from its first on, or a dict of such, as `predict` takes them
        :param actions: [T, ...] that were taken; None for those that the agent finds likeliest, one after another
        :param rewards: [T] of these actions; only for policies with `previous_reward=True`
        :param action_masks: [T, M] true where a choice could be taken; None where all could
        :raises ValueError: where the core has no attention, or an argument does not fit
        """
        return explain(self.policy, observations, actions, rewards, action_masks)

    def predictor(
        self, *, max_sessions: int = 1000, idle_seconds: float = 600.0, deterministic: bool = True
    ) -> ctrl.Predictor:
        """Return a `ctrl.Predictor`, which acts for many clients with a copy of the policy as it is now.

        :param deterministic: take the most likely actions; the other arguments are those of `ctrl.Predictor`
        """
        steps = PolicySteps(copy.deepcopy(self.policy), deterministic=deterministic)
        return ctrl.Predictor(steps, max_sessions=max_sessions, idle_seconds=idle_seconds)

    def _last_obs_tensor(self) -> Any:
        return obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]

    def _last_reset(self) -> Tensor:
        return torch.as_tensor(self._last_episode_starts, dtype=torch.bool, device=self.device)

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names = ["policy", "policy.optimizer"]
        if self.policy.memory_optimizer is not None:
            names.append("policy.memory_optimizer")
        return names, []


def _unknown_policy(name: str) -> ValueError:
    return ValueError(
        f"policy must be one of {', '.join(MemoryAlgorithm.policy_aliases)} or a MemoryPolicy class, got {name}"
        f"{policy_hint(name)}"
    )
