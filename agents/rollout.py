"""One step of acting, from the envs' observations to the buffer; shared by algorithms and actor processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ctrl.agents.actor import Actor, join_states
from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.memory_policy import MemoryPolicy, Observation
from ctrl.agents.policy_data import Acted, each_part
from ctrl.agents.utils.nan_checks import check_finite


class EnvStep(NamedTuple):
    """One step of all B envs."""

    obs: Observation
    """[B, ...] observations from which the actions were chosen."""
    acted: Acted
    actions: np.ndarray
    """[B, ...] actions as the envs received them."""
    next_obs: Any
    """[B, ...]"""
    rewards: np.ndarray
    """[B]"""
    ends: np.ndarray
    """[B] true where `next_obs` is the first of an episode."""
    infos: list[dict[str, Any]]


def take_step(actor: Actor, env: VecEnv, buffer: WindowBuffer, obs: Observation, reset: Tensor, now: int) -> EnvStep:
    """Act once in every env. The buffer only gets the state before the step, where a window or burn-in starts with it.

    :param obs: [B, ...] current observations
    :param reset: [B] bool, true where `obs` is the first of an episode
    :param now: number of the training step, for error messages
    :raises NonFiniteError: where `obs` is not finite
    """
    check_finite(obs, "observation", now)
    if buffer.needs_snapshot():
        buffer.add_snapshot(actor.state())
    acted = actor.act(obs_as_tensor(obs, actor.policy.device), reset)
    actions = actor.policy.env_actions(acted.actions)
    return EnvStep(obs, acted, actions, *env.step(actions))


def keep_step(step: EnvStep, starts: np.ndarray, actor: Actor, buffer: WindowBuffer, gamma: float, now: int) -> None:
    """Store a step in the buffer, with the bootstrap values of truncated episodes and the end of the window.

    The bootstrap value is that of the terminal observation, computed from the state after the last step. The buffer
    gets it by the end of the window. In a reset step the agent has just acted on the terminal observation, and the env
    ignored the action: such a step is left out of the losses.

    :param starts: [B] true where the step's observation was the first of an episode
    :param actor: as it was after the step
    :param now: number of the training step, for error messages
    :raises NonFiniteError: where a reward, a terminal observation or the observation after the window is not finite
    """
    check_finite(step.rewards, "reward", now)
    buffer.add_step(step.obs, step.acted, step.rewards, starts)
    window_ends = buffer.pos % buffer.window == 0
    _keep_ends(step, actor, buffer, now)
    waiting = sum(len(truncation.envs) for truncation in buffer.truncations)
    if waiting and (waiting >= buffer.n_envs or window_ends):
        _bootstrap(actor.policy, buffer, gamma)
    if window_ends:
        check_finite(step.next_obs, "observation", now)
        buffer.add_following(step.next_obs, step.ends, _ended_unreported(step.infos))


def _keep_ends(step: EnvStep, actor: Actor, buffer: WindowBuffer, now: int) -> None:
    """Sort the envs whose episodes end: some ignored the action, some were truncated."""
    ended: list[int] = np.flatnonzero(step.ends).tolist()
    truncated = [env for env in ended if step.infos[env].get("TimeLimit.truncated", False)]
    late = [env for env in ended if step.infos[env].get("reset_step", False)]
    for env in late:
        buffer.ignore_step(env, terminated=env not in truncated)
    in_time = [env for env in truncated if env not in late]
    if not in_time:
        return
    observations = [actor.policy.obs_to_tensor(step.infos[env]["terminal_observation"])[0] for env in in_time]
    for env, observation in zip(in_time, observations, strict=True):
        check_finite(observation, f"terminal_observation of env {env}", now)
    buffer.add_truncation(in_time, actor.state(np.asarray(in_time)), each_part(_joined, *observations))


def _bootstrap(policy: MemoryPolicy, buffer: WindowBuffer, gamma: float) -> None:
    """Give the buffer the discounted bootstrap values of all truncated episodes that wait for them.

    They are computed all at once: a single one takes about as long as a step of all envs.
    """
    state = join_states(policy, [truncation.state for truncation in buffer.truncations])
    observations = each_part(_joined, *(truncation.observations for truncation in buffer.truncations))
    going_on = torch.zeros(len(state.previous_action), dtype=torch.bool, device=policy.device)
    with torch.no_grad():
        values = gamma * policy.values_after(observations, state, going_on)
    buffer.bootstrap(values.cpu().numpy())


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def _ended_unreported(infos: list[dict[str, Any]]) -> np.ndarray:
    """Return [B] bool, true where an episode was terminated but `GymnasiumVecEnv` reports its end one step later."""
    return np.array([info.get("NextStep.terminated", False) for info in infos], dtype=bool)
