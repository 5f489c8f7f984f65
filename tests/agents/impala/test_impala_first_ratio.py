"""Importance weights with the weights that acted: each is 1, since learning repeats what acting saw.

Episodes are staggered, windows start and end in their middle, and several updates have changed the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import UPDATE, WINDOWS, StopOnce, evaluated, fill_once, make_impala
from agent_toys import CORES, AtRolloutEnd, makers, same_weights, staggered_env, vectorized, weights_of
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

from ctrl import Tier
from ctrl.agents import MemoryImpala
from ctrl.agents.buffers import WindowBuffer
from ctrl.agents.impala.trajectories import TrajectoryBatch, trajectory_batch

UPDATES = 4
FAST: dict[str, Any] = {"learning_rate": 1e-2, "memory_learning_rate": 1e-2}


def difference(model: MemoryImpala, batch: TrajectoryBatch) -> Tensor:
    """Return the larger difference between learning and acting, of log-probabilities or (relative) values, [N, T]."""
    found = evaluated(model, batch)
    of_values = (found.values - batch.old_values).abs() / (1 + batch.old_values.abs())
    off = torch.maximum((found.log_prob - batch.old_log_prob).abs(), of_values)
    return off.where(batch.loss_mask, 0)


def assert_faithful(model: MemoryImpala) -> None:
    before = weights_of(model)
    found, logged, middle = [], [], []

    def look(model: MemoryImpala) -> None:
        batch = trajectory_batch(model.rollout_buffer, model.policy)
        found.append(float(difference(model, batch).max()))
        middle.append(not batch.windows.reset[:, 0].all())
        if len(found) > 1:
            logged.append(model.logger.name_to_value["train/first_ratio_deviation"])

    model.learn(UPDATES * UPDATE, AtRolloutEnd(look), log_interval=100)
    logged.append(model.logger.name_to_value["train/first_ratio_deviation"])
    assert len(found) == len(logged) == UPDATES
    assert max(found) < 1e-5 and max(logged) < 1e-5
    assert middle == [False, True, True, True] or all(middle), "some windows must start in mid-episode"
    changed = [name for name, tensor in weights_of(model).items() if not torch.equal(tensor, before[name])]
    assert len(changed) > len(before) / 2, "the weights must change for this test to mean anything"


@pytest.mark.parametrize("previous_reward", [False, True])
@pytest.mark.parametrize("core", CORES)
def test_at_zero_lag_the_ratio_is_one(core: str, previous_reward: bool) -> None:
    inputs = {"previous_action": True, "previous_reward": previous_reward}
    assert_faithful(make_impala(staggered_env(), core, policy_kwargs=inputs, **FAST))


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_on_vector_envs_too(mode: AutoresetMode) -> None:
    model = make_impala(vectorized(makers(), mode), policy_kwargs={"previous_reward": True}, **FAST)
    assert_faithful(model)
    assert (~model.rollout_buffer.loss_mask).any() == (mode == AutoresetMode.NEXT_STEP)


@pytest.mark.parametrize(
    "action_space", [spaces.Box(-0.3, 0.4, (2, 2), np.float32), spaces.MultiDiscrete([2, 5])], ids=str
)
def test_for_other_kinds_of_action_too(action_space: spaces.Space[Any]) -> None:
    assert_faithful(make_impala(staggered_env(action_space=action_space), **FAST))


MOST_MISSED = {"width": 8, "heads": 2, "layers": 1, "memory": [Tier(3), Tier(3, 2, "most_missed")]}


@pytest.mark.parametrize(
    ("core", "core_kwargs", "num_actors"),
    [
        ("compressive", CORES["compressive"], 2),
        ("compressive", MOST_MISSED, 1),
        ("gtrxl", CORES["gtrxl"], 1),
        ("lstm", CORES["lstm"], 1),
    ],
    ids=["compressive", "most_missed", "gtrxl", "lstm"],
)
def test_with_the_weights_that_an_actor_had_the_ratio_is_one(
    core: str, core_kwargs: dict[str, Any], num_actors: int
) -> None:
    """Each window is evaluated with the weights of its version, not with the learner's current weights.

    An actor reads new weights in mid-episode, so older weights made the state before a window.
    """
    inputs = {"previous_reward": True, "core_kwargs": core_kwargs}
    model = make_impala(staggered_env(), core, num_actors=num_actors, policy_kwargs=inputs, **FAST)
    published: dict[int, dict[str, Tensor]] = {}
    found: list[float] = []
    with_weights_of_now: list[float] = []
    versions: list[int] = []

    def look(model: MemoryImpala) -> None:
        assert model._actors is not None
        published[model._actors.version] = weights_of(model)
        batch = trajectory_batch(model.rollout_buffer, model.policy)
        with_weights_of_now.append(float(difference(model, batch).max()))
        then = copy.copy(model)
        then.policy = copy.deepcopy(model.policy, {id(model.policy.action_dist): model.policy.action_dist})
        for rows, lag in zip(torch.arange(len(batch.rewards)).chunk(WINDOWS), model._lags.tolist(), strict=True):
            versions.append(model._actors.version - lag)
            then.policy.load_state_dict(published[versions[-1]])
            planned = trajectory_batch(model.rollout_buffer, then.policy)  # by the clock that the actor had
            found.append(float(difference(then, planned)[rows].max()))

    model.learn(1000 * UPDATE, [AtRolloutEnd(look), StopOnce(lambda: len(set(versions)) > 10)])
    assert max(found) < 1e-5
    assert max(with_weights_of_now) > 1e-3, "weights must change for this test to mean anything"
    assert not same_weights(published[0], published[max(published)])
    assert len(set(versions)) > 10 and min(versions) == 0


def snapshots_of_the_wrong_env(buffer: WindowBuffer) -> None:
    for number, snapshot in list(buffer.snapshots.items()):
        core = type(snapshot.core)(*(leaf.roll(1, dims=0) for leaf in snapshot.core))
        buffer.snapshots[number] = snapshot._replace(core=core)


def late_resets(buffer: WindowBuffer) -> None:
    buffer.episode_starts = np.roll(buffer.episode_starts, 1, axis=0)


def actions_of_the_wrong_step(buffer: WindowBuffer) -> None:
    buffer.actions = np.roll(buffer.actions, 1, axis=0)


@pytest.mark.parametrize("spoil", [snapshots_of_the_wrong_env, late_resets, actions_of_the_wrong_step])
def test_the_check_notices(spoil: Callable[[WindowBuffer], None]) -> None:
    model = make_impala(staggered_env(), **FAST).learn(2 * UPDATE)
    assert float(difference(model, fill_once(model)).max()) < 1e-5
    spoil(model.rollout_buffer)
    assert float(difference(model, trajectory_batch(model.rollout_buffer, model.policy)).max()) > 1e-3
