"""IMPALA (Espeholt et al. 2018, arXiv 1802.01561) for policies with a memory core, with stable-baselines3's API."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.vec_env import VecEnv

import ctrl
from ctrl.agents.actors.envs import built_env, maker_of, same_env, threads_beside, wrapped_env
from ctrl.agents.actors.pool import Actors, check_sendable, closing
from ctrl.agents.actors.process import EndedEpisode
from ctrl.agents.algorithm import FALLING_RATE
from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.impala.callback_locals import shown_step
from ctrl.agents.impala.learner import VTraceLearner
from ctrl.agents.impala.trajectories import REWARD_CLIPPING
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.utils.other_names import answering_other_names
from ctrl.agents.utils.validation import check_env, check_numbers

Self = TypeVar("Self", bound="MemoryImpala")


def paper_impala(rate: int = 4) -> dict[str, Any]:
    """Return the arguments of `MemoryImpala` that Rae et al. 2020 (arXiv 1911.05507, section 5.7) state for RL.

        MemoryImpala("MlpMemoryPolicy", env, **paper_impala(rate=4))

    These are the learning rate 1.5e-5, the entropy cost 2e-3 and the model of `ctrl.paper_config`. The four windows of
    an update come from the paper's section on training, which found their number to matter for text. All other
    arguments are not stated there.

    :param rate: rate of the compressed memory; the paper has 1, 2, 4 and 8
    """
    policy_kwargs = {"core": "compressive", "core_kwargs": ctrl.paper_config(rate)}
    return {"learning_rate": 1.5e-5, "ent_coef": 2e-3, "windows_per_update": 4, "policy_kwargs": policy_kwargs}


class MemoryImpala(VTraceLearner):
    """IMPALA with a memory core in its policy: actors in processes of their own, one learner, V-trace.

        model = MemoryImpala("MlpMemoryPolicy", "CartPole-v1", policy_kwargs={"core": "compressive"})
        model.learn(100_000)

    Each actor owns a copy of the (vector) env and acts for a window of `n_steps` with the newest weights available.
    Windows reach the learner through shared memory, each with the state before it. An update takes the next
    `windows_per_update` of them. `train/policy_lag` is the number of updates by which the acting weights were older;
    V-trace corrects for it. An actor has room for `window_slots` whole windows. It waits when all slots are full, and
    the learner waits when there is no window, so neither runs away.

    `num_actors=0` acts in this process, an update's windows one after the other. A seed then reproduces the result, and
    `train/first_ratio_deviation` is 0 up to rounding.

    An actor that dies, raises, or takes longer than `actor_timeout` for a step, as one that is stopped does, is
    restarted with another seed, and its unfinished window is lost. A warning gives the reason, and
    `time/actor_restarts` counts the restarts. A death or an error is noticed within half a second while the learner
    waits, and otherwise after the update. After more than `max_restarts` restarts, training stops with an `ActorError`
    that holds the last actor's traceback. What no env may return raises an `EnvContractError` or `NonFiniteError` at
    once. When `learn` ends, for whatever reason, actors have five seconds to close their envs; then they are killed,
    with all processes that their envs have started.

    Callbacks see each step of a window when the window reaches the learner, with `rewards`, `dones` and `infos`. With
    actor processes, `infos` are empty except at the ends of episodes, and hold numbers and text only.

    Arguments that are not listed are those of `MemoryPPO`.

    :param env: a gymnasium id or env, a stable-baselines3 `VecEnv`, a gymnasium `VectorEnv`, or a function that returns
        one of these. Every actor gets a copy, so a vector env of k envs makes k times `num_actors` envs. The function
        is for envs that can't be pickled, such as those that have processes of their own
    :param num_actors: processes that act; 0 for none
    :param n_steps: T, steps of a window
    :param windows_per_update: windows of one actor's envs that an update learns from
    :param batch_size: steps of one backward pass, a multiple of `n_steps`; None for all of an update's steps. The
        gradients of an update's passes are added up, so it affects memory and time only (except that the reconstruction
        loss is a mean over the compressions of each pass)
    :param vtrace_lambda: trade-off between bias and variance of the targets
    :param rho_bar: clip of the importance weights in the temporal differences and in the policy gradient
    :param c_bar: clip of the importance weights that carry later temporal differences back
    :param reward_clipping: "abs_one" (to -1 … 1) or "soft_asymmetric" (5 tanh(r / 5), 0.3 times that below 0), as in
        the original; None for rewards as they are
    :param normalize_values: as in `MemoryPPO`; advantages are divided by the scale, too. `reward_clipping` comes first,
        on rewards as they are
    :param use_rms_prop: RMSProp instead of Adam for everything but the compressors, as in the original
    :param rms_prop_eps: epsilon of RMSProp, inside the root
    :param window_slots: whole windows of an actor that may wait for the learner. An actor continues as soon as the
        learner has taken one, so acting and learning already overlap with one slot; more slots make the acting weights
        older
    :param actor_timeout: seconds that a step of an actor's envs may take; its start may take a minute more
    :param max_restarts: restarts of all actors together in one call of `learn`
    :param device: device of the learner's policy; actors use the CPU
    :raises ValueError: where an argument or a space does not fit, or an env can't be sent to another process
    """

    logged_hparams: ClassVar[tuple[str, ...]] = (
        *("num_actors", "n_steps", "windows_per_update", "batch_size", "gamma", "vtrace_lambda", "rho_bar", "c_bar"),
        *("reward_clipping", "normalize_values", "ent_coef", "vf_coef", "max_grad_norm", "memory_max_grad_norm"),
        *("use_rms_prop", "seed", "n_envs"),
    )

    @answering_other_names
    def __init__(
        self,
        policy: str | type[MemoryPolicy],
        env: GymEnv | gym.vector.VectorEnv[Any, Any, Any] | str | Callable[[], Any] | None,
        learning_rate: float | Schedule = FALLING_RATE,
        *,
        memory_learning_rate: float | Schedule = 5e-3,
        num_actors: int = 2,
        n_steps: int = 64,
        windows_per_update: int = 1,
        batch_size: int | None = None,
        gamma: float = 0.99,
        vtrace_lambda: float | Schedule = 1.0,
        rho_bar: float | Schedule = 1.0,
        c_bar: float | Schedule = 1.0,
        reward_clipping: str | None = None,
        normalize_values: bool = True,
        ent_coef: float | Schedule = 0.01,
        vf_coef: float | Schedule = 0.5,
        max_grad_norm: float | Schedule = 0.5,
        memory_max_grad_norm: float | Schedule = 0.1,
        use_rms_prop: bool = False,
        rms_prop_eps: float = 1e-5,
        window_slots: int = 1,
        actor_timeout: float = 60.0,
        max_restarts: int = 5,
        use_masking: bool | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if use_rms_prop:
            policy_kwargs = _with_rms_prop(policy_kwargs, rms_prop_eps)
        self._env_maker = maker_of(env)
        built = built_env(env)
        if _init_setup_model:
            check_env(built)
        super().__init__(
            policy,
            built,
            learning_rate=learning_rate,
            memory_learning_rate=memory_learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=vtrace_lambda,
            normalize_values=normalize_values,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            memory_max_grad_norm=memory_max_grad_norm,
            use_masking=use_masking,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
        )
        self.num_actors = num_actors
        self.windows_per_update = windows_per_update
        self.batch_size = batch_size
        self.vtrace_lambda = vtrace_lambda
        self.rho_bar = rho_bar
        self.c_bar = c_bar
        self.reward_clipping = reward_clipping
        self.use_rms_prop = use_rms_prop
        self.rms_prop_eps = rms_prop_eps
        self.window_slots = window_slots
        self.actor_timeout = actor_timeout
        self.max_restarts = max_restarts
        if _init_setup_model:
            self._setup_model()
            self._check_sendable()

    fixed: ClassVar[tuple[str, ...]] = (
        *("n_steps", "windows_per_update", "use_masking", "use_rms_prop", "rms_prop_eps", "policy_kwargs", "seed"),
    )
    fixed_while_acting: ClassVar[tuple[str, ...]] = (
        *("gamma", "num_actors", "window_slots", "actor_timeout", "max_restarts"),
    )
    changeable: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "memory_learning_rate", "batch_size", "vtrace_lambda", "rho_bar", "c_bar"),
        *("reward_clipping", "ent_coef", "vf_coef", "max_grad_norm", "memory_max_grad_norm"),
    )

    def _check_arguments(self) -> None:
        self._check_shared()
        check_numbers(
            at_least_1=self._named("windows_per_update", "batch_size", "window_slots"),
            positive=self._named("rho_bar", "c_bar", "rms_prop_eps", "actor_timeout"),
            not_negative=self._named("vtrace_lambda"),
            at_most_1=self._named("vtrace_lambda"),
            at_least_0=self._named("num_actors", "max_restarts"),
            optional=("batch_size",),
            constant=("rms_prop_eps", "actor_timeout"),
        )
        if self.reward_clipping not in list(REWARD_CLIPPING):
            raise ValueError(f"reward_clipping must be one of {list(REWARD_CLIPPING)}, got {self.reward_clipping!r}")
        if self.batch_size is not None and self.batch_size % self.n_steps:
            raise ValueError(
                f"batch_size counts steps of whole windows, so it must be a multiple of n_steps = {self.n_steps}, "
                f"got batch_size = {self.batch_size}"
            )

    def _setup_model(self) -> None:
        self._check_arguments()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._setup_buffer()
        self._make_memory_policy()
        self._built = True

    def _setup_buffer(self) -> None:
        self.rollout_buffer = self._buffer(self.windows_per_update)

    def _buffer(self, windows: int) -> WindowBuffer:
        return WindowBuffer(
            windows * self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            window=self.n_steps,
            mask_size=self._mask_size(),
        )

    # Acting

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        """Fill the buffer with an update's windows, from actors or this process; False if a callback stopped it."""
        self._lags = np.zeros(self.windows_per_update, dtype=np.int64)
        if self._actors is None:
            return super().collect_rollouts(env, callback, rollout_buffer, self.rollout_buffer.buffer_size)
        self.rollout_buffer.reset()
        callback.on_rollout_start()
        for index in range(self.windows_per_update):
            ended = self._load_window(self._actors, index)
            if not self._show_steps(index, ended, callback):
                return False
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _load_window(self, actors: Actors, index: int) -> list[EndedEpisode]:
        """Load the next window of any actor into the buffer, and return the episodes that ended in it."""
        window = actors.receive()
        self.rollout_buffer.load(window.arrays, window.state, index)
        actors.release(window)
        self._lags[index] = actors.version - window.version
        return window.ended

    def _show_steps(self, index: int, ended: list[EndedEpisode], callback: BaseCallback) -> bool:
        """Show the callback the steps of a window, one after the other; return False if it stopped training."""
        rollout_buffer, env, ends = self.rollout_buffer, self.env, self.rollout_buffer.ends
        n_rollout_steps = rollout_buffer.buffer_size
        infos_of: defaultdict[int, dict[int, dict[str, Any]]] = defaultdict(dict)
        for episode in ended:
            infos_of[episode.step][episode.env] = episode.info
        for step in range(self.n_steps):
            infos = [infos_of[step].get(env, {}) for env in range(self.n_envs)]
            row = index * self.n_steps + step
            n_steps, rewards, dones = row, rollout_buffer.rewards[row], ends[row]
            # The names of stable-baselines3's locals: callbacks read them.
            obs_tensor, new_obs, values, log_probs, actions = shown_step(rollout_buffer, row)
            clipped_actions = self.policy.env_actions(torch.as_tensor(actions))
            self.num_timesteps += self.n_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            if infos_of[step]:
                self._update_info_buffer(infos, dones)
        return True

    # Running actors

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
        """Train for at least `total_timesteps` steps, summed over all envs of all actors.

        Actors live as long as this call, and their unfinished episodes end with it. Each actor takes one CPU core.
        Meanwhile torch uses as many threads as there are other cores, at least one: more would wait for each other.

        Arguments, and the effect of several calls on schedules, are as in `MemoryPPO.learn`.

        :raises ActorError: where actors failed too often
        """
        arguments = (total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        if not self.num_actors:
            return super().learn(*arguments)
        try:
            with closing(self._start_actors()) as self._actors, threads_beside(self.num_actors):
                return super().learn(*arguments)
        finally:
            self._actors = None

    def _start_actors(self) -> Actors:
        return Actors(
            self.num_actors,
            self.policy,
            self._env_for_actors(),
            self._vec_normalize_env,
            self._buffer(windows=1),
            gamma=self.gamma,
            slots=self.window_slots,
            seed=int(torch.randint(2**31, ())),  # differs from call to call, and repeats with the algorithm's seed
            timeout=self.actor_timeout,
            max_restarts=self.max_restarts,
        )

    def _env_for_actors(self) -> Callable[[], VecEnv]:
        maker = self._env_maker
        return partial(same_env, self._env_to_learn_in()) if maker is None else partial(wrapped_env, maker)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Continue in another env, in any form that the class takes."""
        super().set_env(built_env(env), force_reset)
        self._env_maker = maker_of(env)
        self._check_sendable()

    @classmethod
    def load(cls: type[Self], path: Any, env: Any = None, *args: Any, **kwargs: Any) -> Self:
        """Load a model, as in stable-baselines3; `env` in any form that the class takes."""
        model = super().load(path, built_env(env), *args, **kwargs)
        model._env_maker = maker_of(env)
        model._check_sendable()
        return model

    def _check_sendable(self) -> None:
        """Refuse an env that can't be sent to actors, before any actor is started."""
        if self.num_actors and self.env is not None:
            check_sendable(self._env_for_actors())

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_actors", "_env_maker"]


def _with_rms_prop(policy_kwargs: dict[str, Any] | None, eps: float) -> dict[str, Any]:
    """Return `policy_kwargs` with RMSProp, the optimizer of the original."""
    given = dict(policy_kwargs or {})
    chosen = {name: given[name] for name in ("optimizer_class", "optimizer_kwargs") if name in given}
    if chosen:
        raise ValueError(f"use_rms_prop=True chooses the optimizer, but so does policy_kwargs with {chosen}")
    return {
        **given,
        "optimizer_class": RMSpropTFLike,
        "optimizer_kwargs": {"alpha": 0.99, "eps": eps, "weight_decay": 0},
    }
