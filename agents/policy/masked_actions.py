"""Choice and log-probability of actions some of which are masked: these have probability 0 and pass no gradient."""

from __future__ import annotations

import copy

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from torch import Tensor

from ctrl.agents.vec_envs.action_masks import choices

STANDARD = (BernoulliDistribution, CategoricalDistribution, DiagGaussianDistribution, MultiCategoricalDistribution)
"""Distributions of stable-baselines3 that a policy head's output decides alone."""


def without_parameters(distribution: Distribution) -> Distribution:
    """Return a copy of a distribution that has not been asked for anything yet."""
    fresh = copy.copy(distribution)
    for name in ("distribution", "distributions", "mean_actions", "log_std", "gaussian_actions"):
        vars(fresh).pop(name, None)
    return fresh


def draw(log_probs: Tensor) -> Tensor:
    """Draw one of K categories per row: log-probabilities [B, K] -> indices [B, 1].

    The method and the random numbers are those of `torch.multinomial`, without its checks, which take time.
    """
    waits = torch.empty_like(log_probs).exponential_()
    return log_probs.exp().div_(waits).argmax(dim=1, keepdim=True)


def entropy_of(log_probs: Tensor) -> Tensor:
    """Return the entropies [N] of categories with log-probabilities [N, K], some of which may be -inf."""
    finite = log_probs.clamp_min(torch.finfo(log_probs.dtype).min)  # 0 * -inf is NaN
    return -(log_probs.exp() * finite).sum(dim=1)


class MaskedActions:
    """Distribution of N actions under masks.

    :param logits: [N, K] output of the policy head's last layer: one for each choice, or for MultiBinary one for each
        entry, as in stable-baselines3
    :param masks: [N, M] bool, true where a choice may be taken
    """

    def __init__(self, action_space: spaces.Space, logits: Tensor, masks: Tensor) -> None:  # type: ignore[type-arg]
        if isinstance(action_space, spaces.MultiBinary):
            logits = torch.stack([torch.zeros_like(logits), logits], dim=2).flatten(1)  # of 0 and of 1
        kept = logits.masked_fill(~masks, -torch.inf)
        self._one = isinstance(action_space, spaces.Discrete)
        self._parts = [part.log_softmax(dim=1) for part in kept.split(choices(action_space), dim=1)]

    def choose(self, deterministic: bool) -> tuple[Tensor, Tensor]:
        """Return actions [N], or [N, parts], and their log-probabilities [N]."""
        drawn = [part.argmax(dim=1, keepdim=True) if deterministic else draw(part) for part in self._parts]
        actions = torch.cat(drawn, dim=1)
        return actions[:, 0] if self._one else actions, self._log_prob(actions)

    def judge(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [N] and entropies [N] of actions [N] or [N, parts]."""
        entropies = [entropy_of(part) for part in self._parts]
        return self._log_prob(actions.long().view(len(actions), -1)), torch.stack(entropies).sum(dim=0)

    def _log_prob(self, actions: Tensor) -> Tensor:
        found = [part.gather(1, chosen[:, None]) for part, chosen in zip(self._parts, actions.unbind(1), strict=True)]
        return torch.cat(found, dim=1).sum(dim=1)

    def probabilities(self) -> Tensor:
        """Return the probability of each choice, [N, M]."""
        return torch.cat(self._parts, dim=1).exp()
