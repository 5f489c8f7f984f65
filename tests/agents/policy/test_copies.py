"""Copies of policies, and states that are saved and moved."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from agent_toys import CORES, make_model, staggered_env
from gymnasium import spaces

from ctrl.agents.policy.policy_data import policy_leaves

ACTIONS = [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Box(-1, 1, (2,))]
COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda policy: pickle.loads(pickle.dumps(policy))}


@pytest.mark.parametrize("space", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_policy_is_copied_also_with_a_graph_alive(space: spaces.Space[Any], copied: Callable[[Any], Any]) -> None:
    """The distribution of the last call still holds tensors with a graph, which can't be copied."""
    model = make_model(staggered_env(action_space=space)).learn(72)
    alive = model.policy.evaluate_windows(model.rollout_buffer.windows(model.policy))
    other = copied(model.policy)
    assert other.optimizer.param_groups[0]["params"][0] is next(other.parameters())
    seen = np.ones((3, 3), dtype=np.float32)
    assert np.array_equal(*(each.predict(seen, deterministic=True)[0] for each in (model.policy, other)))
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    assert not torch.equal(next(other.parameters()), next(model.policy.parameters()))
    assert alive.log_prob.requires_grad


@pytest.mark.parametrize("core", CORES)
def test_states_are_read_back_by_torch_load(core: str) -> None:
    policy = make_model(staggered_env(), core).policy
    actor = policy.actor(policy.initial_state(3))
    actor.act(torch.randn(3, 3), torch.ones(3, dtype=torch.bool))
    file = io.BytesIO()
    torch.save(actor.state(), file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    assert type(found) is type(actor.state()) and type(found.core) is type(actor.state().core)
    for one, other in zip(policy_leaves(found), policy_leaves(actor.state()), strict=True):
        assert torch.equal(one, other)
    again = policy.actor(found)
    again.act(torch.randn(3, 3), torch.zeros(3, dtype=torch.bool))
