"""Value normalisation: its statistics against the definition, and learning with rewards of any scale."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from actor_toys import BOTH, UPDATE, collect, make_impala
from agent_toys import (
    STAGGERED,
    AtRolloutEnd,
    ToldEpisodes,
    make_model,
    makers,
    same_weights,
    vectorized,
    weights_of,
)
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from ctrl.agents import MemoryPPO, MlpMemoryPolicy
from ctrl.agents.algorithm import MemoryAlgorithm
from ctrl.agents.utils.value_normalisation import DECAY, SMALLEST_SCALE, ValueNormalisation

STEPS = 24 * 3


def counted(*batches: Tensor, head: nn.Linear | None = None) -> ValueNormalisation:
    """Return a `ValueNormalisation` after updates with these returns."""
    units, head = ValueNormalisation(), nn.Linear(1, 1) if head is None else head
    for returns in batches:
        units.update(returns, head)
    return units


def random_returns(updates: int = 6) -> list[Tensor]:
    """Return the returns of several updates, each with another number, mean and spread."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(5 + 3 * k, generator=draw) * 2.0**k + 10 * (-1) ** k for k in range(updates)]


# The statistics


def moments_by_definition(batches: list[Tensor]) -> tuple[float, float]:
    """Return mean and standard deviation from the weighted first and second moments of all updates, in float64."""
    weights = [DECAY ** (len(batches) - 1 - k) for k in range(len(batches))]
    of_all = [np.asarray(returns, dtype=np.float64) for returns in batches]
    first, second = (
        sum(weight * float((returns**power).mean()) for weight, returns in zip(weights, of_all, strict=True))
        / sum(weights)
        for power in (1, 2)
    )
    return first, math.sqrt(second - first**2)


@pytest.mark.parametrize("updates", [1, 2, 6])
def test_mean_and_scale_are_those_of_the_definition(updates: int) -> None:
    batches = random_returns(updates)
    units = counted(*batches)
    assert (units.mean.item(), units.scale.item()) == pytest.approx(moments_by_definition(batches), rel=1e-6)
    assert units.updates.item() == updates


def test_the_first_update_counts_fully() -> None:
    returns = random_returns(1)[0]
    units = counted(returns)
    torch.testing.assert_close(units.mean, returns.mean())
    torch.testing.assert_close(units.scale, returns.std(correction=0))


@pytest.mark.parametrize("mean", [1e4, -1e6])
def test_a_large_mean_does_not_hide_the_spread(mean: float) -> None:
    """In float32, E[x^2] - E[x]^2 would be only rounding errors."""
    draw = torch.Generator().manual_seed(0)
    batches = [torch.randn(200, generator=draw) * abs(mean) / 3000 + mean for _ in range(3)]
    assert counted(*batches).scale.item() == pytest.approx(moments_by_definition(batches)[1], rel=1e-3)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_returns_of_any_size(size: float) -> None:
    units = counted(torch.tensor([1.0, 3.0]) * size)
    assert (units.mean.item(), units.scale.item()) == pytest.approx((2 * size, size), rel=1e-6)


# Where nothing is known yet


def test_values_are_0_until_returns_are_known() -> None:
    units = ValueNormalisation()
    outputs = torch.tensor([-3.0, 1e6])
    assert units(outputs).tolist() == [0, 0]
    units.update(torch.zeros(4), nn.Linear(1, 1))
    assert units(outputs).tolist() == [0, 0], "nor by returns that are all 0"
    assert units.normalised(torch.zeros(2)).tolist() == [0, 0]
    assert units.rescaled(torch.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize("value", [-7.0, 0.1])
def test_returns_that_are_all_equal_divide_nothing_by_0(value: float) -> None:
    units = counted(*[torch.full((5,), value)] * 3)
    assert units.scale.item() == pytest.approx(SMALLEST_SCALE * abs(value))
    assert units.normalised(torch.full((5,), value)).tolist() == pytest.approx([0] * 5, abs=1e-2)
    assert units(torch.zeros(1)).item() == pytest.approx(value)


def test_the_first_returns_leave_the_head_as_it_is() -> None:
    head = nn.Linear(3, 1)
    before = head.weight.detach().clone(), head.bias.detach().clone()
    counted(torch.zeros(4), torch.tensor([5.0, 7.0]), head=head)
    assert torch.equal(head.weight, before[0]) and torch.equal(head.bias, before[1])


def test_no_returns_are_refused() -> None:
    with pytest.raises(ValueError, match="returns must not be empty"):
        counted(torch.zeros(0))


def test_one_with_a_scale_of_1_says_values_as_they_are() -> None:
    units, numbers = ValueNormalisation(1.0), torch.tensor([-0.3, 7.1])
    for function in (units, units.normalised, units.rescaled):
        assert torch.equal(function(numbers), numbers)


# Outputs are preserved


def test_values_stay_what_they_were_as_the_statistics_change() -> None:
    """The tolerance is float32's rounding of the largest number in the computation."""
    torch.manual_seed(0)
    head, latent = nn.Linear(6, 1), torch.randn(20, 6)
    batches = random_returns()
    units = counted(batches[0], head=head)
    for returns in batches[1:]:
        before, scale, mean = units(head(latent)), units.scale.item(), units.mean.item()
        units.update(returns, head)
        assert abs(units.scale.item() / scale - 1) > 0.01 and abs(units.mean.item() - mean) > 0.1
        torch.testing.assert_close(units(head(latent)), before, rtol=1e-5, atol=1e-5)


def test_outputs_and_values_are_two_names_of_one_thing() -> None:
    units = counted(*random_returns())
    outputs = torch.tensor([-2.0, 0.0, 3.0])
    torch.testing.assert_close(units.normalised(units(outputs)), outputs)
    torch.testing.assert_close(units.rescaled(units(outputs) - units(outputs - 1)), torch.ones(3))


@BOTH
def test_an_update_that_learns_nothing_changes_no_value(make: Any) -> None:
    """The statistics change in the update, and the head changes with them."""
    model = make(paid(7.0), "gru", learning_rate=1e-2).learn(2 * UPDATE)
    model.lr_schedule = lambda left: 0.0
    collect(model)
    seen = model.rollout_buffer.all_windows(model.policy).windows
    with torch.no_grad():
        before, scale = model.policy.evaluate_windows(seen).values, model.policy.value_normalisation.scale.item()
        model.rollout_buffer.rewards *= 3
        weight = model.policy.value_net.weight.clone()
    if make is make_model:
        model.rollout_buffer.returns *= 3
    model.train()
    after = model.policy.evaluate_windows(seen).values
    assert model.policy.value_normalisation.scale.item() > 1.01 * scale
    assert not torch.equal(model.policy.value_net.weight, weight)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


# In an agent


def paid(factor: float) -> DummyVecEnv:
    """Return envs with `factor` times the rewards of `ToldEpisodes`."""
    return DummyVecEnv(
        [lambda make=make: gym.wrappers.TransformReward(make(), lambda r: factor * r) for make in makers()]
    )  # type: ignore[misc]


def learned(make: Any, factor: float, **options: Any) -> MemoryAlgorithm:
    model: MemoryAlgorithm = make(paid(factor), learning_rate=3e-3, **options)
    return model.learn(5 * STEPS)


VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ppo": (make_model, {}),
    "ppo, values clipped": (make_model, {"clip_range_vf": 0.2}),
    "ppo, advantages as they are": (make_model, {"normalize_advantage": False}),
    "impala": (make_impala, {}),
    "impala, in passes": (make_impala, {"batch_size": 30}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_rewards_of_another_scale_teach_the_same(variant: str) -> None:
    """With a power of two as factor all numbers are the same, with another factor up to rounding."""
    make, options = VARIANTS[variant]
    one, by_64, by_100 = (learned(make, factor, **options) for factor in (1.0, 64.0, 100.0))
    found, same, close = (dict(model.policy.named_parameters()) for model in (one, by_64, by_100))
    for name, parameter in found.items():
        assert torch.equal(same[name], parameter), name
        torch.testing.assert_close(close[name], parameter, rtol=1e-3, atol=1e-4, msg=name)
    units, other = one.policy.value_normalisation, by_64.policy.value_normalisation
    assert other.scale == 64 * units.scale > 0 and other.mean == 64 * units.mean > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_normalised_values_the_scale_matters(variant: str) -> None:
    """If gradients are clipped at both scales, the effect is small, but it exists."""
    make, options = VARIANTS[variant]
    found, other = (weights_of(learned(make, factor, normalize_values=False, **options)) for factor in (1.0, 64.0))
    assert not torch.equal(found["value_net.weight"], other["value_net.weight"])


def test_clipped_rewards_are_clipped_as_they_are() -> None:
    """Below the clip the scale of rewards still matters. All rewards of the first two agents are clipped to 1."""
    one, other = (learned(make_impala, factor, reward_clipping="abs_one") for factor in (1.0, 64.0))
    assert same_weights(weights_of(one), weights_of(other))
    small = learned(make_impala, 1 / 64, reward_clipping="abs_one")
    assert not same_weights(weights_of(one), weights_of(small))


class Silent(ToldEpisodes):
    """Env with reward 0 at each step."""

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, _, *rest = super().step(action)
        return observation, 0.0, *rest  # type: ignore[return-value]


@BOTH
def test_an_env_that_pays_nothing(make: Any) -> None:
    env = DummyVecEnv([lambda told=told: Silent(told) for told in STAGGERED])  # type: ignore[misc]
    with np.errstate(invalid="ignore"):
        model = make(env, "gru").learn(2 * UPDATE)
    assert model.policy.value_normalisation.scale.item() == 0
    assert not model.rollout_buffer.values.any()
    assert all(bool(parameter.isfinite().all()) for parameter in model.policy.parameters())


@BOTH
def test_what_is_logged_are_the_units_of_the_update(make: Any) -> None:
    model = make(paid(1.0), "gru").learn(2 * UPDATE)
    units, logged = model.policy.value_normalisation, model.logger.name_to_value
    assert (logged["train/value_mean"], logged["train/value_scale"]) == (units.mean.item(), units.scale.item())
    assert units.updates.item() == 2
    plain = make(paid(1.0), "gru", normalize_values=False).learn(2 * UPDATE)
    assert not [key for key in plain.logger.name_to_value if key.startswith("train/value_") and key[-4:] != "loss"]
    assert plain.policy.value_normalisation.updates.item() == 0


def test_ppo_counts_the_returns_of_the_steps_that_count() -> None:
    batches: list[Tensor] = []

    def keep(model: MemoryPPO) -> None:
        buffer = model.rollout_buffer
        assert not buffer.loss_mask.all()
        batches.append(torch.as_tensor(buffer.returns[buffer.loss_mask]))

    model = make_model(vectorized(makers(), AutoresetMode.NEXT_STEP), "gru")
    model.learn(3 * STEPS, AtRolloutEnd(keep))
    units = model.policy.value_normalisation
    assert (units.mean.item(), units.scale.item()) == pytest.approx(moments_by_definition(batches), rel=1e-5)


def test_impala_counts_the_targets_of_the_update() -> None:
    """It counts the targets of all steps that are not masked. All passes share one scale."""
    for passes in (1, 3):
        env = vectorized(makers(), AutoresetMode.NEXT_STEP)
        model = make_impala(env, "gru", batch_size=24 if passes == 3 else None)
        batch = collect(model)
        assert not batch.loss_mask.all() and len(model._passes(len(batch.rewards))) == passes
        targets = model._targets(batch, model.policy.evaluate_windows(batch.windows)).vs[batch.loss_mask]
        model.train()
        units = model.policy.value_normalisation
        assert (units.mean.item(), units.scale.item()) == pytest.approx(moments_by_definition([targets]), rel=1e-5)
        assert units.updates.item() == 1


@BOTH
def test_values_come_close_to_returns_in_the_rewards_units(make: Any) -> None:
    """The returns are in the thousands, which a head with small weights would learn slowly."""
    model = make(paid(300.0), "gru", learning_rate=3e-3).learn(20 * UPDATE)
    assert 3_000 < model.rollout_buffer.values.mean() < 60_000
    assert model.logger.name_to_value["train/value_loss"] < 3


# Kept with the agent


@BOTH
def test_the_units_are_saved_and_learning_goes_on_in_them(make: Any, tmp_path: Path) -> None:
    model = make(paid(9.0), "gru").learn(2 * UPDATE)
    model.save(tmp_path / "agent")
    results = []
    for agent in (model, type(model).load(tmp_path / "agent", device="cpu")):
        assert agent.normalize_values
        agent.set_env(paid(9.0))
        agent.set_random_seed(5)
        agent.learn(UPDATE, reset_num_timesteps=False)
        results.append(weights_of(agent))
    assert same_weights(*results)
    assert {f"value_normalisation.{name}" for name in ("mean", "scale", "updates")} <= results[0].keys()


@pytest.mark.parametrize("normalize", [False, True])
def test_a_policy_alone_keeps_its_units(normalize: bool, tmp_path: Path) -> None:
    model: MemoryPPO = make_model(paid(9.0), "gru", normalize_values=normalize).learn(STEPS)
    model.policy.save(str(tmp_path / "policy"))
    policy = MlpMemoryPolicy.load(str(tmp_path / "policy"), device="cpu")
    latent = torch.randn(4, policy.core.output_size)
    with torch.no_grad():
        expected, found = (each.decide(latent, deterministic=True)[1] for each in (model.policy, policy))
    assert torch.equal(found, expected)
    assert (policy.value_normalisation.scale.item() == 1.0) == (not normalize)
    assert policy._get_constructor_parameters()["normalize_values"] == normalize


def test_without_normalised_values_they_are_what_the_head_says() -> None:
    model = make_model(paid(9.0), "gru", normalize_values=False).learn(2 * STEPS)
    policy = model.policy
    latent = torch.randn(4, policy.core.output_size)
    with torch.no_grad():
        outputs = policy.value_net(policy.mlp_extractor.forward_critic(latent))[:, 0]
        assert torch.equal(policy.decide(latent, deterministic=True)[1], outputs)
