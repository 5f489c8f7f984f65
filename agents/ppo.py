"""PPO (Schulman et al. 2017, arXiv 1707.06347) for policies with a memory core, in the manner of stable-baselines3."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from stable_baselines3.common.type_aliases import GymEnv, Schedule
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from ctrl.agents.algorithm import FALLING_RATE, MemoryAlgorithm
from ctrl.agents.buffers import WindowBatch, WindowBuffer, window_batches
from ctrl.agents.policy.memory_policy import MemoryPolicy
from ctrl.agents.utils.modes import depends_on_mode, evaluating
from ctrl.agents.utils.other_names import answering_other_names
from ctrl.agents.utils.statistics import Statistics
from ctrl.agents.utils.validation import (
    batch_windows,
    burn_in_steps,
    check_env,
    check_env_id,
    check_numbers,
)


class MemoryPPO(MemoryAlgorithm):
    """PPO with a memory core in its policy.

        model = MemoryPPO("MlpMemoryPolicy", "CartPole-v1", policy_kwargs={"core": "compressive"})
        model.learn(100_000)

    Rollouts are cut into windows. Each window is unrolled from one stored state, and minibatches are whole windows.
    Compressors with parameters learn from the core's reconstruction loss, with an optimizer of their own.

    A stored state becomes stale: it was made by the weights that acted, and parts of it by older ones. The effect of
    one update is logged as `memory/staleness`, ||now - then|| / ||then||. `then` is the core's state after the
    rollout's last window, as acting left it. `now` is the same state recomputed with the updated weights, over the same
    steps and from the same stored state before them. Only entries that the window changed count: the others are equal
    in both, and would make the result depend on the memory's size. The measure covers the first eighth of the envs, at
    least one. A core without memory logs none.

    `refresh` decides how stale states are treated:

    - "none": they are used as they were stored. The first probability ratio of an update is then 1.
    - k, at least 1 and at most `n_steps`: burn-in (Kapturowski et al. 2019, R2D2). A window's state is recomputed
      without a gradient over the k steps before the window, from the state stored before those steps. This is done for
      each minibatch just before its update: it costs no more than doing it for all windows before each epoch, and uses
      the newest weights. The burn-in of the rollout's first windows lies in the previous rollout. Where that is missing
      (before the first rollout, and after a callback stopped one) and no episode has started since, the state stays as
      it was stored.
    - "recompute": burn-in over all steps that are kept, k = `n_steps`.

    A burn-in costs k / `window` more forward passes over the rollout in each epoch, and k / `window` more copies of its
    observations during an update. The first ratio differs from 1 where weights have changed since the states were
    stored.

    :param policy: "MlpMemoryPolicy", "CnnMemoryPolicy", "MultiInputMemoryPolicy", or a class
    :param env: a gymnasium id or env, a stable-baselines3 `VecEnv`, or a gymnasium `VectorEnv`
    :param learning_rate: of everything but the compressors; a number or a function of the progress left (1 to 0). By
        default it falls from 1e-3 to 0 over a call of `learn`; see there for training in several calls
    :param memory_learning_rate: of the compressors; a number or a function of the progress left
    :param n_steps: steps per env and rollout
    :param window: T, steps that one unroll trains on; divides `n_steps`; None for `n_steps`
    :param refresh: "none", "recompute" or k, see above
    :param batch_size: steps in a minibatch, a multiple of `window`; None for a quarter of the rollout's windows,
        rounded down, at least one
    :param n_epochs: passes over each rollout
    :param gamma: discount factor
    :param gae_lambda: trade-off between bias and variance of the advantages
    :param clip_range: clip of the probability ratio; a number or a function of the progress left
    :param clip_range_vf: clip of the value's change, or None for no clipping; in units of `train/value_scale`, so that
        it does not depend on the rewards' scale, unless `normalize_values` is False
    :param normalize_advantage: whether advantages are normalised per minibatch
    :param normalize_values: whether the value head learns in units of a running mean and scale of returns, as in
        `ValueNormalisation`. Training then does not depend on the rewards' scale, unless the policy sees the rewards
        (`previous_reward`). Values, returns and advantages of the buffer are in the rewards' units either way
    :param ent_coef: weight of the entropy in the loss; like all that follows up to `target_kl`, a number or a schedule
    :param vf_coef: weight of the value loss in the loss
    :param max_grad_norm: gradient clip of everything but the compressors
    :param memory_max_grad_norm: gradient clip of the compressors; the paper calls 0.1 crucial
    :param target_kl: stop an update where the approximate KL divergence exceeds 1.5 times this; None for no limit
    :param use_masking: whether actions that the env's method `action_masks()` rules out are never taken, as by
        sb3-contrib's MaskablePPO. None: if the env has that method; True: it must have it; False: masks are ignored
    :param stats_window_size: number of episodes over which the reported means are taken
    :param tensorboard_log: folder for TensorBoard, or None
    :param policy_kwargs: see `MemoryPolicy`, above all `core` and `core_kwargs`
    :param verbose: 0 silent, 1 info, 2 debug
    :param seed: seed of all random numbers
    :param device: device of the policy
    :raises ValueError: where an argument or a space does not fit
    """

    logged_hparams: ClassVar[tuple[str, ...]] = (
        *("n_steps", "window", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef"),
        *("max_grad_norm", "memory_max_grad_norm", "normalize_values", "seed", "n_envs", "refresh"),
    )

    @answering_other_names
    def __init__(
        self,
        policy: str | type[MemoryPolicy],
        env: GymEnv | gym.vector.VectorEnv[Any, Any, Any] | str | None,
        learning_rate: float | Schedule = FALLING_RATE,
        *,
        memory_learning_rate: float | Schedule = 5e-3,
        n_steps: int = 64,
        window: int | None = None,
        refresh: str | int = "none",
        batch_size: int | None = None,
        n_epochs: int = 4,
        gamma: float = 0.99,
        gae_lambda: float | Schedule = 0.9,
        clip_range: float | Schedule = 0.2,
        clip_range_vf: float | Schedule | None = None,
        normalize_advantage: bool = True,
        normalize_values: bool = True,
        ent_coef: float | Schedule = 0.01,
        vf_coef: float | Schedule = 0.1,
        max_grad_norm: float | Schedule = 0.5,
        memory_max_grad_norm: float | Schedule = 0.1,
        target_kl: float | Schedule | None = None,
        use_masking: bool | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        if isinstance(env, str):
            check_env_id(env)
        elif _init_setup_model:
            check_env(env)
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            memory_learning_rate=memory_learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
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
        self.window = window
        self.refresh = refresh
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.clip_range = clip_range
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.target_kl = target_kl
        if _init_setup_model:
            self._setup_model()

    fixed: ClassVar[tuple[str, ...]] = ("n_steps", "window", "refresh", "use_masking", "policy_kwargs", "seed")
    changeable: ClassVar[tuple[str, ...]] = (
        *("learning_rate", "memory_learning_rate", "batch_size", "n_epochs", "gamma", "gae_lambda", "clip_range"),
        *("clip_range_vf", "ent_coef", "vf_coef", "max_grad_norm", "memory_max_grad_norm", "target_kl"),
    )

    def _check_arguments(self) -> None:
        self._check_shared()
        check_numbers(
            at_least_1=self._named("window", "batch_size", "n_epochs"),
            positive=self._named("clip_range", "clip_range_vf", "target_kl"),
            not_negative=self._named("gae_lambda"),
            at_most_1=self._named("gae_lambda"),
            optional=("window", "batch_size", "clip_range_vf", "target_kl"),
        )
        self._windows_in_batch()

    def _windows_in_batch(self) -> int:
        window = self.n_steps if self.window is None else self.window
        return batch_windows(self.n_steps, window, self.n_envs, self.batch_size)

    def _setup_model(self) -> None:
        self._check_arguments()
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        self._setup_buffer()
        self._make_memory_policy()
        self._built = True

    def _setup_buffer(self) -> None:
        window = self.n_steps if self.window is None else self.window
        self.rollout_buffer = WindowBuffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            device=self.device,
            n_envs=self.n_envs,
            window=window,
            burn_in=burn_in_steps(self.refresh, self.n_steps),
            mask_size=self._mask_size(),
        )

    def _finish_rollout(self) -> None:
        """Compute returns and advantages; the values [B] of the observations after the rollout are bootstrap values.

        The rollout ends with a window, so truncated episodes already have their bootstrap values.
        """
        state = self._actor_in(self.n_envs).state()
        with torch.no_grad():
            last_values = self.policy.values_after(self._last_obs_tensor(), state, self._last_reset())
        self.rollout_buffer.compute_returns_and_advantage(
            last_values.cpu().numpy(), gamma=self.gamma, gae_lambda=self.now("gae_lambda")
        )

    def train(self) -> None:
        """Learn from the rollout in the buffer."""
        self.policy.set_training_mode(True)
        self._update_learning_rates()
        clip_range = self.now("clip_range")
        statistics = Statistics()
        everything = self.rollout_buffer.all_windows(self.policy)
        self._count_returns(everything.returns[everything.loss_mask])
        for _ in range(self.n_epochs):
            go_on = self._train_epoch(everything, clip_range, statistics)
            self._n_updates += 1
            if not go_on:
                break
        if not statistics.values:
            return  # the env ignored every action of the rollout, so there was nothing to learn from
        summary = statistics.summary()
        self._log_update(summary)
        self._log_own(clip_range)
        self._log_staleness(everything.windows)
        self._adapt(summary)

    def _train_epoch(self, everything: WindowBatch, clip_range: float, statistics: Statistics) -> bool:
        """Learn from each window once; return False if the policy has moved too far from the one that acted."""
        for batch in window_batches(everything, self._windows_in_batch()):
            first = not statistics.values
            kl = self._loss_and_gradients(self._refreshed(batch), clip_range, statistics, first=first)
            if self.target_kl is not None and kl > 1.5 * self.now("target_kl"):
                return False
            self._optimize(statistics)
        return True

    def _refreshed(self, batch: WindowBatch) -> WindowBatch:
        """Return the minibatch with the states before its windows recomputed over the burn-in, with current weights."""
        if batch.burn_in is None:
            return batch
        steps, known = batch.burn_in
        stored = batch.windows.core_state
        made = self.policy.remember(steps)
        state = self.policy.core.make_state(
            torch.where(known.view(-1, *[1] * (old.dim() - 1)), new, old) for new, old in zip(made, stored, strict=True)
        )
        return batch._replace(windows=batch.windows._replace(core_state=state))

    def _loss_and_gradients(
        self, batch: WindowBatch, clip_range: float, statistics: Statistics, *, first: bool
    ) -> float:
        """Compute all losses of a minibatch and their gradients; return the approximate KL divergence."""
        counted = _counted(batch.loss_mask)
        as_acted = self._evaluated_as_acted(batch) if first and depends_on_mode(self.policy) else None
        evaluated = self.policy.evaluate_windows(batch.windows, diagnose=first)
        log_ratio = counted(evaluated.log_prob - batch.old_log_prob)
        ratio = log_ratio.exp()
        if first:
            first_ratio = ratio if as_acted is None else counted(as_acted - batch.old_log_prob).exp()
            statistics.add("train/first_ratio_deviation", (first_ratio - 1).abs().max())
        units = self.policy.value_normalisation
        advantages = units.rescaled(counted(batch.advantages))
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
        policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
        outputs = self._clipped_outputs(self.policy.value_outputs(evaluated.latent_vf), batch)
        value_loss = F.mse_loss(counted(outputs), units.normalised(counted(batch.returns)))
        entropy_loss = -counted(evaluated.entropy_estimate).mean()
        self.policy.zero_grad()
        self._backward(policy_loss, value_loss, entropy_loss, evaluated, statistics)
        with torch.no_grad():
            kl = ((log_ratio.exp() - 1) - log_ratio).mean()  # http://joschu.net/blog/kl-approx.html
            statistics.add("train/approx_kl", kl)
            statistics.add("train/clip_fraction", ((ratio - 1).abs() > clip_range).float().mean())
        return float(kl)

    def _evaluated_as_acted(self, batch: WindowBatch) -> Tensor:
        """Return log-probabilities [N, T] without dropout; to be called before training mode moves batch norms."""
        with torch.no_grad(), evaluating(self.policy):
            return self.policy.evaluate_windows(batch.windows).log_prob

    def _clipped_outputs(self, outputs: Tensor, batch: WindowBatch) -> Tensor:
        if self.clip_range_vf is None:
            return outputs
        clip_range = self.now("clip_range_vf")
        old_outputs = self.policy.value_normalisation.normalised(batch.old_values)
        return old_outputs + (outputs - old_outputs).clamp(-clip_range, clip_range)

    def _log_own(self, clip_range: float) -> None:
        """Log what only PPO has."""
        buffer = self.rollout_buffer
        explained = float(explained_variance(buffer.values[buffer.loss_mask], buffer.returns[buffer.loss_mask]))
        self.logger.record("train/explained_variance", explained)
        self.logger.record("train/clip_range", clip_range)
        if self.clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", self.now("clip_range_vf"))


def _counted(loss_mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that selects the counted steps [K] from [N, T]; where all count, a much cheaper flatten."""
    return torch.flatten if bool(loss_mask.all()) else lambda steps: steps[loss_mask]
