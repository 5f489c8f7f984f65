"""Acting, bootstrap values, recomputed states and targets are those of evaluation mode; only learning has dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import make_impala
from agent_toys import Scalars, make_model, makers
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from ctrl.agents import check_memory
from ctrl.agents.policy.policy_data import Windows
from ctrl.agents.utils.modes import depends_on_mode

CALLS: list[tuple[bool, bool]] = []
"""Of each call of the extractor: whether a gradient was wanted, and whether it was in training mode."""


class Moody(BaseFeaturesExtractor):
    """Extractor with batch norm and dropout."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 5)
        self.layers = nn.Sequential(nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5), nn.Dropout(0.3))

    def forward(self, observations: Tensor) -> Tensor:
        CALLS.append((torch.is_grad_enabled(), self.training))
        features: Tensor = self.layers(observations)
        return features


MOODY: dict[str, Any] = {"policy_kwargs": {"features_extractor_class": Moody}}


@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (make_model, {}),
        (make_model, {"refresh": 4}),
        (make_impala, {}),
        (make_impala, {"batch_size": 6, "windows_per_update": 3}),
        (make_impala, {"normalize_values": False, "windows_per_update": 1}),
    ],
    ids=["ppo", "ppo with burn-in", "impala", "impala in passes", "impala, one window"],
)
def test_the_mode_is_right_at_each_call(make: Any, options: dict[str, Any], copies: int) -> None:
    """The first ratios are those of acting: 1, although learning drops features out."""
    CALLS.clear()
    model = make(DummyVecEnv(makers()[:copies]), "gru", **MOODY, **options)
    scalars = Scalars()
    model.set_logger(Logger(None, [scalars]))
    model.learn(4 * 24 * copies)
    assert set(CALLS) == {(True, True), (False, False)}, "training mode where, and only where, there is a gradient"
    assert max(scalars.values["train/first_ratio_deviation"][:1]) < 1e-5
    model.policy.set_training_mode(True)
    CALLS.clear()
    model.predict(np.zeros(3, np.float32))
    model.policy.set_training_mode(True)
    actor = model.policy.actor(model.policy.initial_state(1))
    actor.act(torch.zeros(1, 3), torch.ones(1, dtype=torch.bool))
    assert CALLS == [(False, False)] * 2


def test_an_agent_with_dropout_passes_its_self_check() -> None:
    check_memory(make_model(DummyVecEnv(makers()), "gru", **MOODY))


def test_what_depends_on_the_mode_is_known() -> None:
    assert not depends_on_mode(make_model(DummyVecEnv(makers())).policy)
    for module in (nn.Dropout1d(), nn.BatchNorm2d(3), nn.LSTM(3, 3, 2, dropout=0.1), nn.TransformerEncoderLayer(4, 2)):
        assert depends_on_mode(nn.Sequential(nn.ReLU(), module))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("core", ["compressive", "lstm", "mingru", "feedforward"])
def test_what_is_not_finite_in_a_window_stays_before_its_reset(core: str, value: float) -> None:
    """Observations and rewards of stored windows, forward and backward, through the encoder too."""
    policy = make_model(DummyVecEnv(makers()), core, policy_kwargs={"previous_reward": True}).policy
    reset = torch.zeros(2, 7, dtype=torch.bool)
    reset[0, 4] = reset[1, 2] = True
    clean, reward = torch.randn(2, 7, 3), torch.randn(2, 7, 1)
    windows = Windows(clean, torch.zeros(2, 7).long(), torch.zeros(2, 7, 3), reward, reset, None, None)
    state = policy.core.initial_state(2)
    windows = windows._replace(core_state=state, plan=policy.core.plan(state, reset))
    expected = policy.evaluate_windows(windows)
    spoiled = windows._replace(observations=clean.clone(), previous_reward=reward.clone())
    spoiled.observations[0, 3, 1] = value
    spoiled.previous_reward[1, 1, 0] = value
    found = policy.evaluate_windows(spoiled)
    after = reset.cumsum(dim=1) > 0
    assert torch.equal(found.values[after], expected.values[after])
    assert bool(found.values[0, 3].isnan()) and bool(found.values[1, 1].isnan())
    assert torch.equal(found.values[0, :3], expected.values[0, :3])
    (found.values[after].sum() + found.log_prob[after].sum() + found.unrolled.reconstruction_loss).backward()
    assert all(bool(each.grad.isfinite().all()) for each in policy.parameters() if each.grad is not None)
