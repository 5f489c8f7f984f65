"""One step of acting, from the envs' observations to the buffer; shared by algorithms and actor processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ctrl.agents.actor import Actor, join_states
from ctrl.agents.buffers import Cut, WindowBuffer, each_part
from ctrl.agents.memory_policy import MemoryPolicy, Observation
from ctrl.agents.policy_data import Acted
from ctrl.agents.utils.nan_checks import check_finite


class EnvStep(NamedTuple):
    """One step of all B envs."""

    seen: Observation
    """[B, ...] observations from which the actions were chosen."""
    acted: Acted
    actions: np.ndarray
    """[B, ...] actions as the envs received them."""
    following: Any
    """[B, ...] next observations."""
    rewards: np.ndarray
    """[B]"""
    ends: np.ndarray
    """[B] true where `following` is the first of an episode."""
    infos: list[dict[str, Any]]


def take_step(actor: Actor, env: VecEnv, buffer: WindowBuffer, seen: Observation, reset: Tensor, now: int) -> EnvStep:
    """Act once in every env. The buffer only gets the state before the step, where a window or burn-in starts with it.

    :param seen: [B, ...] current observations
    :param reset: [B] bool, true where `seen` is the first of an episode
    :param now: number of the training step, for error messages
    :raises NonFiniteError: where `seen` is not finite
    """
    check_finite(seen, "observation", now)
    if buffer.needs_snapshot():
        buffer.add_snapshot(actor.state())
    acted = actor.act(obs_as_tensor(seen, actor.policy.device), reset)
    actions = actor.policy.env_actions(acted.actions)
    return EnvStep(seen, acted, actions, *env.step(actions))


def keep_step(step: EnvStep, starts: np.ndarray, actor: Actor, buffer: WindowBuffer, gamma: float, now: int) -> None:
    """Store a step in the buffer, and bootstrap the returns of truncated episodes.

    The bootstrap value is that of the terminal observation, computed from the state after the last step. The buffer
    gets it by the end of the window. In a reset step the agent has just acted on the terminal observation, and the env
    ignored the action: such a step is left out of the losses.

    :param starts: [B] true where the step's observation was the first of an episode
    :param actor: as it was after the step
    :param now: number of the training step, for error messages
    :raises NonFiniteError: where a reward or a terminal observation is not finite
    """
    check_finite(step.rewards, "reward", now)
    buffer.add_step(step.seen, step.acted, step.rewards, starts)
    ended: list[int] = np.flatnonzero(step.ends).tolist()
    cut = [env for env in ended if step.infos[env].get("TimeLimit.truncated", False)]
    late = [env for env in ended if step.infos[env].get("reset_step", False)]
    for env in late:
        buffer.ignore_step(env, terminated=env not in cut)
    in_time = [env for env in cut if env not in late]
    if in_time:
        buffer.cuts.append(_cut(in_time, step.infos, actor, buffer.pos - 1, now))
    waiting = sum(len(episodes.envs) for episodes in buffer.cuts)
    if waiting and (waiting >= buffer.n_envs or buffer.pos % buffer.window == 0):
        _bootstrap(actor.policy, buffer, gamma)


def ended_unreported(infos: list[dict[str, Any]]) -> np.ndarray:
    """Return [B] bool, true where an episode was terminated but `GymnasiumVecEnv` reports its end one step later."""
    return np.array([info.get("NextStep.terminated", False) for info in infos], dtype=bool)


def _cut(envs: list[int], infos: list[dict[str, Any]], actor: Actor, step: int, now: int) -> Cut:
    observations = [actor.policy.obs_to_tensor(infos[env]["terminal_observation"])[0] for env in envs]
    for env, observation in zip(envs, observations, strict=True):
        check_finite(observation, f"terminal_observation of env {env}", now)
    return Cut(step, envs, actor.state(np.asarray(envs)), each_part(_joined, *observations))


def _bootstrap(policy: MemoryPolicy, buffer: WindowBuffer, gamma: float) -> None:
    """Give the buffer the discounted bootstrap values of all truncated episodes in `buffer.cuts`.

    They are computed all at once: a single one takes about as long as a step of all envs.
    """
    cuts, buffer.cuts = buffer.cuts, []
    state = join_states(policy, [cut.state for cut in cuts])
    observations = each_part(_joined, *(cut.observations for cut in cuts))
    going_on = torch.zeros(len(state.previous_action), dtype=torch.bool, device=policy.device)
    with torch.no_grad():
        values = gamma * policy.values_after(observations, state, going_on).cpu().numpy()
    steps = np.concatenate([np.full(len(cut.envs), cut.step) for cut in cuts])
    buffer.bootstrap(steps, np.concatenate([cut.envs for cut in cuts]), values)


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts)
