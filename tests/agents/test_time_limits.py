"""Advantages of steps at an episode's end, at a time limit, and at the end of a rollout.

The core keeps books, so the value of every observation is known by hand. After k steps with rewards 1, 2, …, k - 1
it is V = k + (sum of the rewards before) / 2 + (number of actions before) / 4, but 1 for a fresh state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from agent_toys import (
    TRANSPARENT,
    AtRolloutEnd,
    BookkeepingCore,
    make_model,
    makers,
    say_values,
    set_units,
    vectorized,
)
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

import ctrl
from ctrl.agents import MemoryPPO

SAME_STEP, NEXT_STEP, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED
ENVS = pytest.mark.parametrize(
    "mode", [None, SAME_STEP, NEXT_STEP, DISABLED], ids=lambda mode: getattr(mode, "name", "dummy")
)
HALF = {"gamma": 0.5, "gae_lambda": 0.5}
VALUES = [1.0, 2.75, 5.0, 7.75]
"""Values V of the observations of an episode of three steps, the terminal one last."""


@pytest.fixture(autouse=True)
def bookkeeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ctrl._CORES, "bookkeeping", BookkeepingCore)


def bookkeeper(env: VecEnv, n_steps: int, **options: Any) -> MemoryPPO:
    """Return an agent with the values above. Its features are (count, totals of 3 observations, 3 actions, reward)."""
    policy_kwargs = {**TRANSPARENT, "previous_reward": True}
    small = {"n_steps": n_steps, "window": 1, "batch_size": n_steps, "policy_kwargs": policy_kwargs, **HALF}
    model = make_model(env, "bookkeeping", **{**small, **options})
    say_values(model.policy, [1, 0, 0, 0, 0.25, 0.25, 0.25, 0.5])
    return model


def rollout(model: MemoryPPO, steps: int | None = None) -> None:
    """Fill the buffer once more, without learning."""
    callback = AtRolloutEnd(lambda model: None)
    if model.ep_info_buffer is None:
        model._setup_learn(0)
    callback.init_callback(model)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)  # type: ignore[arg-type]


def real(model: MemoryPPO, name: str, env: int = 0) -> list[float]:
    """Return one array of the buffer, only one env's real steps."""
    buffer = model.rollout_buffer
    return getattr(buffer, name)[buffer.loss_mask[:, env], env].tolist()


def episodes(lengths: Sequence[Sequence[int]], end: str, mode: AutoresetMode | None) -> VecEnv:
    return vectorized(makers(lengths, ends=(end,)), mode)


@ENVS
def test_a_truncated_episode_goes_on_with_the_value_of_its_terminal_observation(mode: AutoresetMode | None) -> None:
    model = bookkeeper(episodes([[3]], "truncated", mode), n_steps=4)
    rollout(model)
    assert real(model, "values")[:3] == VALUES[:3]
    last = 3 + 0.5 * 7.75 - 5  # not 3 + 0.5 * 1 - 5, as a fresh state has it, and not -2
    middle = (2 + 0.5 * 5 - 2.75) + 0.25 * last
    first = (1 + 0.5 * 2.75 - 1) + 0.25 * middle
    assert real(model, "advantages")[:3] == [first, middle, last] == [1.9296875, 2.21875, 1.875]
    assert real(model, "returns")[:3] == [1.9296875 + 1, 2.21875 + 2.75, 1.875 + 5]


@ENVS
def test_a_terminated_episode_does_not(mode: AutoresetMode | None) -> None:
    model = bookkeeper(episodes([[3]], "terminated", mode), n_steps=4)
    rollout(model)
    assert real(model, "values")[:3] == VALUES[:3]
    assert real(model, "advantages")[:3] == [1.6875, 1.25, -2.0]
    assert real(model, "returns")[:3] == [2.6875, 4.0, 3.0]


@ENVS
@pytest.mark.parametrize("end", ["truncated", "terminated"])
def test_each_env_has_its_own_end(mode: AutoresetMode | None, end: str) -> None:
    model = bookkeeper(episodes([[9], [3], [1, 3]], end, mode), n_steps=6)
    rollout(model)
    ends = [1.9296875, 2.21875, 1.875] if end == "truncated" else [1.6875, 1.25, -2.0]
    assert real(model, "advantages", env=1)[:3] == ends
    # An episode of a single step: rewards 1, V = 1, and V(terminal) = 2 + 1 / 2 + 1 / 4.
    assert real(model, "advantages", env=2)[:4] == [0.5 * 2.75 if end == "truncated" else 0.0, *ends]
    assert max(real(model, "values", env=0)) == 6 + 15 / 2 + 5 / 4


@ENVS
def test_a_rollout_that_ends_in_mid_episode_goes_on_with_the_next_value(mode: AutoresetMode | None) -> None:
    model = bookkeeper(episodes([[3]], "terminated", mode), n_steps=2)
    rollout(model)
    last = 2 + 0.5 * 5 - 2.75
    assert real(model, "advantages") == [1.375 + 0.25 * last, last]
    rollout(model)
    assert real(model, "values")[0] == 5.0
    assert real(model, "advantages")[0] == -2.0


@ENVS
@pytest.mark.parametrize(("end", "last"), [("truncated", 1.875), ("terminated", -2.0)])
def test_a_rollout_that_ends_with_the_episode(mode: AutoresetMode | None, end: str, last: float) -> None:
    """With NEXT_STEP, the end is only reported in the first step of the next rollout."""
    model = bookkeeper(episodes([[3]], end, mode), n_steps=3)
    rollout(model)
    middle = 1.75 + 0.25 * last
    assert real(model, "advantages") == [1.375 + 0.25 * middle, middle, last]
    rollout(model)
    assert real(model, "values")[:2] == [1.0, 2.75]
    if mode == NEXT_STEP:
        assert model.rollout_buffer.loss_mask[:, 0].tolist() == [False, True, True]


@pytest.mark.parametrize("mode", [None, SAME_STEP, DISABLED], ids=["dummy", "SAME_STEP", "DISABLED"])
def test_only_next_step_envs_have_steps_that_do_not_count(mode: AutoresetMode | None) -> None:
    model = bookkeeper(episodes([[3], [2]], "truncated", mode), n_steps=8)
    rollout(model)
    assert model.rollout_buffer.loss_mask.all()


def test_next_step_masks_its_reset_steps_and_no_others() -> None:
    model = bookkeeper(episodes([[3], [2]], "truncated", NEXT_STEP), n_steps=8)
    rollout(model)
    masked = ~model.rollout_buffer.loss_mask.T
    assert masked.astype(int).tolist() == [[0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 1, 0, 0]]
    starts = model.rollout_buffer.episode_starts.T
    assert starts.astype(int).tolist() == [[1, 0, 0, 0, 1, 0, 0, 0], [1, 0, 0, 1, 0, 0, 1, 0]]


@pytest.mark.parametrize("batch_size", [1, 8])
def test_masked_steps_have_no_part_in_the_loss(batch_size: int) -> None:
    """The new weights don't depend on the buffer's numbers at these steps, even if a whole minibatch is masked."""
    results = []
    for poison in (0.0, 1e6):
        model = bookkeeper(episodes([[1], [2]], "truncated", NEXT_STEP), n_steps=8, batch_size=batch_size)
        rollout(model)
        buffer = model.rollout_buffer
        for array in (buffer.advantages, buffer.returns, buffer.log_probs, buffer.values):
            array[~buffer.loss_mask] = poison
        model.train()
        results.append({name: tensor.tolist() for name, tensor in model.policy.state_dict().items()})
    assert results[0] == results[1]


# The same from the definition, for cores that learn


def test_a_rollout_of_ignored_steps_alone_teaches_nothing() -> None:
    """The episodes of both envs end after one step, so every second rollout of one step holds only reset steps."""
    model = bookkeeper(episodes([[1], [1]], "terminated", NEXT_STEP), n_steps=1, batch_size=1)
    model.learn(2 * 6)
    assert model.num_timesteps == 2 * 6
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())


def advantages_by_definition(model: MemoryPPO, env: int, ends: Sequence[str], lengths: Sequence[int]) -> list[float]:
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
        decay = model.gamma * model.gae_lambda
        found += [sum(decay**k * error for k, error in enumerate(errors[step:])) for step in range(length)]
    return found


@ENVS
@pytest.mark.parametrize("core", ["compressive", "gru"])
def test_advantages_are_those_of_the_definition(core: str, mode: AutoresetMode | None) -> None:
    lengths, ends = [[5, 3, 11], [7, 12], [2, 15]], ("truncated", "terminated")
    policy_kwargs = {"previous_reward": True}
    model = make_model(vectorized(makers(lengths, ends=ends), mode), core, policy_kwargs=policy_kwargs, gamma=0.9)
    set_units(model.policy)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    rollout(model)
    with torch.no_grad():
        for env, told in enumerate(lengths):
            expected = advantages_by_definition(model, env, ends, told)
            np.testing.assert_allclose(real(model, "advantages", env)[: len(expected)], expected, rtol=1e-4, atol=1e-4)
