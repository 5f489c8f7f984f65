"""Importance weights of windows from actors: with the weights that acted each is 1."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from actor_toys import UPDATE, WINDOWS, StopOnce, evaluated, make_impala
from agent_toys import CORES, AtRolloutEnd, same_weights, staggered_env, weights_of
from torch import Tensor

from ctrl import Tier
from ctrl.agents import MemoryImpala
from ctrl.agents.impala.trajectories import TrajectoryBatch, trajectory_batch

UPDATES = 4
FAST: dict[str, Any] = {"learning_rate": 1e-2, "memory_learning_rate": 1e-2}


def difference(model: MemoryImpala, batch: TrajectoryBatch) -> Tensor:
    """Return the larger difference between learning and acting, of log-probabilities or (relative) values, [N, T]."""
    found = evaluated(model, batch)
    of_values = (found.values - batch.old_values).abs() / (1 + batch.old_values.abs())
    off = torch.maximum((found.log_prob - batch.old_log_prob).abs(), of_values)
    return off.where(batch.loss_mask, 0)


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
