"""Explanation of an episode: attention by age, layer, head and tier, beside actions and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ctrl.agents.policy.policy_data import Windows, each_part
from ctrl.agents.policy.predicting import masks_of
from ctrl.agents.policy.windows import recorded_windows
from ctrl.agents.vec_envs.action_masks import choices
from ctrl.compressive.core import CompressiveCore
from ctrl.compressive.explain import ExplainedTier
from ctrl.compressive.tiers import Tiers

if TYPE_CHECKING:
    from ctrl.agents.policy.memory_policy import MemoryPolicy

WINDOW = 64
"""Steps that are explained at once, which bounds the memory needed. Only `error` depends on it: what a slot lost is
measured with the queries of the steps that are explained together."""
Floats = npt.NDArray[np.float32]


class AttendedTier(NamedTuple):
    """Attention of an episode's T steps to one tier with S slots, the newest first."""

    span: int
    """Steps that a slot stands for."""
    attention: Floats
    """[T, H, S] each head's weights. Over all tiers of a layer they sum to 1 at each step. 0 where a slot is empty."""
    age: npt.NDArray[np.int64]
    """[T, S] steps from the middle of what a slot stands for to the step that attends; -1 where the slot is empty."""
    error: Floats
    """[T] share of the attention output that was lost when a slot was formed at this step; NaN where none was. Tier 0
    forms none."""

    def by_step(self) -> Floats:
        """Return the attention to each step of the episode, [T, T], mean over heads: row t has what step t looks at.

        A slot's weight is spread evenly over the steps that it stands for.
        """
        rows, steps, weights = self._spread()
        return _summed(len(self.age), rows, steps, weights)

    def by_age(self) -> Floats:
        """Return the attention to each age, [T, T], mean over heads: column a has what step t gives to step t - a."""
        rows, steps, weights = self._spread()
        return _summed(len(self.age), rows, rows - steps, weights)

    def _spread(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
        """Return steps that look, steps looked at and weights: an entry for each step that a seen slot stands for."""
        rows, slots = np.nonzero(self.age >= 0)
        firsts = rows - self.age[rows, slots] - self.span // 2
        steps = (firsts[:, None] + np.arange(self.span)).reshape(-1)
        weights = (self.attention.mean(axis=1) / self.span)[rows, slots]
        return rows.repeat(self.span), steps, weights.repeat(self.span)

    def mean_age(self) -> Floats:
        """Return the mean age that each head looks at in this tier, [T, H]; NaN where it sees no slot."""
        seen = self.attention.sum(axis=2)
        aged = (self.attention * self.age.clip(0)[:, None]).sum(axis=2)
        means: Floats = np.divide(aged, seen, out=np.full_like(seen, np.nan), where=seen > 0)
        return means


def _summed(size: int, rows: Any, columns: Any, weights: Any) -> Floats:
    """Return [size, size] with each weight at its row and column."""
    table = np.zeros((size, size), dtype=np.float32)
    np.add.at(table, (rows, columns), weights)
    return table


@dataclass(frozen=True)
class Explanation:
    """Actions, values and attention of an agent at each of an episode's T steps."""

    actions: np.ndarray
    """[T, ...] as the env takes them."""
    log_prob: Floats
    """[T] log-probabilities of the actions."""
    probabilities: Floats | None
    """[T, M] probabilities of all choices: n for Discrete(n), those of all parts one after another for MultiDiscrete,
    and two (0, 1) for each entry of MultiBinary. None for Box actions, and for a policy's own distribution."""
    values: Floats
    """[T] values in the rewards' units."""
    layers: list[list[AttendedTier]]
    """Attention by layer and tier."""


def explain(
    policy: MemoryPolicy, observations: Any, actions: Any = None, rewards: Any = None, action_masks: Any = None
) -> Explanation:
    """Explain one episode; see `MemoryAlgorithm.explain`."""
    core = attentive_core(policy)
    policy.set_training_mode(False)
    steps = _length(observations)
    if actions is None:
        actions = likeliest_actions(policy, observations, rewards, action_masks)
    starts = np.arange(steps)[None] == 0
    windows = recorded_windows(
        policy, _of_one(observations), _of_one(actions), starts, _of_one(rewards), _of_one(action_masks)
    )
    with torch.no_grad():
        outputs, parts = _attention(core, policy.inputs_of(windows), windows.reset)
        values, log_prob, probabilities = _judgements(policy, outputs, windows)
    layers = [[_joined(tier) for tier in zip(*layer, strict=True)] for layer in zip(*parts, strict=True)]
    return Explanation(np.asarray(actions), log_prob, probabilities, values, layers)


def _judgements(policy: MemoryPolicy, outputs: Tensor, windows: Windows) -> tuple[Floats, Floats, Floats | None]:
    """Return values [T], log-probabilities of the actions [T] and probabilities of all choices [T, M], if there are."""
    latent_pi, latent_vf = policy.mlp_extractor(outputs[0])
    masks = None if windows.action_masks is None else windows.action_masks[0]
    values, (log_prob, _) = policy._values(latent_vf), policy._judge(latent_pi, windows.actions[0], masks)
    probabilities, size = None, sum(choices(policy.action_space))
    if size and not policy._own_distribution:
        allowed = torch.ones(len(values), size, dtype=torch.bool, device=policy.device) if masks is None else masks
        probabilities = policy.masked_actions(latent_pi, allowed).probabilities().cpu().numpy()
    return values.cpu().numpy(), log_prob.cpu().numpy(), probabilities


def attentive_core(policy: MemoryPolicy) -> CompressiveCore:
    """Return the policy's core.

    :raises ValueError: where it has no attention
    """
    if not isinstance(policy.core, CompressiveCore):
        raise ValueError(
            "explain needs a core with attention (compressive, transformer_xl or gtrxl), "
            f"got {type(policy.core).__name__}, which has no slots to look at"
        )
    return policy.core


def _of_one(part: Any) -> Any:
    """Return [1, T, ...] for [T, ...], and None for None."""
    return None if part is None else each_part(lambda array: np.asarray(array)[None], part)


def _length(observations: Any) -> int:
    parts = list(observations.values()) if isinstance(observations, dict) else [observations]
    lengths = {np.shape(part)[0] if np.ndim(part) else 0 for part in parts}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"observations must have one leading axis [T, ...] of at least one step, got {sorted(lengths)}"
        )
    return int(lengths.pop())


def likeliest_actions(policy: MemoryPolicy, observations: Any, rewards: Any, action_masks: Any) -> np.ndarray:
    """Return the actions [T, ...] that the agent would take after each other, as the env takes them."""
    actor, chosen = policy.actor(policy.initial_state(1)), []
    obs, vectorized = policy.obs_to_tensor(each_part(np.asarray, observations))
    if not vectorized:
        raise ValueError(f"observations must be [T, ...] for {policy.observation_space}, got a single one")
    for step in range(_length(observations)):
        now = each_part(lambda part, at=step: part[at : at + 1], obs)
        masks = None if action_masks is None else masks_of(policy, np.asarray(action_masks)[step], 1)
        acted = actor.act(now, torch.tensor([step == 0], device=policy.device), True, masks)
        if rewards is not None:
            actor.tell_rewards(np.asarray(rewards)[step : step + 1])
        chosen.append(policy.env_actions(acted.actions)[0])
    return np.stack(chosen)


def _attention(core: CompressiveCore, inputs: Tensor, reset: Tensor) -> tuple[Tensor, list[list[list[AttendedTier]]]]:
    """Return the core's outputs [1, T, O], and the attention by window, layer and tier."""
    state, outputs, windows = core.initial_state(1), [], []
    for start in range(0, inputs.shape[1], WINDOW):
        part = slice(start, start + WINDOW)
        explained = core.explain(inputs[:, part], state, reset[:, part])
        state = explained.state
        outputs.append(explained.outputs)
        windows.append([_of_layer(*both) for both in zip(explained.layers, core.tiers, strict=True)])
    return torch.cat(outputs, dim=1), windows


def _of_layer(explained: list[ExplainedTier], tiers: Tiers) -> list[AttendedTier]:
    return [_compact(part, tier.slots) for part, tier in zip(explained, tiers, strict=True)]


def _compact(tier: ExplainedTier, slots: int) -> AttendedTier:
    """Keep of a tier's C slots those that a step sees, at most S = `slots`, the newest first."""
    age = tier.age[0]
    order = torch.where(age < 0, torch.iinfo(age.dtype).max, age).argsort(dim=1, stable=True)[:, :slots]  # [T, S]
    attention = tier.attention[0].transpose(0, 1)  # [T, H, C]
    kept = attention.gather(2, order[:, None].expand(-1, attention.shape[1], -1))
    error = torch.full((len(age),), torch.nan, device=age.device)
    lost = tier.error[0]
    formed = tier.formed[0][len(tier.formed[0]) - len(lost) :]
    error[formed[~lost.isnan()]] = lost[~lost.isnan()].float()
    return AttendedTier(tier.span, kept.float().cpu().numpy(), age.gather(1, order).cpu().numpy(), error.cpu().numpy())


def _joined(windows: Sequence[AttendedTier]) -> AttendedTier:
    return AttendedTier(windows[0].span, *(np.concatenate(parts) for parts in list(zip(*windows, strict=True))[1:]))
