"""`MemoryPPO` as a whole: same run for the same seed, stop and restart, refusal of arguments that make no sense."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from actor_toys import BOTH
from agent_toys import (
    CORES,
    MODES,
    TRANSPARENT,
    UNIT,
    AtRolloutEnd,
    StopAfter,
    make_model,
    makers,
    set_units,
    staggered_env,
    vectorized,
)
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.policies import ActorCriticPolicy

import ctrl
from ctrl.agents import MemoryPPO
from ctrl.agents.buffers import WindowBatch
from ctrl.agents.utils.statistics import Statistics

STEPS = 24 * 3
# Stopping and going on


@pytest.mark.usefixtures("bookkeeping")
@MODES
@pytest.mark.parametrize("stop", [1, 4, 5, 6, 7, 30])
def test_after_a_callback_stopped_it_learning_goes_on_where_the_env_is(mode: AutoresetMode | None, stop: int) -> None:
    """One of the stops is at step 5, the last step of the first episode."""
    env = vectorized(makers(), mode)
    model = make_model(env, "bookkeeping", policy_kwargs={**TRANSPARENT, "previous_action": False})
    model.learn(2 * STEPS, StopAfter(stop))
    assert model.num_timesteps == 3 * stop

    def check(model: MemoryPPO) -> None:
        windows = model.rollout_buffer.all_windows(model.policy).windows
        obs: Any = windows.observations
        unrolled = model.policy.core.unroll(obs, windows.core_state, windows.reset)
        assert torch.equal(unrolled.outputs[:, :, 0], obs[:, :, 2] + 1), "steps since the reset, as the env shows them"

    callback = AtRolloutEnd(check)
    model.learn(2 * STEPS, callback, reset_num_timesteps=False)
    assert callback.rollouts == 3, "the rollout that was stopped goes on"


def test_learning_again_starts_new_episodes() -> None:
    model = make_model(staggered_env()).learn(STEPS)
    model.learn(STEPS)
    assert model.num_timesteps == STEPS
    assert model.rollout_buffer.episode_starts[0].all()


def test_learning_goes_on_in_mid_episode() -> None:
    model = make_model(staggered_env()).learn(STEPS)
    assert model._actor is not None
    state = model._actor.state()
    model.learn(STEPS, reset_num_timesteps=False)
    assert model.num_timesteps == 2 * STEPS
    first = model.rollout_buffer.snapshots[0]
    for found, expected in zip([*first.core, *first[1:]], [*state.core, *state[1:]], strict=True):
        assert torch.equal(found, expected)


def test_an_update_ends_where_the_policy_has_moved_too_far() -> None:
    moved, held = (
        make_model(staggered_env(), "gru", learning_rate=0.05, n_epochs=20, target_kl=limit).learn(STEPS)
        for limit in (None, 1e-7)
    )
    assert moved._n_updates == 20
    assert held._n_updates == 1, "the second minibatch already sees another policy"


# Losses


def losses(change: Callable[[WindowBatch], WindowBatch], **options: Any) -> dict[str, float]:
    """Return the logged values of one minibatch, the whole rollout, after `change` to its stored numbers.

    The stored numbers are in the rewards' units, in which the scale of values is `UNIT`; losses are not.
    """
    model = make_model(staggered_env(), "gru", **options).learn(STEPS)
    set_units(model.policy)
    batch = model.rollout_buffer.all_windows(model.policy)
    with torch.no_grad():
        now = model.policy.evaluate_windows(batch.windows)
    batch = batch._replace(old_log_prob=now.log_prob, old_values=now.values, returns=now.values)
    statistics = Statistics()
    model._loss_and_gradients(change(batch), model.now("clip_range"), statistics, first=True)
    return statistics.summary()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 3.0, 3.0),
        (1.1, 3.0, 3.3),
        (2.0, 3.0, 3.6),  # no more to be gained than by a ratio of 1.2
        (2.0, -3.0, -6.0),  # but all to be lost
        (0.5, 3.0, 1.5),
        (0.5, -3.0, -2.4),
    ],
)
def test_the_gain_of_a_ratio_is_clipped(ratio: float, advantage: float, expected: float) -> None:
    def change(batch: WindowBatch) -> WindowBatch:
        old = batch.old_log_prob - math.log(ratio)
        return batch._replace(old_log_prob=old, advantages=torch.full_like(old, UNIT * advantage))

    found = losses(change, clip_range=0.2, normalize_advantage=False)
    assert -found["train/policy_gradient_loss"] == pytest.approx(expected, rel=1e-4)
    assert found["train/clip_fraction"] == float(abs(ratio - 1) > 0.2)
    assert found["train/approx_kl"] == pytest.approx(ratio - 1 - math.log(ratio), abs=1e-5)


@pytest.mark.parametrize(("normalize", "expected"), [(False, -5.0), (True, 0.0)])
def test_advantages_are_normalised_if_asked(normalize: bool, expected: float) -> None:
    def change(batch: WindowBatch) -> WindowBatch:
        return batch._replace(advantages=UNIT * (5 + torch.randn_like(batch.advantages) * 1e-3))

    found = losses(change, normalize_advantage=normalize)
    assert found["train/policy_gradient_loss"] == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize(("clip", "expected"), [(None, 1.0), (0.25, 0.0625), (2.0, 1.0)])
def test_the_change_of_values_is_clipped_if_asked(clip: float | None, expected: float) -> None:
    """Values have grown by their scale, and the returns equal the old values."""

    def change(batch: WindowBatch) -> WindowBatch:
        return batch._replace(old_values=batch.old_values - UNIT, returns=batch.returns - UNIT)

    assert losses(change, clip_range_vf=clip)["train/value_loss"] == pytest.approx(expected, rel=1e-4)


def test_losses_are_weighted() -> None:
    found = losses(lambda batch: batch._replace(returns=batch.returns + UNIT), ent_coef=10.0, vf_coef=0.3)
    assert found["train/value_loss"] == pytest.approx(1, rel=1e-4)
    assert -math.log(3) < found["train/entropy_loss"] < -0.5
    weighted = 10 * found["train/entropy_loss"] + 0.3 * found["train/value_loss"]
    assert found["train/loss"] == pytest.approx(found["train/policy_gradient_loss"] + weighted, rel=1e-4)


@pytest.mark.parametrize(("limit", "updates"), [(0.01, 20), (0.0101 / 1.5, 20), (0.0099 / 1.5, 1)])
def test_an_update_ends_beyond_one_and_a_half_times_the_limit(
    limit: float, updates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryPPO, "_loss_and_gradients", lambda self, *args, **kwargs: 0.01)
    monkeypatch.setattr(MemoryPPO, "_optimize", lambda self, statistics: None)
    assert make_model(staggered_env(), "gru", n_epochs=20, target_kl=limit).learn(STEPS)._n_updates == updates


def test_clip_ranges_follow_their_schedules() -> None:
    used: list[float] = []
    model = make_model(staggered_env(), "gru", clip_range=lambda left: 0.1 + left, clip_range_vf=lambda left: 1 + left)
    compute = model._loss_and_gradients

    def spy(batch: WindowBatch, clip_range: float, *args: Any, **kwargs: Any) -> float:
        used.append(clip_range)
        return compute(batch, clip_range, *args, **kwargs)

    model._loss_and_gradients = spy  # type: ignore[method-assign]
    model.learn(2 * STEPS)
    assert sorted(set(used)) == pytest.approx([0.1, 0.6])  # nothing and half of the run are left
    assert model.logger.name_to_value["train/clip_range"] == pytest.approx(0.1)
    assert model.logger.name_to_value["train/clip_range_vf"] == 1


# Arguments


def test_window_is_the_rollout_unless_given() -> None:
    model = make_model(staggered_env(), window=None, batch_size=None)
    assert model.rollout_buffer.window == 24
    model.learn(STEPS)
    assert len(model.rollout_buffer.snapshots) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 7}, "window must divide n_steps, got window = 7 and n_steps = 24"),
        ({"window": 0}, "window must be a whole number of at least 1, got 0"),
        ({"window": 48}, "window must divide n_steps, got window = 48 and n_steps = 24"),
        ({"batch_size": 20}, "batch_size .* multiple of window = 8, got batch_size = 20"),
        ({"n_epochs": 1.5}, "n_epochs must be a whole number of at least 1, got 1.5"),
        ({"clip_range": "0.2"}, "clip_range must be a finite number, got '0.2'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_when_the_model_is_built(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(staggered_env(), **options)


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be above 0, got -1.0"),
        ({"memory_max_grad_norm": 0}, "memory_max_grad_norm must be above 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number, got nan"),
        ({"memory_learning_rate": float("nan")}, "memory_learning_rate must be a finite number, got nan"),
        ({"gamma": 2}, "gamma must be at most 1, got 2"),
        ({"ent_coef": -0.1}, "ent_coef must be at least 0, got -0.1"),
        ({"device": "cuda"}, "device is 'cuda', but torch sees no CUDA device"),
        ({"device": "gpu"}, "device must be 'auto' or a torch device, got 'gpu'"),
        ({"policy": None}, "policy must be one of .* got None"),
        ({"policy_kwargs": {"bogus": 1}}, "policy_kwargs do not fit MlpMemoryPolicy: .*bogus"),
        ({"policy_kwargs": {"memory_lr": 1}}, "without memory_lr"),
        ({"policy_kwargs": {"core_kwargs": [1]}}, r"core_kwargs must be a dict, got \[1\]"),
        (
            {"policy": "MlpPolicy"},
            "policy must be one of MlpMemoryPolicy, CnnMemoryPolicy, MultiInput.*, got MlpPolicy",
        ),
        ({"policy": ActorCriticPolicy}, "policy must be one of MlpMemoryPolicy, .* got ActorCriticPolicy"),
        (
            {"core": "rnn"},
            "unknown core 'rnn'; valid are 'compressive', 'feedforward', 'gru', 'gtrxl', 'lstm', 'min",
        ),
        ({"policy_kwargs": {"core_kwargs": {"memory_size": 3}}}, "core 'compressive' does not take .*memory_size"),
        ({"policy_kwargs": {"core_kwargs": {"memory": [ctrl.Tier(2), ctrl.Tier(2, 4)]}}}, "rate = 4 .*slots = 2"),
    ],
    ids=str,
)
def test_bad_arguments_of_both_are_refused(options: dict[str, Any], message: str, make: Any) -> None:
    with pytest.raises(ValueError, match=message):
        make(staggered_env(), **options)


@pytest.mark.parametrize("core", CORES)
def test_what_is_logged(core: str) -> None:
    model = make_model(staggered_env(), core).learn(STEPS)
    logged = model.logger.name_to_value
    assert logged["train/first_ratio_deviation"] < 1e-5
    assert logged["memory/state_bytes"] == model.policy.core.state_bytes
    numbers = [value for key, value in logged.items() if key.startswith(("train/", "memory/"))]
    assert np.isfinite(np.array(numbers, dtype=float)).all()
    of_memory = {key.split("/")[1] for key in logged if key.startswith("memory/")}
    attention = {"attention_mass", "attended_age"}
    compressing = {"reconstruction_loss", "reconstruction_error", "grad_norm", "learning_rate"}
    expected = {
        "compressive": {"state_bytes", "longest_time"} | attention | compressing,
        "transformer_xl": {"state_bytes", "longest_time"} | attention,
        "gtrxl": {"state_bytes"} | attention,
    }
    drifting = set() if core == "feedforward" else {"staleness"}
    assert of_memory == expected.get(core, {"state_bytes"}) | drifting


def test_the_clock_knows_the_longest_time_of_training(tmp_path: Path) -> None:
    """The longest episode has 19 steps. The clock ends at its last step, also after saving and loading."""
    model = make_model(staggered_env()).learn(2 * STEPS)
    assert model.logger.name_to_value["memory/longest_time"] == 18
    assert model.logger.name_to_value["train/first_ratio_deviation"] < 1e-5
    model.save(tmp_path / "agent")
    for core in (model.policy.core, MemoryPPO.load(tmp_path / "agent").policy.core):
        assert int(core.clock.end) == 18  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("env", ["Foo-v0", "no_such_package:Foo-v0"])
def test_an_unknown_env_id_is_answered_with_the_registered_ones(env: str) -> None:
    with pytest.raises(ValueError, match=f"unknown env id '{env}'.*CartPole-v1"):
        MemoryPPO("MlpMemoryPolicy", env)
