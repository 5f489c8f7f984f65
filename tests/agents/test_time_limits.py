"""Targets of steps at an episode's end, at a time limit, and at the end of a window, compared with numbers by hand.

The core keeps books, so the value of every observation is known. After k steps with rewards 1, 2, …, k - 1 it is
V = k + (sum of the rewards before) / 2 + (number of actions before) / 4, but 1 for a fresh state. Discount and lambda
are 1/2. The targets are the returns of PPO and, since the policy is the one that acted, the same for V-trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import BOTH, make_impala
from actor_toys import targets as vtrace_of
from agent_toys import MODES, TRANSPARENT, fill_once, make_model, makers, say_values, set_units, vectorized
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.agents.impala.trajectories import trajectory_batch

NEXT_STEP = AutoresetMode.NEXT_STEP
VALUES = [1.0, 2.75, 5.0, 7.75]
"""Values V of the observations of an episode of three steps, the terminal one last."""
TRUNCATED = [2.9296875, 4.96875, 3 + 0.5 * 7.75]
"""Targets; from the last: 3 + 7.75/2 = 6.875; V + (2 + 5/2 - 2.75) + 1.875/4; V + (1 + 2.75/2 - 1) + 2.21875/4"""
TERMINATED = [2.6875, 4.0, 3.0]
ENDS = pytest.mark.parametrize(("end", "expected"), [("truncated", TRUNCATED), ("terminated", TERMINATED)])

pytestmark = pytest.mark.usefixtures("bookkeeping")


def small(make: Any, env: VecEnv, core: str, *, window: int, windows: int = 1, **options: Any) -> Any:
    """Return an agent that learns from `windows` windows of `window` steps in each env."""
    if make is make_impala:
        sizes = {"n_steps": window, "windows_per_update": windows, "vtrace_lambda": options.pop("lambda_")}
    else:
        sizes = {"n_steps": window * windows, "window": window, "gae_lambda": options.pop("lambda_")}
        sizes |= {"batch_size": window}
    return make(env, core, **sizes, **options)


def bookkeeper(make: Any, env: VecEnv, **sizes: int) -> Any:
    """Return an agent with the values above. Its features are (count, totals of 3 observations, 3 actions, reward)."""
    policy_kwargs = {**TRANSPARENT, "previous_reward": True}
    model = small(make, env, "bookkeeping", gamma=0.5, lambda_=0.5, policy_kwargs=policy_kwargs, **sizes)
    say_values(model.policy, [1, 0, 0, 0, 0.25, 0.25, 0.25, 0.5])
    return model


def real(model: MemoryAlgorithm, numbers: np.ndarray, env: int = 0) -> list[float]:
    """Return the entries of `numbers` [steps, B] for one env's real steps."""
    return numbers[model.rollout_buffer.loss_mask[:, env], env].tolist()


def targets(model: Any, make: Any, env: int = 0) -> list[float]:
    """Return the targets of the real steps in the buffer, whose windows must be one."""
    buffer = model.rollout_buffer
    if make is make_model:
        assert real(model, buffer.advantages + buffer.values, env) == real(model, buffer.returns, env)
        return real(model, buffer.returns, env)
    vs = vtrace_of(model, trajectory_batch(buffer, model.policy)).vs
    return real(model, vs.T.numpy(), env)


def episodes(lengths: Sequence[Sequence[int]], end: str, mode: AutoresetMode | None) -> VecEnv:
    return vectorized(makers(lengths, ends=(end,)), mode)


@BOTH
@MODES
@ENDS
def test_an_end_inside_the_window(mode: AutoresetMode | None, end: str, expected: list[float], make: Any) -> None:
    """After a truncation the target adds the value of the terminal observation, after a termination nothing."""
    model = bookkeeper(make, episodes([[3]], end, mode), window=5)
    fill_once(model)
    assert real(model, model.rollout_buffer.values)[:3] == VALUES[:3]
    assert targets(model, make)[:3] == expected


@MODES
@ENDS
def test_windows_of_one_step_have_the_same_returns(mode: AutoresetMode | None, end: str, expected: list[float]) -> None:
    model = bookkeeper(make_model, episodes([[3]], end, mode), window=1, windows=4)
    fill_once(model)
    assert targets(model, make_model)[:3] == expected


@BOTH
@MODES
@ENDS
def test_each_env_has_its_own_end(mode: AutoresetMode | None, end: str, expected: list[float], make: Any) -> None:
    model = bookkeeper(make, episodes([[9], [3], [1, 3]], end, mode), window=7)
    fill_once(model)
    assert targets(model, make, env=1)[:3] == expected
    # An episode of a single step: rewards 1, V = 1, and V(terminal) = 2 + 1 / 2 + 1 / 4.
    assert targets(model, make, env=2)[:4] == [1 + 0.5 * 2.75 if end == "truncated" else 1.0, *expected]
    assert real(model, model.rollout_buffer.values)[5] == 6 + 15 / 2 + 5 / 4


@BOTH
@MODES
def test_a_window_that_ends_in_mid_episode_goes_on_with_the_next_value(mode: AutoresetMode | None, make: Any) -> None:
    """V(x_T) is 5, computed from the state after the window and its last action and reward."""
    model = bookkeeper(make, episodes([[3]], "terminated", mode), window=2)
    fill_once(model)
    last = 2 + 0.5 * 5
    assert targets(model, make) == [1 + (1 + 0.5 * 2.75 - 1) + 0.25 * (last - 2.75), last]
    fill_once(model)
    assert real(model, model.rollout_buffer.values)[0] == 5.0
    assert targets(model, make)[0] == 3.0


@BOTH
@MODES
@ENDS
def test_an_end_with_the_window(mode: AutoresetMode | None, end: str, expected: list[float], make: Any) -> None:
    """With NEXT_STEP the end is reported in the first step of the next window, which then does not count."""
    model = bookkeeper(make, episodes([[3]], end, mode), window=3)
    fill_once(model)
    buffer = model.rollout_buffer
    assert targets(model, make) == expected
    assert bool(buffer.following_starts[0, 0]) == (mode != NEXT_STEP)
    assert bool(buffer.following_over[0, 0]) == (mode == NEXT_STEP and end == "terminated")
    fill_once(model)
    assert real(model, buffer.values)[:2] == VALUES[:2]
    assert buffer.loss_mask[:, 0].tolist() == [mode != NEXT_STEP, True, True]


@BOTH
@MODES
def test_only_the_reset_steps_of_next_step_envs_are_ignored(mode: AutoresetMode | None, make: Any) -> None:
    model = bookkeeper(make, episodes([[3], [2]], "truncated", mode), window=4, windows=2)
    fill_once(model)
    ignored = (~model.rollout_buffer.loss_mask.T).astype(int).tolist()
    if mode != NEXT_STEP:
        assert not np.any(ignored)
        return
    assert ignored == [[0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 1, 0, 0]]
    starts = model.rollout_buffer.episode_starts.T.astype(int).tolist()
    assert starts == [[1, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0, 1, 0]]


@BOTH
@pytest.mark.parametrize(("window", "windows"), [(1, 8), (4, 2)])
def test_what_stands_at_ignored_steps_makes_no_difference(window: int, windows: int, make: Any) -> None:
    """The new weights don't depend on the buffer's numbers at these steps, even if a whole minibatch is ignored."""
    results = []
    for poison in (None, 1e6):
        env = episodes([[1], [2]], "truncated", NEXT_STEP)
        model = bookkeeper(make, env, window=window, windows=windows)
        fill_once(model)
        buffer = model.rollout_buffer
        numbers = (buffer.advantages, buffer.returns, buffer.log_probs, buffer.values, buffer.rewards)
        for array in numbers if poison else ():
            array[~buffer.loss_mask] = poison
        model.train()
        results.append({name: tensor.tolist() for name, tensor in model.policy.state_dict().items()})
    assert results[0] == results[1]


@BOTH
def test_ignored_steps_alone_teach_nothing(make: Any) -> None:
    """The episodes of both envs end after one step, so every second rollout of one step holds only reset steps."""
    model = bookkeeper(make, episodes([[1], [1]], "terminated", NEXT_STEP), window=1)
    model.learn(2 * 6)
    assert model.num_timesteps == 2 * 6
    assert make is make_model or model._n_updates == 3
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())


# The same from the definition, for cores that learn


def targets_by_definition(model: Any, env: int, ends: Sequence[str], lengths: Sequence[int], decay: float) -> Any:
    """Replay one env's real steps, episode by episode, from the initial state, and sum discounted errors."""
    buffer, policy = model.rollout_buffer, model.policy
    actions = buffer.actions[buffer.loss_mask[:, env], env, 0]
    found: list[float] = []
    for episode, length in enumerate(lengths):
        values, state = [], policy.initial_state(1)
        for step in range(length + 1):
            obs = torch.tensor([[env, episode, step]], dtype=torch.float32)
            latent, state = policy.step(obs, state, torch.tensor([step == 0]))
            outputs = policy.value_net(policy.mlp_extractor.forward_critic(latent))
            values.append(float(policy.value_normalisation(outputs)))
            action = torch.tensor(actions[len(found) + step]) if len(found) + step < len(actions) else torch.tensor(0)
            state = state._replace(
                previous_action=policy.encode_action(action[None]), previous_reward=policy.encode_reward([step + 1.0])
            )
        if ends[episode % len(ends)] == "terminated":
            values[-1] = 0.0
        errors = [step + 1 + model.gamma * values[step + 1] - values[step] for step in range(length)]
        found += [values[s] + sum(decay**k * error for k, error in enumerate(errors[s:])) for s in range(length)]
    return found


@BOTH
@MODES
@pytest.mark.parametrize("core", ["compressive", "gru"])
def test_targets_are_those_of_the_definition(core: str, mode: AutoresetMode | None, make: Any) -> None:
    lengths, ends = [[5, 3, 11], [7, 12], [2, 15]], ("truncated", "terminated")
    env = vectorized(makers(lengths, ends=ends), mode)
    model = small(make, env, core, window=24, gamma=0.9, lambda_=0.8, policy_kwargs={"previous_reward": True})
    set_units(model.policy)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    fill_once(model)
    with torch.no_grad():
        for env_number, of_env in enumerate(lengths):
            expected = targets_by_definition(model, env_number, ends, of_env, 0.9 * 0.8)
            found = targets(model, make, env_number)[: len(expected)]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
