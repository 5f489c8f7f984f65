"""PPO (Schulman et al. 2017, arXiv 1707.06347) for policies with a memory core, in the manner of stable-baselines3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import (
    FloatSchedule,
    explained_variance,
    obs_as_tensor,
    update_learning_rate,
)
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ctrl.agents.arguments import batch_windows, burn_in_steps, check_device, check_env_id, check_numbers
from ctrl.agents.buffers import WindowBatch, WindowBuffer, select, window_batches
from ctrl.agents.finite import check_finite, check_gradients
from ctrl.agents.policies import (
    Actor,
    CnnMemoryPolicy,
    MemoryPolicy,
    MlpMemoryPolicy,
    MultiInputMemoryPolicy,
    Windows,
)
from ctrl.agents.spaces import check_spaces
from ctrl.agents.vector_env import GymnasiumVecEnv

Self = TypeVar("Self", bound="MemoryPPO")


class MemoryPPO(OnPolicyAlgorithm):
    """PPO whose policy remembers.

        model = MemoryPPO("MlpMemoryPolicy", "CartPole-v1", policy_kwargs={"core": "compressive"})
        model.learn(100_000)

    Rollouts are cut into windows; a window is unrolled from one stored state, and minibatches are whole windows. The
    compressors learn, where they have anything to learn, from the core's reconstruction loss, on an optimizer of their
    own.

    The state that a window is unrolled from was made by the weights that acted, and parts of it by older ones. How far
    one update moves the weights away from it is logged as `memory/staleness`: ||now - then|| / ||then||. `then` is the
    core's state after the rollout's last window, as acting left it, and `now` what the weights after the update make of
    the same steps, from the same stored state before them. Only numbers that the window changed count: what it left
    alone is the same in both, and would make the value depend on the memory's size. It is taken over the first eighth
    of the envs, at least one, and not logged for a core without memory.

    `refresh` says what is done about it:

    - "none": nothing. The first probability ratio of an update is then 1.
    - k, at least 1 and at most `n_steps`: burn-in (Kapturowski et al. 2019, R2D2). A window's state is computed anew,
      without a gradient, over the k steps before the window, from the state that was stored before those. It is done
      for each minibatch, as it is about to be learned from: that costs no more than doing it for all windows before
      each epoch, and no weights are fresher. The k steps of the rollout's first windows lie in the rollout before;
      where that is not there (before the first one, and after a callback stopped one) and no episode has started
      since, the state stays as it was stored.
    - "recompute": as far back as steps are kept, k = `n_steps`.

    A burn-in costs an update k / `window` more forward passes of the rollout in each epoch, and while it lasts k /
    `window` more copies of its observations. The first ratio differs from 1 where weights have changed since the
    states were stored.

    :param policy: "MlpMemoryPolicy", "CnnMemoryPolicy", "MultiInputMemoryPolicy", or a class
    :param env: a gymnasium id or env, a stable-baselines3 `VecEnv`, or a gymnasium `VectorEnv`
    :param learning_rate: of everything but the compressors; a number or a function of the progress left (1 to 0)
    :param memory_learning_rate: of the compressors; likewise
    :param n_steps: steps per env and rollout
    :param refresh: "none", "recompute" or k, see above
    :param window: T, steps that one unroll trains on; divides `n_steps`; None for `n_steps`
    :param batch_size: steps in a minibatch, a multiple of `window`; None for a quarter of the rollout, and all of it
        where it has fewer
    :param n_epochs: passes over each rollout
    :param gamma: discount factor
    :param gae_lambda: trade-off between bias and variance of the advantages
    :param clip_range: of the probability ratio; a number or a function of the progress left
    :param clip_range_vf: of the value's change, or None for no clipping; depends on the reward's scale
    :param normalize_advantage: whether advantages are normalised per minibatch
    :param ent_coef: weight of the entropy in the loss
    :param vf_coef: weight of the value loss in the loss
    :param max_grad_norm: gradient clip of everything but the compressors
    :param memory_max_grad_norm: gradient clip of the compressors; the paper calls 0.1 crucial
    :param target_kl: stop an update where the approximate KL divergence exceeds 1.5 times this; None for no limit
    :param stats_window_size: episodes that the reported means are over
    :param tensorboard_log: folder for TensorBoard, or None
    :param policy_kwargs: see `MemoryPolicy`, above all `core` and `core_kwargs`
    :param verbose: 0 silent, 1 info, 2 debug
    :param seed: of everything random
    :param device: where the policy lives
    :raises ValueError: where an argument or a space does not fit
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpMemoryPolicy": MlpMemoryPolicy,
        "CnnMemoryPolicy": CnnMemoryPolicy,
        "MultiInputMemoryPolicy": MultiInputMemoryPolicy,
    }
    policy: MemoryPolicy
    rollout_buffer: WindowBuffer

    def __init__(
        self,
        policy: str | type[MemoryPolicy],
        env: GymEnv | gym.vector.VectorEnv[Any, Any, Any] | str | None,
        learning_rate: float | Schedule = 3e-4,
        *,
        memory_learning_rate: float | Schedule = 1e-3,
        n_steps: int = 128,
        window: int | None = None,
        refresh: str | int = "none",
        batch_size: int | None = None,
        n_epochs: int = 4,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        memory_max_grad_norm: float = 0.1,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        check_numbers(
            at_least_1={"n_steps": n_steps, "window": window, "batch_size": batch_size, "n_epochs": n_epochs},
            positive={
                "learning_rate": learning_rate,
                "memory_learning_rate": memory_learning_rate,
                "clip_range": clip_range,
                "clip_range_vf": clip_range_vf,
                "max_grad_norm": max_grad_norm,
                "memory_max_grad_norm": memory_max_grad_norm,
                "target_kl": target_kl,
            },
            not_negative={"ent_coef": ent_coef, "vf_coef": vf_coef, "gamma": gamma, "gae_lambda": gae_lambda},
            at_most_1={"gamma": gamma, "gae_lambda": gae_lambda},
        )
        check_device(device)
        if isinstance(env, str):
            check_env_id(env)
        super().__init__(
            policy,
            env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self.memory_learning_rate = memory_learning_rate
        self.window = window
        self.refresh = refresh
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.memory_max_grad_norm = memory_max_grad_norm
        self.target_kl = target_kl
        self._actor: Actor | None = None
        if _init_setup_model:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: Any, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, gym.vector.VectorEnv):
            env = GymnasiumVecEnv(env)
        check_spaces(env.observation_space, env.action_space)
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name not in self.policy_aliases:
            raise _unknown_policy(policy_name)
        return self.policy_aliases[policy_name]

    def _setup_model(self) -> None:
        self._setup_lr_schedule()
        self._memory_lr_schedule = FloatSchedule(self.memory_learning_rate)
        self._clip_schedule = FloatSchedule(self.clip_range)
        self._clip_vf_schedule = None if self.clip_range_vf is None else FloatSchedule(self.clip_range_vf)
        self.set_random_seed(self.seed)
        window = self.n_steps if self.window is None else self.window
        self._batch_windows = batch_windows(self.n_steps, window, self.n_envs, self.batch_size)
        self.rollout_buffer = WindowBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            gae_lambda=self.gae_lambda,
            gamma=self.gamma,
            n_envs=self.n_envs,
            window=window,
            burn_in=burn_in_steps(self.refresh, self.n_steps),
        )
        policy_class: Any = self.policy_class
        if not (isinstance(policy_class, type) and issubclass(policy_class, MemoryPolicy)):
            raise _unknown_policy(getattr(policy_class, "__name__", repr(policy_class)))
        policy = self._make_policy(policy_class)
        self.policy = policy.to(self.device)
        self._actor = None

    def _make_policy(self, policy_class: type[MemoryPolicy]) -> MemoryPolicy:
        kwargs = self.policy_kwargs
        if not isinstance(kwargs, dict) or "memory_lr" in kwargs:
            raise ValueError(
                f"policy_kwargs must be a dict, without memory_lr (use memory_learning_rate); got {kwargs!r}"
            )
        if not isinstance(kwargs.get("core_kwargs") or {}, dict):
            raise ValueError(f"core_kwargs must be a dict, got {kwargs['core_kwargs']!r}")
        memory_lr = self._memory_lr_schedule(1)
        try:
            return policy_class(
                self.observation_space, self.action_space, self.lr_schedule, memory_lr=memory_lr, **kwargs
            )
        except TypeError as error:
            raise ValueError(f"policy_kwargs do not fit {policy_class.__name__}: {error}") from error

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Act for `n_rollout_steps` steps in each env and fill the buffer; False if a callback stopped it."""
        self.policy.set_training_mode(False)
        self.rollout_buffer.reset()
        callback.on_rollout_start()
        infos: list[dict[str, Any]] = []
        for _ in range(n_rollout_steps):
            step_infos = self._collect_step(env, callback)
            if step_infos is None:
                return False
            infos = step_infos
        last_values = self._values_after_rollout(infos)
        self.rollout_buffer.compute_returns_and_advantage(last_values, np.asarray(self._last_episode_starts))
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _collect_step(self, env: VecEnv, callback: BaseCallback) -> list[dict[str, Any]] | None:
        """Act once in every env and store what came of it; return the step's infos, None if a callback says stop."""
        obs: Any = self._last_obs
        check_finite(obs, "observation", self.num_timesteps)
        actor = self._actor_in(env.num_envs)
        if self.rollout_buffer.needs_snapshot():
            self.rollout_buffer.add_snapshot(actor.state())
        acted = actor.act(self._last_obs_tensor(), self._last_reset())
        actions = self.policy.env_actions(acted.actions)
        new_obs, rewards, dones, infos = env.step(actions)
        self.num_timesteps += env.num_envs
        callback.update_locals(locals())
        keep_going = callback.on_step()
        reset = np.asarray(self._last_episode_starts)
        actor.tell_rewards(rewards)
        # Also if a callback stops here: learning may be resumed, and the env has gone on.
        self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        if not keep_going:
            return None
        self._update_info_buffer(infos, dones)
        check_finite(rewards, "reward", self.num_timesteps)
        self.rollout_buffer.add_step(obs, acted, rewards, reset)
        self._settle_episode_ends(infos, dones, actor)
        return infos

    def _values_after_rollout(self, infos: list[dict[str, Any]]) -> Tensor:
        """Return the values [B] of the observations that the rollout ends with; `infos` are of its last step."""
        check_finite(self._last_obs, "observation", self.num_timesteps)
        state = self._actor_in(len(infos)).state()
        with torch.no_grad():
            values = self.policy.values_after(self._last_obs_tensor(), state, self._last_reset())
        # Where `GymnasiumVecEnv` reports an end one step late, a terminated episode looks as if it went on.
        over = [info.get("NextStep.terminated", False) for info in infos]
        return values.masked_fill(torch.as_tensor(over, device=self.device), 0.0)

    def _actor_in(self, n_envs: int) -> Actor:
        """Return who acts on after the last step; at first every env starts afresh, as at an episode's start."""
        if self._actor is None:
            self._actor = self.policy.actor(self.policy.initial_state(n_envs))
            self._last_episode_starts = np.ones(n_envs, dtype=bool)
        return self._actor

    def _settle_episode_ends(self, infos: list[dict[str, Any]], dones: np.ndarray, actor: Actor) -> None:
        """Bootstrap what a time limit cut, and leave steps whose action the env ignored out of the losses.

        A cut episode's return goes on with the value of its terminal observation, seen from the state after the
        last step. In a reset step that is what the agent has just acted on.
        """
        buffer = self.rollout_buffer
        ended: list[int] = np.flatnonzero(dones).tolist()
        cut = [env for env in ended if infos[env].get("TimeLimit.truncated", False)]
        late = [env for env in ended if infos[env].get("reset_step", False)]
        for env in late:
            buffer.ignore_step(env, terminated=env not in cut)
        in_time = [env for env in cut if env not in late]
        if in_time:
            buffer.rewards[buffer.pos - 1, in_time] += self.gamma * self._terminal_values(in_time, infos, actor)

    def _terminal_values(self, envs: list[int], infos: list[dict[str, Any]], actor: Actor) -> np.ndarray:
        observations = [self.policy.obs_to_tensor(infos[env]["terminal_observation"])[0] for env in envs]
        for env, observation in zip(envs, observations, strict=True):
            check_finite(observation, f"terminal_observation of env {env}", self.num_timesteps)
        state = actor.state(np.asarray(envs))
        going_on = torch.zeros(len(envs), dtype=torch.bool, device=self.device)
        with torch.no_grad():
            return self.policy.values_after(_concatenate(observations), state, going_on).cpu().numpy()

    def train(self) -> None:
        """Learn from the rollout in the buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rates()
        clip_range = self._clip_schedule(self._current_progress_remaining)
        statistics = _Statistics()
        go_on = True
        everything = self.rollout_buffer.all_windows(self.policy)
        for _ in range(self.n_epochs):
            for batch in window_batches(everything, self._batch_windows):
                first = not statistics.values
                batch = self._refreshed(batch)
                kl = self._loss_and_gradients(batch, clip_range, statistics, first=first)
                if self.target_kl is not None and kl > 1.5 * self.target_kl:
                    go_on = False
                    break
                self._optimize(statistics)
            self._n_updates += 1
            if not go_on:
                break
        self._log_training(statistics, clip_range)
        if statistics.values:
            self._log_staleness(everything.windows)
            self._adapt(statistics)

    def _adapt(self, statistics: _Statistics) -> None:
        """Let the core change what it chooses by itself; the next rollout begins with it."""
        diagnostics = {name.removeprefix("memory/"): value for name, value in statistics.means().items()}
        for name, value in self.policy.core.adapt(diagnostics).items():
            self.logger.record(f"memory/{name}", value)

    def _refreshed(self, batch: WindowBatch) -> WindowBatch:
        """Put the states before a minibatch's windows as the weights, as they are now, make them from the burn-in."""
        if batch.burn_in is None:
            return batch
        steps, known = batch.burn_in
        stored = batch.windows.core_state
        made = self.policy.remember(steps)
        state = self.policy.core.make_state(
            torch.where(known.view(-1, *[1] * (old.dim() - 1)), new, old) for new, old in zip(made, stored, strict=True)
        )
        return batch._replace(windows=batch.windows._replace(core_state=state))

    def _log_staleness(self, windows: Windows) -> None:
        """Log how far what acting wrote in the rollout's last window is from what the new weights write there."""
        n_envs = self.n_envs
        envs = np.arange(-(-n_envs // 8))
        rows = torch.as_tensor(len(windows.reset) - n_envs + envs, device=self.device)  # those of the last window
        last: Windows = select(windows, rows)
        now, then = self.policy.remember(last), self._actor_in(n_envs).state(envs).core
        staleness = _drift(last.core_state, then, now)
        if staleness is not None:
            self.logger.record("memory/staleness", staleness)

    def _loss_and_gradients(
        self, batch: WindowBatch, clip_range: float, statistics: _Statistics, *, first: bool
    ) -> float:
        """Compute all losses of a minibatch and their gradients; return the approximate KL divergence."""
        counted = _counted(batch.loss_mask)
        evaluated = self.policy.evaluate_windows(batch.windows, diagnose=first)
        log_ratio = counted(evaluated.log_prob - batch.old_log_prob)
        ratio = log_ratio.exp()
        if first:
            statistics.add("train/first_ratio_deviation", (ratio - 1).abs().max())
        advantages = counted(batch.advantages)
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
        policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
        value_loss = F.mse_loss(counted(self._clipped_values(evaluated.values, batch)), counted(batch.returns))
        entropy = -evaluated.log_prob if evaluated.entropy is None else evaluated.entropy
        entropy_loss = -counted(entropy).mean()
        loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss
        reconstruction_loss = evaluated.unrolled.reconstruction_loss
        check_finite(loss, "loss", self.num_timesteps)
        check_finite(reconstruction_loss, "reconstruction_loss", self.num_timesteps)

        self.policy.zero_grad()
        # The two losses share no parameter, so one backward pass serves both.
        (loss + reconstruction_loss).backward()

        with torch.no_grad():
            kl = ((log_ratio.exp() - 1) - log_ratio).mean()  # http://joschu.net/blog/kl-approx.html
            statistics.add("train/policy_gradient_loss", policy_loss)
            statistics.add("train/value_loss", value_loss)
            statistics.add("train/entropy_loss", entropy_loss)
            statistics.add("train/loss", loss)
            statistics.add("train/approx_kl", kl)
            statistics.add("train/clip_fraction", ((ratio - 1).abs() > clip_range).float().mean())
            for name, value in evaluated.unrolled.diagnostics.items():
                statistics.add(f"memory/{name}", value)
        return float(kl)

    def _clipped_values(self, values: Tensor, batch: WindowBatch) -> Tensor:
        if self._clip_vf_schedule is None:
            return values
        clip_range = self._clip_vf_schedule(self._current_progress_remaining)
        return batch.old_values + (values - batch.old_values).clamp(-clip_range, clip_range)

    def _optimize(self, statistics: _Statistics) -> None:
        """Clip and step the two optimizers apart, so that neither's gradients scale the other's."""
        groups = [("train/grad_norm", self.policy.optimizer, self.max_grad_norm)]
        if self.policy.memory_optimizer is not None:
            groups.append(("memory/grad_norm", self.policy.memory_optimizer, self.memory_max_grad_norm))
        for name, optimizer, limit in groups:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
            check_gradients(norm, self.policy, self.num_timesteps)  # before clipping, which would spread a NaN
            clip_grads_with_norm_(parameters, limit, norm)
            statistics.add(name, norm)
        for _, optimizer, _ in groups:
            optimizer.step()

    def _update_learning_rates(self) -> None:
        self._update_learning_rate(self.policy.optimizer)
        if self.policy.memory_optimizer is not None:
            rate = self._memory_lr_schedule(self._current_progress_remaining)
            update_learning_rate(self.policy.memory_optimizer, rate)
            self.logger.record("memory/learning_rate", rate)

    def _log_training(self, statistics: _Statistics, clip_range: float) -> None:
        if not statistics.values:
            return  # the env ignored every action of the rollout, so there was nothing to learn from
        buffer = self.rollout_buffer
        for name, value in statistics.means().items():
            self.logger.record(name, value)
        explained = explained_variance(buffer.values[buffer.loss_mask], buffer.returns[buffer.loss_mask])
        self.logger.record("train/explained_variance", explained)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", self.policy.log_std.exp().mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if self._clip_vf_schedule is not None:
            self.logger.record("train/clip_range_vf", self._clip_vf_schedule(self._current_progress_remaining))
        self.logger.record("memory/state_bytes", self.policy.core.state_bytes)

    def learn(
        self: Self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MemoryPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Train for at least `total_timesteps` steps, summed over the envs; arguments as in stable-baselines3."""
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        total, callback = super()._setup_learn(*args, **kwargs)
        self._log_hparams()
        return total, callback

    def _log_hparams(self) -> None:
        names = ("n_steps", "window", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef")
        more = ("max_grad_norm", "memory_max_grad_norm", "seed", "n_envs")
        values: dict[str, Any] = {name: getattr(self, name) for name in names + more}
        values["learning_rate"] = self.lr_schedule(1)
        values["memory_learning_rate"] = self._memory_lr_schedule(1)
        values["refresh"] = str(self.refresh)
        values["core"] = self.policy_kwargs.get("core", "compressive")
        core_kwargs = self.policy_kwargs.get("core_kwargs") or {}
        values.update({f"core/{key}": str(value) for key, value in core_kwargs.items()})
        values["parameters"] = sum(parameter.numel() for parameter in self.policy.parameters())
        hparams = {key: "default" if value is None else value for key, value in values.items()}
        metrics = {"rollout/ep_rew_mean": 0.0, "rollout/success_rate": 0.0, "train/value_loss": 0.0}
        self.logger.record("hparams", HParam(hparams, metrics), exclude=("stdout", "log", "json", "csv"))

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        reward: np.ndarray | float | None = None,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Choose actions; see `MemoryPolicy.predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic, reward)

    def _last_obs_tensor(self) -> Any:
        return obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]

    def _last_reset(self) -> Tensor:
        return torch.as_tensor(self._last_episode_starts, dtype=torch.bool, device=self.device)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_actor"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names = ["policy", "policy.optimizer"]
        if self.policy.memory_optimizer is not None:
            names.append("policy.memory_optimizer")
        return names, []


class _Statistics:
    """Means over the minibatches of an update."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}

    def add(self, name: str, value: Tensor) -> None:
        self.values.setdefault(name, []).append(value.detach())

    def means(self) -> dict[str, float]:
        return {name: torch.stack(values).mean().item() for name, values in self.values.items()}


def _counted(loss_mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Return what picks the steps [K] that count from [N, T]; where all do, that is much cheaper."""
    return torch.flatten if bool(loss_mask.all()) else lambda steps: steps[loss_mask]


def _drift(before: tuple[Tensor, ...], then: tuple[Tensor, ...], now: tuple[Tensor, ...]) -> float | None:
    """Return ||now - then|| / ||then|| over the numbers that differ between `before` and `then`.

    :param before: leaves of a state; those of whole numbers, such as clocks, do not count
    :param then: of the state after some steps
    :param now: of the state after the same steps with other weights
    :return: 0 where nothing differs, None where states hold no number at all
    """
    numbers = [[leaf.flatten() for leaf in state if leaf.is_floating_point()] for state in (before, then, now)]
    if not any(leaf.numel() for leaf in numbers[0]):
        return None
    first, old, new = (torch.cat(leaves) for leaves in numbers)
    written = old != first
    size = old[written].norm().clamp_min(torch.finfo(old.dtype).tiny)
    return float((new - old)[written].norm() / size)


def _unknown_policy(name: str) -> ValueError:
    return ValueError(
        f"policy must be one of {', '.join(MemoryPPO.policy_aliases)} or a MemoryPolicy class, got {name}"
    )


def _concatenate(observations: list[Any]) -> Any:
    if isinstance(observations[0], dict):
        return {key: torch.cat([part[key] for part in observations]) for key in observations[0]}
    return torch.cat(observations)
