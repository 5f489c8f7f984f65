"""Targets of windows from actors, and what only V-trace has; envs and values are those of `test_time_limits.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import StopOnce, collect, make_impala, targets
from agent_toys import TRANSPARENT, AtRolloutEnd, makers, say_values, set_units, staggered_env, vectorized
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from ctrl.agents import MemoryImpala
from ctrl.agents.impala.trajectories import trajectory_batch

NEXT_STEP = AutoresetMode.NEXT_STEP
TRUNCATED = [2.9296875, 4.96875, 3 + 0.5 * 7.75]

pytestmark = pytest.mark.usefixtures("bookkeeping")


def bookkeeper(env: VecEnv, **options: Any) -> MemoryImpala:
    policy_kwargs = {**TRANSPARENT, "previous_reward": True}
    numbers: dict[str, Any] = {"windows_per_update": 2, "gamma": 0.5, "vtrace_lambda": 0.5}
    model = make_impala(env, "bookkeeping", policy_kwargs=policy_kwargs, **numbers, **options)
    say_values(model.policy, [1, 0, 0, 0, 0.25, 0.25, 0.25, 0.5])
    return model


def test_advantages_are_one_step_ahead_of_the_targets() -> None:
    model = bookkeeper(vectorized(makers([[3]], ends=("truncated",)), None), n_steps=5)
    found = targets(model, collect(model))
    expected = [1 + TRUNCATED[1] / 2 - 1, 2 + TRUNCATED[2] / 2 - 2.75, 3 + 0.5 * 7.75 - 5]
    assert found.pg_advantages[0, :3].tolist() == expected
    assert bool((found.rhos == 1).all())


@pytest.mark.parametrize("core", ["compressive", "lstm"])
def test_a_window_goes_on_with_what_acting_then_saw(core: str) -> None:
    """A window bootstraps from the first value of the next window, so state, last action and reward are right."""
    model = make_impala(staggered_env(), core, gamma=0.9, policy_kwargs={"previous_reward": True})
    set_units(model.policy)
    with torch.no_grad():
        model.policy.value_net.weight.mul_(100)  # outputs are near 0 at first
    batch, n_envs = collect(model), model.n_envs
    on = ~batch.ends[:-n_envs, -1]
    found = (targets(model, batch).vs - batch.rewards)[:-n_envs, -1][on]
    assert len(found) > 4
    np.testing.assert_allclose(found, 0.9 * batch.old_values[n_envs:, 0][on], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("clipping", "reward"), [(None, 3.0), ("abs_one", 1.0)])
def test_the_value_of_what_was_cut_is_no_reward_to_be_clipped(clipping: str | None, reward: float) -> None:
    model = bookkeeper(vectorized(makers([[3]], ends=("truncated",)), None), n_steps=3, reward_clipping=clipping)
    assert float(targets(model, collect(model)).vs[0, 2]) == reward + 0.5 * 7.75


@pytest.mark.parametrize("mode", [None, NEXT_STEP], ids=["dummy", "NEXT_STEP"])
def test_the_same_through_the_queue(mode: AutoresetMode | None) -> None:
    """The weights hardly change, so the values that an actor sends for truncated episodes are still right."""
    options: dict[str, Any] = {"num_actors": 1, "learning_rate": 1e-30}
    model = bookkeeper(vectorized(makers([[3], [3, 2]], ends=("truncated",)), mode), n_steps=5, **options)
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
