"""First probability ratios: before the first step of an optimizer each is 1, since learning repeats what acting saw.

Episodes are staggered, rollouts start and end in their middle, and several updates have changed the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import BOTH, UPDATE, make_impala
from agent_toys import (
    CORES,
    AtRolloutEnd,
    fill_once,
    late_resets,
    make_model,
    makers,
    staggered_env,
    states_of_the_next_env,
    vectorized,
    weights_of,
)
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from torch import Tensor

import ctrl
from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.agents.buffers import WindowBuffer

UPDATES = 4
FAST: dict[str, Any] = {"learning_rate": 1e-2, "memory_learning_rate": 1e-2}


def difference(model: MemoryAlgorithm) -> float:
    """Return the largest difference of log-probabilities, and relative one of values, between learning and acting."""
    batch = model.rollout_buffer.all_windows(model.policy)
    model.policy.set_training_mode(True)
    with torch.no_grad():
        evaluated = model.policy.evaluate_windows(batch.windows)
    of_values = (evaluated.values - batch.old_values).abs() / (1 + batch.old_values.abs())
    off = ((evaluated.log_prob - batch.old_log_prob).abs(), of_values)
    return max(float(tensor[batch.loss_mask].max()) for tensor in off)


def assert_faithful(model: MemoryAlgorithm) -> None:
    before = weights_of(model)
    found: list[float] = []
    logged: list[float] = []

    def look(model: MemoryAlgorithm) -> None:
        found.append(difference(model))
        if len(found) > 1:
            logged.append(model.logger.name_to_value["train/first_ratio_deviation"])

    model.learn(UPDATES * UPDATE, AtRolloutEnd(look), log_interval=100)
    logged.append(model.logger.name_to_value["train/first_ratio_deviation"])
    assert len(found) == len(logged) == UPDATES
    assert max(found) < 1e-5 and max(logged) < 1e-5
    changed = [name for name, tensor in weights_of(model).items() if not torch.equal(tensor, before[name])]
    assert len(changed) > len(before) / 2, "the weights must change for this test to mean anything"
    buffer = model.rollout_buffer
    assert not buffer.episode_starts[:: buffer.window].all(), "some window must start in mid-episode"


@pytest.mark.parametrize("previous_reward", [False, True])
@pytest.mark.parametrize(
    ("make", "previous_action"),
    [(make_model, False), (make_model, True), (make_impala, True)],
    ids=["ppo-observation", "ppo", "impala"],
)
@pytest.mark.parametrize("core", CORES)
def test_first_ratio_is_one(core: str, make: Any, previous_action: bool, previous_reward: bool) -> None:
    inputs = {"previous_action": previous_action, "previous_reward": previous_reward}
    assert_faithful(make(staggered_env(), core, policy_kwargs=inputs, **FAST))


@BOTH
@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_first_ratio_is_one_on_vector_envs(mode: AutoresetMode, make: Any) -> None:
    model = make(vectorized(makers(), mode), policy_kwargs={"previous_reward": True}, **FAST)
    assert_faithful(model)
    assert (~model.rollout_buffer.loss_mask).any() == (mode == AutoresetMode.NEXT_STEP)


@BOTH
@pytest.mark.parametrize(
    "action_space",
    [
        spaces.Box(-0.3, 0.4, (2, 2), np.float32),  # narrower than the samples: most are clipped
        spaces.Box(-0.3, 0.4, (2,), np.float64),
        spaces.Box(-0.3, 0.4, (2,), np.float16),
        spaces.MultiDiscrete([2, 5]),
        spaces.MultiBinary(3),
    ],
    ids=["box 2x2", "box float64", "box float16", "multi-discrete", "multi-binary"],
)
def test_first_ratio_is_one_for_every_kind_of_action(action_space: spaces.Space[Any], make: Any) -> None:
    assert_faithful(make(staggered_env(action_space=action_space), **FAST))


def actions_of_the_wrong_step(buffer: WindowBuffer) -> None:
    buffer.actions = np.roll(buffer.actions, 1, axis=0)


@BOTH
@pytest.mark.parametrize("spoil", [states_of_the_next_env, late_resets, actions_of_the_wrong_step])
def test_a_buffer_that_mixes_up_its_entries_is_noticed(spoil: Callable[[WindowBuffer], None], make: Any) -> None:
    model = make(staggered_env(), **FAST).learn(2 * UPDATE)
    fill_once(model)
    assert difference(model) < 1e-5
    spoil(model.rollout_buffer)
    assert difference(model) > 1e-3


class Scaled(ctrl.GRUCore):
    """GRU that changes the scale of its inputs after every update."""

    scale = 1.0

    def adapt(self, diagnostics: Mapping[str, float]) -> dict[str, float]:
        self.scale *= 1.5
        return {"scale": self.scale}

    def _step(self, inputs: Tensor, state: ctrl.GRUState) -> tuple[Tensor, ctrl.GRUState]:
        return super()._step(self.scale * inputs, state)

    def _unroll(self, inputs: Tensor, state: ctrl.GRUState, reset: Tensor, plan: Any, diagnose: bool) -> ctrl.Unrolled:
        return super()._unroll(self.scale * inputs, state, reset, plan, diagnose)


def test_a_core_of_ones_own_that_changes_its_settings_between_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acting continues with its state."""
    monkeypatch.setattr(ctrl, "_CORES", dict(ctrl._CORES))
    ctrl.register_core("scaled", Scaled)
    model = make_model(staggered_env(), "scaled", learning_rate=1e-2, policy_kwargs={"core_kwargs": {"width": 7}})
    assert type(model.policy.core) is Scaled and model.policy.core.width == 7
    assert_faithful(model)
    assert model.logger.name_to_value["memory/scale"] == model.policy.core.scale == 1.5**UPDATES
