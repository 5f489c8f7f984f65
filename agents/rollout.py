"""One step of acting, from the envs' observations to the buffer; shared by algorithms and actor processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.policy.actor import Actor, join_states
from ctrl.agents.policy.memory_policy import MemoryPolicy, Observation
from ctrl.agents.policy.policy_data import Acted, each_part
from ctrl.agents.utils.nan_checks import check_acted, check_finite
from ctrl.agents.vec_envs.action_masks import read_masks
from ctrl.agents.vec_envs.checked_env import CheckedEnv, EnvResult
from ctrl.agents.vec_envs.env_contract import EnvContractError, at_step, check_observation
from ctrl.agents.vec_envs.infos import was_truncated


class EnvStep(NamedTuple):
    """One step of all B envs."""

    obs: Observation
    """[B, ...] observations from which the actions were chosen."""
    acted: Acted
    actions: np.ndarray
    """[B, ...] actions as the envs received them."""
    result: EnvResult
    """What the envs returned."""


def take_step(
    actor: Actor,
    env: CheckedEnv,
    buffer: WindowBuffer,
    obs: Observation,
    reset: Tensor,
    now: int,
    deterministic: bool = False,
) -> EnvStep:
    """Act once in every env. The buffer only gets what precedes the step: action masks, where they are used, and the
    state, where a window or burn-in starts with the step.

    :param obs: [B, ...] current observations, as `env` returned them
    :param reset: [B] bool, true where `obs` is the first of an episode
    :param now: number of the training step, for error messages
    :param deterministic: take the most likely actions
    :raises EnvContractError: where an env returns what no env may return
    :raises NonFiniteError: where what an env returns is not finite, or overflows in the policy
    :raises ValueError: where an action mask does not fit or allows nothing
    """
    if buffer.needs_snapshot():
        buffer.add_snapshot(actor.state())
    masks = None
    if buffer.mask_size:
        buffer.add_masks(read_masks(env.env, buffer.action_space, now))
        masks = torch.as_tensor(buffer.action_masks[buffer.pos], device=actor.policy.device)
    acted = actor.act(obs_as_tensor(obs, actor.policy.device), reset, deterministic, masks)
    check_acted(acted.values, acted.log_prob, obs, now)
    actions = actor.policy.env_actions(acted.actions)
    kept = each_part(np.array, obs)  # some envs fill the same array in each step
    return EnvStep(kept, acted, actions, env.step(actions, now + env.env.num_envs))


def keep_step(step: EnvStep, starts: np.ndarray, actor: Actor, buffer: WindowBuffer, gamma: float, now: int) -> None:
    """Store a step in the buffer, with the bootstrap values of truncated episodes and the end of the window.

    The bootstrap value is that of the terminal observation, computed from the state after the last step. The buffer
    gets it by the end of the window. In a reset step the agent has just acted on the terminal observation, and the env
    ignored the action: such a step is left out of the losses.

    :param starts: [B] true where the step's observation was the first of an episode
    :param actor: as it was after the step
    :param now: number of the training step, for error messages
    :raises EnvContractError: where an episode was cut and its last observation is missing or does not fit
    :raises NonFiniteError: where that observation is not finite
    """
    result = step.result
    buffer.add_step(step.obs, step.acted, result.rewards, starts)
    window_ends = buffer.pos % buffer.window == 0
    _keep_ends(result, actor, buffer, now)
    waiting = sum(len(truncation.envs) for truncation in buffer.truncations)
    if waiting and (waiting >= buffer.n_envs or window_ends):
        _bootstrap(actor.policy, buffer, gamma)
    if window_ends:
        buffer.add_following(result.observations, result.ends, result.over)


def _keep_ends(result: EnvResult, actor: Actor, buffer: WindowBuffer, now: int) -> None:
    """Sort the envs whose episodes end: some ignored the action, some were truncated."""
    ended: list[int] = np.flatnonzero(result.ends).tolist()
    truncated = [env for env in ended if was_truncated(result.infos[env], env, now)]
    for env in ended:
        if result.ignored[env]:
            buffer.ignore_step(env, terminated=env not in truncated)
    in_time = [env for env in truncated if not result.ignored[env]]
    if not in_time:
        return
    observations = [_last_observation(result.infos[env], env, actor.policy, now) for env in in_time]
    buffer.add_truncation(in_time, actor.state(np.asarray(in_time)), each_part(_joined, *observations))


def _last_observation(info: dict[str, Any], env: int, policy: MemoryPolicy, now: int) -> Any:
    """Return the terminal observation [1, ...] of an episode that a time limit has cut."""
    name = f"terminal_observation of env {env}"
    if "terminal_observation" not in info:
        raise EnvContractError(f"info must have the {name}, whose episode was truncated at step {now}")
    try:
        check_observation(info["terminal_observation"], policy.observation_space, name)
    except EnvContractError as error:
        at_step(error, now)
        raise
    observation = policy.obs_to_tensor(info["terminal_observation"])[0]
    check_finite(observation, name, now)
    return observation


def _bootstrap(policy: MemoryPolicy, buffer: WindowBuffer, gamma: float) -> None:
    """Give the buffer the discounted bootstrap values of all truncated episodes that wait for them.

    They are computed all at once: a single one takes about as long as a step of all envs.
    """
    state = join_states(policy, [truncation.state for truncation in buffer.truncations])
    observations = each_part(_joined, *(truncation.observations for truncation in buffer.truncations))
    going_on = torch.zeros(len(state.previous_action), dtype=torch.bool, device=policy.device)
    with torch.no_grad():
        values = gamma * policy.values_after(observations, state, going_on)
    check_finite(values, "value of a terminal observation", None)
    buffer.bootstrap(values.cpu().numpy())


def _joined(*parts: Tensor) -> Tensor:
    return torch.cat(parts)
