"""`MemoryImpala` as a whole: same run for the same seed, right losses, and refusal of arguments that make no sense."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import UPDATE, WINDOW, WINDOWS, collect, evaluated, make_impala, targets
from agent_toys import (
    CORES,
    UNIT,
    makers,
    same_weights,
    set_units,
    staggered_env,
    vectorized,
    weights_of,
)
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import Tensor

from ctrl.agents import MemoryImpala, check_memory, paper_impala
from ctrl.agents.actors.envs import threads_beside
from ctrl.agents.impala.trajectories import REWARD_CLIPPING, TrajectoryBatch
from ctrl.agents.utils.statistics import Statistics

# Losses


def losses(change: Callable[[TrajectoryBatch], TrajectoryBatch], **options: Any) -> dict[str, float]:
    """Return the logged values of a batch after `change`."""
    model = make_impala(staggered_env(), "gru", **options)
    batch = collect(model)
    model._lags = np.zeros(WINDOWS, dtype=np.int64)
    statistics = Statistics()
    model._add_gradients(change(batch), 1.0, statistics)
    return statistics.summary()


@pytest.mark.parametrize(
    ("ratio", "rho_bar", "weight", "clipped"),
    [(1.0, 1.0, 1.0, 0), (2.0, 1.0, 1.0, 1), (2.0, 3.0, 2.0, 0), (0.5, 1.0, 0.5, 0)],
)
def test_importance_weights_are_clipped_at_rho_bar(ratio: float, rho_bar: float, weight: float, clipped: int) -> None:
    """With lambda 0, vs - V is the importance weight times the error of the step."""
    model = make_impala(staggered_env(), "gru", rho_bar=rho_bar, vtrace_lambda=0.0)
    batch = collect(model)
    on_policy = targets(model, batch)
    older = batch._replace(old_log_prob=batch.old_log_prob - math.log(ratio))
    found, values = targets(model, older), evaluated(model, batch).values
    torch.testing.assert_close(found.vs - values, weight * (on_policy.vs - values), rtol=1e-3, atol=1e-4)
    logged = losses(lambda batch: batch._replace(old_log_prob=batch.old_log_prob - math.log(ratio)), rho_bar=rho_bar)
    assert logged["train/rho_mean"] == pytest.approx(ratio, rel=1e-4)
    if ratio != rho_bar:
        assert logged["train/rho_clip_fraction"] == clipped


def test_the_policys_gradient_is_weighted_with_the_same_clip() -> None:
    model = make_impala(staggered_env(), "gru", gamma=0.0)
    batch = collect(model)
    on_policy = targets(model, batch).pg_advantages
    for rho_bar, weight in ((1.0, 1.0), (3.0, 2.0)):
        model.rho_bar = rho_bar
        found = targets(model, batch._replace(old_log_prob=batch.old_log_prob - math.log(2.0))).pg_advantages
        torch.testing.assert_close(found, weight * on_policy, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("c_bar", "c"), [(0.5, 0.5), (3.0, 2.0)])
def test_what_later_steps_bring_is_clipped_at_c_bar(c_bar: float, c: float) -> None:
    """With a ratio of 2, a target adds to the step's own error c times the discounted vs - V of the next step."""
    model = make_impala(staggered_env(), "gru", gamma=0.9, vtrace_lambda=0.0, c_bar=c_bar)
    batch = collect(model)
    batch = batch._replace(old_log_prob=batch.old_log_prob - math.log(2.0))
    values = evaluated(model, batch).values
    own = targets(model, batch).vs - values
    model.vtrace_lambda = 1.0
    found = targets(model, batch).vs - values
    later = 0.9 * c * found[:, 1:] * ~batch.ends[:, :-1]
    torch.testing.assert_close(found[:, :-1], own[:, :-1] + later, rtol=1e-3, atol=1e-4)


def test_losses_are_weighted() -> None:
    """With discount 0 and rewards that are the values plus their scale, targets are above the values by the scale."""
    model = make_impala(staggered_env(), "gru", gamma=0.0)
    set_units(model.policy)
    batch = collect(model)
    model._lags = np.zeros(WINDOWS, dtype=np.int64)
    now = evaluated(model, batch)
    above = batch._replace(rewards=now.values + UNIT, bootstraps=torch.zeros_like(now.values))
    model.ent_coef, model.vf_coef = 10.0, 0.3
    statistics = Statistics()
    model._add_gradients(above, 1.0, statistics, targets(model, above))
    found = statistics.summary()
    assert found["train/value_loss"] == pytest.approx(1, rel=1e-4)
    assert found["train/policy_gradient_loss"] == pytest.approx(-float(now.log_prob.mean()), rel=1e-4)
    assert -math.log(3) < found["train/entropy_loss"] < -0.5
    weighted = 10 * found["train/entropy_loss"] + 0.3 * found["train/value_loss"]
    assert found["train/loss"] == pytest.approx(found["train/policy_gradient_loss"] + weighted, rel=1e-4)


def gradients(batch_size: int | None, mode: AutoresetMode, core: str = "compressive") -> dict[str, Tensor]:
    """Return the gradients of an update, before clipping."""
    model = make_impala(vectorized(makers(), mode), core, batch_size=batch_size)
    collect(model)
    found: dict[str, Tensor] = {}

    def keep(statistics: Statistics) -> None:
        found.update({name: p.grad.clone() for name, p in model.policy.named_parameters() if p.grad is not None})
        assert len(statistics.values["train/loss"]) == -(-UPDATE // (batch_size or UPDATE))

    model._optimize = keep  # type: ignore[method-assign]
    model.train()
    return found


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP], ids=lambda mode: mode.name)
@pytest.mark.parametrize("windows", [1, 5, 12])
def test_an_update_in_several_passes_has_the_gradients_of_one(windows: int, mode: AutoresetMode) -> None:
    """With NEXT_STEP the passes differ in the number of steps that count, and the gradients are still the same."""
    whole, parts = gradients(None, mode), gradients(windows * WINDOW, mode)
    assert whole.keys() == parts.keys()
    for name in whole:
        if not name.startswith("core.compressors"):  # their loss is a mean over the blocks that a pass compresses
            torch.testing.assert_close(parts[name], whole[name], rtol=1e-3, atol=1e-4, msg=name)
    assert any(bool(part.any()) for name, part in parts.items() if name.startswith("core.compressors"))


@pytest.mark.parametrize(
    ("clipping", "expected"),
    [
        (None, [-20.0, -0.5, 0.0, 0.5, 10.0]),
        ("abs_one", [-1.0, -0.5, 0.0, 0.5, 1.0]),
        ("soft_asymmetric", [-1.5 * math.tanh(4), -1.5 * math.tanh(0.1), 0.0, 5 * math.tanh(0.1), 5 * math.tanh(2)]),
    ],
)
def test_reward_clipping_by_hand(clipping: str | None, expected: list[float]) -> None:
    rewards = torch.tensor([-20.0, -0.5, 0.0, 0.5, 10.0])
    assert REWARD_CLIPPING[clipping](rewards).tolist() == pytest.approx(expected, rel=1e-6)
    model = make_impala(staggered_env(), "gru", reward_clipping=clipping, gamma=0.0)
    batch = collect(model)
    batch = batch._replace(rewards=torch.full_like(batch.rewards, 10.0), bootstraps=torch.zeros_like(batch.rewards))
    torch.testing.assert_close(targets(model, batch).vs, torch.full_like(batch.rewards, expected[-1]))


def test_rms_prop_is_for_everything_but_the_compressors() -> None:
    model = make_impala(staggered_env(), use_rms_prop=True, rms_prop_eps=0.25)
    assert type(model.policy.optimizer) is RMSpropTFLike
    assert {(group["eps"], group["alpha"]) for group in model.policy.optimizer.param_groups} == {(0.25, 0.99)}
    assert type(model.policy.memory_optimizer) is torch.optim.Adam
    before = weights_of(model)
    model.learn(UPDATE)
    assert not same_weights(weights_of(model), before)


def test_the_papers_settings() -> None:
    settings = paper_impala(rate=2)
    small = {"encoder_arch": [8], "net_arch": [8]}
    settings["policy_kwargs"].update(small)
    model = MemoryImpala("MlpMemoryPolicy", staggered_env(), num_actors=0, n_steps=WINDOW, device="cpu", **settings)
    assert (model.lr_schedule(1), model.ent_coef) == (1.5e-5, 2e-3)
    memory = model.policy_kwargs["core_kwargs"]["memory"]
    assert [tier.slots for tier in memory] == [64, 64] and memory[1].rate == 2
    assert model.learn(1).num_timesteps == WINDOWS * WINDOW * 3


@pytest.mark.parametrize("core", CORES)
def test_what_is_logged(core: str) -> None:
    model = make_impala(staggered_env(), core).learn(2 * UPDATE)
    logged = model.logger.name_to_value
    numbers = [value for key, value in logged.items() if key.startswith(("train/", "memory/"))]
    assert np.isfinite(np.array(numbers, dtype=float)).all()
    names = {"loss", "value_loss", "policy_gradient_loss", "entropy_loss", "explained_variance", "grad_norm"}
    lag = {"policy_lag", "rho_mean", "rho_clip_fraction", "first_ratio_deviation"}
    rest = {"n_updates", "learning_rate", "value_mean", "value_scale"}
    assert {key.split("/")[1] for key in logged if key.startswith("train/")} == names | lag | rest
    assert logged["train/policy_lag"] == 0 and logged["train/first_ratio_deviation"] < 1e-5
    assert logged["train/n_updates"] == 2
    assert logged["memory/state_bytes"] == model.policy.core.state_bytes
    assert ("memory/staleness" in logged) == (core != "feedforward")
    of_memory = {key.split("/")[1] for key in logged if key.startswith("memory/")}
    attends = core in ("compressive", "transformer_xl", "gtrxl")
    assert ({"attention_mass", "attended_age"} <= of_memory) == attends
    learns = {"reconstruction_loss", "reconstruction_error", "grad_norm", "learning_rate"}
    assert (learns <= of_memory) == (core == "compressive")
    assert "time/actor_restarts" not in logged


def test_check_memory_takes_it(recwarn: pytest.WarningsRecorder) -> None:
    """A copy of the model acts in this process, for any number of actors."""
    model = make_impala(staggered_env(), "gru", num_actors=2, policy_kwargs={"previous_reward": True})
    findings = check_memory(model)
    assert [finding.law for finding in findings if finding.law.startswith("agent")] and not recwarn.list
    assert all(finding.status in ("kept", "not applicable") for finding in findings)


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_actors": -1}, "num_actors must be a whole number of at least 0, got -1"),
        ({"num_actors": True}, "num_actors must be a whole number of at least 0, got True"),
        ({"num_actors": None}, "num_actors must be a whole number of at least 0, got None"),
        ({"windows_per_update": 1.5}, "windows_per_update must be a whole number of at least 1, got 1.5"),
        ({"windows_per_update": None}, "windows_per_update must be a whole number of at least 1, got None"),
        ({"window_slots": 0}, "window_slots must be a whole number of at least 1, got 0"),
        ({"max_restarts": -2}, "max_restarts must be a whole number of at least 0, got -2"),
        ({"batch_size": 20}, "batch_size .* multiple of n_steps = 6, got batch_size = 20"),
        ({"vtrace_lambda": -0.1}, "vtrace_lambda must be at least 0, got -0.1"),
        ({"rho_bar": 0}, "rho_bar must be above 0, got 0"),
        ({"c_bar": -1.0}, "c_bar must be above 0, got -1.0"),
        ({"actor_timeout": 0}, "actor_timeout must be above 0, got 0"),
        ({"actor_timeout": None}, "actor_timeout must be a finite number, got None"),
        ({"rms_prop_eps": "small"}, "rms_prop_eps must be a finite number, got 'small'"),
        ({"reward_clipping": "tanh"}, r"reward_clipping must be one of \[None, 'abs_one', 'soft_asym.*got 'tanh'"),
        ({"reward_clipping": [1]}, r"reward_clipping must be one of .*got \[1\]"),
        (
            {"use_rms_prop": True, "policy_kwargs": {"optimizer_class": torch.optim.SGD}},
            "use_rms_prop=True chooses the optimizer, but so does policy_kwargs with .*SGD",
        ),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_when_the_model_is_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_impala(staggered_env(), **options)


@pytest.mark.parametrize(("num_actors", "threads"), [(0, 6), (1, 6), (3, 5), (7, 1), (20, 1)])
def test_actors_are_left_their_cores(num_actors: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(6)
        with suppress(KeyboardInterrupt), threads_beside(num_actors):
            assert torch.get_num_threads() == threads
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 6
    finally:
        torch.set_num_threads(before)
