"""Targets of steps at an episode's end, at a time limit, and at the end of a window, compared with numbers by hand.

The core keeps books, as in `test_time_limits.py`. After k steps with rewards 1, 2, …, k - 1 the value of an observation
is V = k + (sum of the rewards before) / 2 + (number of actions before) / 4, but 1 for a fresh state. Discount and
lambda are 1/2, and the policy is the one that acted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import StopOnce, evaluated, fill_once, make_impala, targets
from agent_toys import (
    TRANSPARENT,
    AtRolloutEnd,
    BookkeepingCore,
    makers,
    say_values,
    set_units,
    staggered_env,
    vectorized,
)
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

import ctrl
from ctrl.agents import MemoryImpala
from ctrl.agents.impala.trajectories import TrajectoryBatch, trajectory_batch

SAME_STEP, NEXT_STEP, DISABLED = AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED
ENVS = pytest.mark.parametrize(
    "mode", [None, SAME_STEP, NEXT_STEP, DISABLED], ids=lambda mode: getattr(mode, "name", "dummy")
)
VALUES = [1.0, 2.75, 5.0, 7.75]
"""Values V of the observations of an episode of three steps, the terminal one last."""
TRUNCATED = [2.9296875, 4.96875, 3 + 0.5 * 7.75]
"""Targets v_s; from the last: 3 + 7.75/2 = 6.875; V + (2 + 5/2 - 2.75) + 1.875/4; V + (1 + 2.75/2 - 1) + 2.21875/4"""
TERMINATED = [2.6875, 4.0, 3.0]


@pytest.fixture(autouse=True)
def bookkeeping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ctrl._CORES, "bookkeeping", BookkeepingCore)


def bookkeeper(env: VecEnv, n_steps: int, **options: Any) -> MemoryImpala:
    """Return an agent with the values above. Its features are (count, totals of 3 observations, 3 actions, reward)."""
    defaults: dict[str, Any] = {
        "n_steps": n_steps,
        "windows_per_update": 2,
        "gamma": 0.5,
        "vtrace_lambda": 0.5,
        "policy_kwargs": {**TRANSPARENT, "previous_reward": True},
    }
    model = make_impala(env, "bookkeeping", **{**defaults, **options})
    say_values(model.policy, [1, 0, 0, 0, 0.25, 0.25, 0.25, 0.5])
    return model


def episodes(lengths: Sequence[Sequence[int]], end: str, mode: AutoresetMode | None) -> VecEnv:
    return vectorized(makers(lengths, ends=(end,)), mode)


def real(batch: TrajectoryBatch, numbers: torch.Tensor, env: int, n_envs: int) -> list[float]:
    """Return the entries of `numbers` [N, T] for one env's real steps, window after window."""
    return numbers[env::n_envs][batch.loss_mask[env::n_envs]].tolist()


def targets_of(model: MemoryImpala, env: int = 0) -> list[float]:
    batch = fill_once(model)
    return real(batch, targets(model, batch).vs, env, model.n_envs)


@ENVS
@pytest.mark.parametrize(("end", "expected"), [("truncated", TRUNCATED), ("terminated", TERMINATED)])
def test_an_end_inside_the_window(mode: AutoresetMode | None, end: str, expected: list[float]) -> None:
    """After a truncation the target adds the value of the terminal observation, after a termination nothing."""
    model = bookkeeper(episodes([[3]], end, mode), n_steps=5)
    batch = fill_once(model)
    found = targets(model, batch)
    assert real(batch, evaluated(model, batch).values, 0, 1)[:3] == VALUES[:3]
    assert real(batch, found.vs, 0, 1)[:3] == expected
    last = [3 + 0.5 * 7.75 - 5] if end == "truncated" else [3.0 - 5]
    advantages = [1 + expected[1] / 2 - 1, 2 + expected[2] / 2 - 2.75, *last]
    assert real(batch, found.pg_advantages, 0, 1)[:3] == advantages
    assert bool((found.rhos == 1).all())


@ENVS
@pytest.mark.parametrize("end", ["truncated", "terminated"])
def test_each_env_has_its_own_end(mode: AutoresetMode | None, end: str) -> None:
    model = bookkeeper(episodes([[9], [3], [1, 3]], end, mode), n_steps=7)
    batch = fill_once(model)
    vs = targets(model, batch).vs
    ends = TRUNCATED if end == "truncated" else TERMINATED
    assert real(batch, vs, 1, 3)[:3] == ends
    # An episode of a single step: rewards 1, and V(terminal) = 2 + 1 / 2 + 1 / 4.
    assert real(batch, vs, 2, 3)[:4] == [1 + 0.5 * 2.75 if end == "truncated" else 1.0, *ends]


@ENVS
@pytest.mark.parametrize(("end", "expected"), [("truncated", TRUNCATED), ("terminated", TERMINATED)])
def test_an_end_with_the_window(mode: AutoresetMode | None, end: str, expected: list[float]) -> None:
    """With NEXT_STEP the end is reported in the first step of the next window, which then does not count."""
    model = bookkeeper(episodes([[3]], end, mode), n_steps=3)
    batch = fill_once(model)
    assert targets(model, batch).vs[0].tolist() == expected
    second = batch.loss_mask[1].tolist()
    assert second == ([False, True, True] if mode == NEXT_STEP else [True] * 3)
    assert bool(batch.following_starts[0]) == (mode != NEXT_STEP)
    assert bool(batch.following_over[0]) == (mode == NEXT_STEP and end == "terminated")


@ENVS
def test_a_window_that_ends_in_mid_episode_goes_on_with_the_next_value(mode: AutoresetMode | None) -> None:
    """V(x_T) is 5, computed from the state after the window and its last action and reward."""
    model = bookkeeper(episodes([[3]], "terminated", mode), n_steps=2)
    batch = fill_once(model)
    vs = targets(model, batch).vs
    last = 2 + 0.5 * 5
    assert vs[0].tolist() == [1 + (1 + 0.5 * 2.75 - 1) + 0.25 * (last - 2.75), last]
    assert float(vs[1, 0]) == 3.0
    assert evaluated(model, batch).values[1, 0] == 5.0


@pytest.mark.parametrize("core", ["compressive", "lstm"])
def test_a_window_goes_on_with_what_acting_then_saw(core: str) -> None:
    """A window bootstraps from the first value of the next window, so state, last action and reward are right."""
    model = make_impala(staggered_env(), core, gamma=0.9, policy_kwargs={"previous_reward": True})
    set_units(model.policy)
    with torch.no_grad():
        model.policy.value_net.weight.mul_(100)  # outputs are near 0 at first
    batch, n_envs = fill_once(model), model.n_envs
    on = ~batch.ends[:-n_envs, -1]
    found = (targets(model, batch).vs - batch.rewards)[:-n_envs, -1][on]
    assert len(found) > 4
    np.testing.assert_allclose(found, 0.9 * batch.old_values[n_envs:, 0][on], rtol=1e-4, atol=1e-5)


def test_next_step_ignores_its_reset_steps_and_no_others() -> None:
    model = bookkeeper(episodes([[3], [2]], "truncated", NEXT_STEP), n_steps=4)
    batch = fill_once(model)
    ignored = (~batch.loss_mask).view(2, 2, 4).transpose(0, 1).flatten(1)  # [env, step]
    assert ignored.int().tolist() == [[0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 1, 0, 0]]
    assert torch.equal(targets(model, batch).pg_advantages[~batch.loss_mask], torch.zeros(4))


def test_what_stands_at_ignored_steps_makes_no_difference() -> None:
    results = []
    for poison in (None, 7e3):
        model = bookkeeper(episodes([[1], [2]], "truncated", NEXT_STEP), n_steps=4)
        fill_once(model)
        buffer = model.rollout_buffer
        for array in (buffer.log_probs, buffer.values, buffer.rewards) if poison else ():
            array[~buffer.loss_mask] = poison
        batch = trajectory_batch(buffer, model.policy)
        results.append(real(batch, targets(model, batch).vs, 0, 2) + real(batch, targets(model, batch).vs, 1, 2))
    assert results[0] == results[1]


def test_a_window_of_ignored_steps_alone_teaches_nothing() -> None:
    """The episodes of both envs end after one step, so every second window of one step holds only reset steps."""
    model = bookkeeper(episodes([[1], [1]], "terminated", NEXT_STEP), n_steps=1, windows_per_update=1)
    model.learn(2 * 6)
    assert model.num_timesteps == 2 * 6 and model._n_updates == 3
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())


@pytest.mark.parametrize(("clipping", "reward"), [(None, 3.0), ("abs_one", 1.0)])
def test_the_value_of_what_was_cut_is_no_reward_to_be_clipped(clipping: str | None, reward: float) -> None:
    model = bookkeeper(episodes([[3]], "truncated", None), n_steps=3, reward_clipping=clipping)
    assert targets_of(model)[2] == reward + 0.5 * 7.75


@pytest.mark.parametrize("mode", [None, NEXT_STEP], ids=["dummy", "NEXT_STEP"])
def test_the_same_through_the_queue(mode: AutoresetMode | None) -> None:
    """The weights hardly change, so the values that an actor sends for truncated episodes are still right."""
    options: dict[str, Any] = {"num_actors": 1, "learning_rate": 1e-30}
    model = bookkeeper(episodes([[3], [3, 2]], "truncated", mode), n_steps=5, **options)
    starts = set()

    def look(model: MemoryImpala) -> None:
        batch = trajectory_batch(model.rollout_buffer, model.policy)
        vs = targets(model, batch).vs
        for row in (0, 2):  # the windows of the env whose episodes are all of 3 steps
            steps = batch.windows.observations[row, :, 2].int().tolist()  # type: ignore[index]
            starts.add(steps[0])
            told = [(t, step) for t, step in enumerate(steps) if step < 3 and t - step + 3 <= len(steps)]
            assert [float(vs[row, t]) for t, _ in told] == [TRUNCATED[step] for _, step in told] != []

    model.learn(10_000, [AtRolloutEnd(look), StopOnce(lambda: len(starts) > 2)])


def targets_by_definition(model: MemoryImpala, batch: TrajectoryBatch, env: int, ends: str, length: int) -> list[float]:
    """Replay one env's first episode from the initial state, and sum discounted errors until the window ends."""
    policy, actions = model.policy, real(batch, batch.windows.actions, env, model.n_envs)
    values, state = [], policy.initial_state(1)
    for step in range(length + 1):
        obs = torch.tensor([[env, 0, step]], dtype=torch.float32)
        latent, state = policy.step(obs, state, torch.tensor([step == 0]))
        outputs = policy.value_net(policy.mlp_extractor.forward_critic(latent))
        values.append(policy.value_normalisation(outputs).item())
        action = torch.tensor([int(actions[step])]) if step < length else torch.tensor([0])
        state = state._replace(
            previous_action=policy.encode_action(action), previous_reward=policy.encode_reward(np.array([step + 1.0]))
        )
    if ends == "terminated":
        values[-1] = 0.0
    errors = [step + 1 + model.gamma * values[step + 1] - values[step] for step in range(length)]
    decay = model.gamma * model.vtrace_lambda
    return [values[s] + sum(decay**k * error for k, error in enumerate(errors[s:])) for s in range(length)]


@ENVS
@pytest.mark.parametrize("end", ["truncated", "terminated"])
def test_a_core_that_learns_has_the_targets_of_the_definition(mode: AutoresetMode | None, end: str) -> None:
    options: dict[str, Any] = {"gamma": 0.9, "vtrace_lambda": 0.8, "policy_kwargs": {"previous_reward": True}}
    model = make_impala(episodes([[4], [6]], end, mode), n_steps=8, windows_per_update=1, **options)
    set_units(model.policy)
    batch = fill_once(model)
    for env, length in enumerate((4, 6)):
        expected = targets_by_definition(model, batch, env, end, length)
        found = real(batch, targets(model, batch).vs, env, 2)[:length]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
