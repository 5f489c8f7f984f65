"""Learner of IMPALA: losses and updates from the windows that actors have filled."""

from __future__ import annotations

import numpy as np
import torch
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import explained_variance
from torch import Tensor

from ctrl.agents.actors.pool import Actors
from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.agents.impala.trajectories import TrajectoryBatch, trajectory_batch, vtrace_targets
from ctrl.agents.impala.vtrace import VTrace
from ctrl.agents.policy.policy_data import Evaluated, select
from ctrl.agents.utils.modes import depends_on_mode, evaluating
from ctrl.agents.utils.statistics import Statistics


class VTraceLearner(MemoryAlgorithm):
    """Base of `MemoryImpala` that makes an update from the windows in the buffer; who fills it does not matter here."""

    batch_size: int | None
    vtrace_lambda: float | Schedule
    rho_bar: float | Schedule
    c_bar: float | Schedule
    reward_clipping: str | None
    _actors: Actors | None = None
    """Actors that need each update's weights; None while this process acts."""
    _lags: np.ndarray
    """[windows] number of updates by which the weights that acted were older."""

    def train(self) -> None:
        """Make one update from the windows in the buffer, and publish the new weights."""
        self.policy.set_training_mode(True)
        self._update_learning_rates()
        everything = trajectory_batch(self.rollout_buffer, self.policy)
        counted = int(everything.loss_mask.sum())
        if not counted:
            return  # the env ignored every action, so there is nothing to learn from
        statistics = Statistics()
        self.policy.zero_grad()
        passes = self._passes(len(everything.rewards))
        for rows, targets in zip(passes, self._targets_beforehand(everything, passes), strict=True):
            batch: TrajectoryBatch = select(everything, rows)
            self._add_gradients(batch, int(batch.loss_mask.sum()) / counted, statistics, targets)
        self._optimize(statistics)
        self._n_updates += 1
        summary = statistics.summary()
        self._log_update(summary)
        self.logger.record("train/policy_lag", float(self._lags.mean()))
        if self._actors is None:
            self._log_staleness(everything.windows)
        self._adapt(summary)
        if self._actors is not None:
            self.logger.record("time/actor_restarts", self._actors.restarts)
            self._actors.publish()

    def _passes(self, windows: int) -> tuple[Tensor, ...]:
        """Return the indices of each backward pass's windows, in order."""
        size = windows if self.batch_size is None else self.batch_size // self.n_steps
        passes: tuple[Tensor, ...] = torch.arange(windows, device=self.device).split(size)
        return passes

    def _targets_beforehand(self, everything: TrajectoryBatch, passes: tuple[Tensor, ...]) -> list[VTrace | None]:
        """Return the V-trace targets of each pass, or None where the pass computes its own.

        The units of the value head must follow the returns of all passes before the first gradient. Several passes
        therefore need their targets beforehand, which costs one more forward pass. A single pass does not, unless
        dropout or batch norm tell the acting policy, which targets are about, from the learning one.
        """
        if (len(passes) == 1 or not self.normalize_values) and not depends_on_mode(self.policy):
            return [None] * len(passes)
        beforehand: list[VTrace | None] = []
        returns = []
        for rows in passes:
            batch: TrajectoryBatch = select(everything, rows)
            with torch.no_grad(), evaluating(self.policy):
                targets = self._targets(batch, self.policy.evaluate_windows(batch.windows))
            beforehand.append(targets)
            returns.append(targets.vs[batch.loss_mask])
        self._count_returns(torch.cat(returns))
        return beforehand

    def _add_gradients(
        self, batch: TrajectoryBatch, share: float, statistics: Statistics, targets: VTrace | None = None
    ) -> None:
        """Add the gradients of some of an update's windows.

        :param share: these windows' share of the update's counted steps
        :param targets: V-trace targets, where they are known beforehand; None to compute them here
        """
        if not share:
            return
        evaluated = self.policy.evaluate_windows(batch.windows, diagnose=not statistics.values)
        mask = batch.loss_mask
        if targets is None:
            targets = self._targets(batch, evaluated)
            self._count_returns(targets.vs[mask])
        units = self.policy.value_normalisation
        policy_loss = -(evaluated.log_prob * units.rescaled(targets.pg_advantages))[mask].mean()
        outputs = self.policy.value_outputs(evaluated.latent_vf)
        value_loss = (outputs - units.normalised(targets.vs))[mask].square().mean()
        entropy_loss = -evaluated.entropy_estimate[mask].mean()
        self._backward(policy_loss, value_loss, entropy_loss, evaluated, statistics, share)
        explained = explained_variance(evaluated.values[mask].detach().cpu().numpy(), targets.vs[mask].cpu().numpy())
        statistics.add("train/explained_variance", torch.tensor(explained))
        self._note_ratios(targets.rhos[mask], statistics)

    def _targets(self, batch: TrajectoryBatch, evaluated: Evaluated) -> VTrace:
        return vtrace_targets(
            self.policy,
            batch,
            evaluated,
            gamma=self.gamma,
            reward_clipping=self.reward_clipping,
            rho_bar=self.now("rho_bar"),
            c_bar=self.now("c_bar"),
            lambda_=self.now("vtrace_lambda"),
        )

    def _note_ratios(self, rhos: Tensor, statistics: Statistics) -> None:
        statistics.add("train/rho_mean", rhos.mean())
        statistics.add("train/rho_clip_fraction", (rhos > self.now("rho_bar")).float().mean())
        if not self._lags.any():
            statistics.add("train/first_ratio_deviation", (rhos - 1).abs().max())
