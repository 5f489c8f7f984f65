"""First probability ratios: before the first step of an optimizer each is 1, since learning repeats what acting saw.

Episodes are staggered, rollouts start and end in their middle, and several updates have changed the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from agent_toys import CORES, AtRolloutEnd, Scalars, make_model, makers, staggered_env, vectorized
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.logger import Logger

from ctrl.agents import MemoryPPO

UPDATES = 4


def difference(model: MemoryPPO) -> float:
    """Return the largest difference of log-probabilities, and relative one of values, between learning and acting."""
    batch = model.rollout_buffer.all_windows(model.policy)
    model.policy.set_training_mode(True)
    with torch.no_grad():
        evaluated = model.policy.evaluate_windows(batch.windows)
    of_values = (evaluated.values - batch.old_values).abs() / (1 + batch.old_values.abs())
    off = ((evaluated.log_prob - batch.old_log_prob).abs(), of_values)
    return max(float(tensor[batch.loss_mask].max()) for tensor in off)


def learn_and_watch(model: MemoryPPO, updates: int = UPDATES) -> tuple[list[float], dict[str, list[Any]]]:
    """Return the difference at the end of each rollout, and all logged values."""
    scalars = Scalars()
    model.set_logger(Logger(None, [scalars]))
    found: list[float] = []
    callback = AtRolloutEnd(lambda model: found.append(difference(model)))
    model.learn(updates * model.n_steps * model.n_envs, callback)
    return found, scalars.values


def assert_faithful(model: MemoryPPO) -> None:
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    found, logged = learn_and_watch(model)
    starts = model.rollout_buffer.episode_starts
    assert len(found) == UPDATES and max(found) < 1e-5
    # An update's values are written with the next rollout's; the last update's stay in the logger.
    deviations = [*logged["train/first_ratio_deviation"], model.logger.name_to_value["train/first_ratio_deviation"]]
    assert len(deviations) == UPDATES and max(deviations) < 1e-5
    changed = [name for name, tensor in model.policy.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(changed) > len(before) / 2, "the weights must change for this test to mean anything"
    assert not starts[:: model.rollout_buffer.window].all(), "some window must start in mid-episode"


@pytest.mark.parametrize("previous_reward", [False, True])
@pytest.mark.parametrize("previous_action", [False, True])
@pytest.mark.parametrize("core", CORES)
def test_first_ratio_is_one(core: str, previous_action: bool, previous_reward: bool) -> None:
    inputs = {"previous_action": previous_action, "previous_reward": previous_reward}
    assert_faithful(make_model(staggered_env(), core, learning_rate=1e-2, policy_kwargs=inputs))


@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_first_ratio_is_one_on_vector_envs(mode: AutoresetMode) -> None:
    model = make_model(vectorized(makers(), mode), learning_rate=1e-2, policy_kwargs={"previous_reward": True})
    assert_faithful(model)
    masked = ~model.rollout_buffer.loss_mask
    assert masked.any() == (mode == AutoresetMode.NEXT_STEP)


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
def test_first_ratio_is_one_for_every_kind_of_action(action_space: spaces.Space[Any]) -> None:
    assert_faithful(make_model(staggered_env(action_space=action_space), learning_rate=1e-2))


@pytest.mark.parametrize("breakage", ["snapshots of the wrong env", "late resets", "actions of the wrong step"])
def test_the_check_notices(breakage: str) -> None:
    """A buffer that mixes up its entries makes the ratio differ from 1."""
    model = make_model(staggered_env(), learning_rate=1e-2)
    learn_and_watch(model, updates=2)
    buffer = model.rollout_buffer
    model.learn(0, reset_num_timesteps=False)
    callback = AtRolloutEnd(lambda model: None)
    callback.init_callback(model)
    model.collect_rollouts(model.env, callback, buffer, model.n_steps)  # type: ignore[arg-type]
    assert difference(model) < 1e-5
    if breakage == "snapshots of the wrong env":
        for number, snapshot in list(buffer.snapshots.items()):
            core = type(snapshot.core)(*(leaf.roll(1, dims=0) for leaf in snapshot.core))
            buffer.snapshots[number] = snapshot._replace(core=core)
    elif breakage == "late resets":
        buffer.episode_starts = np.roll(buffer.episode_starts, 1, axis=0)
    else:
        buffer.actions = np.roll(buffer.actions, 1, axis=0)
    assert difference(model) > 1e-3


def test_a_core_that_changes_its_rates_between_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test changes the rates after every rollout; acting continues with its state."""
    model = make_model(staggered_env(), "adaptive", learning_rate=1e-2)
    rates = []

    def next_rate(rate: int, error: float, choices: tuple[int, ...]) -> int:
        rates.append(choices[(choices.index(rate) + 1) % len(choices)])
        return rates[-1]

    monkeypatch.setattr("ctrl.compressive.adaptive.next_rate", next_rate)
    assert_faithful(model)
    assert len(rates) == UPDATES and len(set(rates)) > 1
    assert model.logger.name_to_value["memory/rate/layer1"] == rates[-1]
