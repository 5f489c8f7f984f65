"""Defaults of the agents: without options, code and the command line train the same agent."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from agent_toys import AtRolloutEnd, Scalars, make_model, same_weights, staggered_env, weights_of
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import FloatSchedule

import ctrl.envs  # noqa: F401 - registers the tasks
from ctrl.agents import GymnasiumVecEnv, MemoryImpala, MemoryPPO
from ctrl.agents.saving.model_file import read_model_file
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.options import ImpalaOptions
from ctrl.experiments.runs.build import arguments, build_model

BOTH = pytest.mark.parametrize(("algorithm", "kind"), [("ppo", MemoryPPO), ("impala", MemoryImpala)])
LEFT = (1.0, 0.75, 0.5, 0.1, 0.0)
"""Remaining shares of a run at which schedules are compared."""


def value_of(argument: Any) -> Any:
    """Return a value that can be compared; for a schedule, its values at `LEFT`."""
    return [FloatSchedule(argument)(left) for left in LEFT] if callable(argument) else argument


@BOTH
def test_defaults_are_what_the_command_line_gives(algorithm: str, kind: Any) -> None:
    given = arguments(TrainConfig(algorithm=algorithm))
    own = inspect.signature(kind).parameters
    assert {"learning_rate", "ent_coef", "n_steps", "gamma"} <= given.keys() <= own.keys()
    for name, value in given.items():
        assert value_of(value) == value_of(own[name].default), name


def recall() -> GymnasiumVecEnv:
    env = GymnasiumVecEnv(gym.make_vec("ctrl/Recall-v0", num_envs=4))
    env.seed(3)
    return env


@BOTH
def test_code_and_command_line_train_the_same_agent(algorithm: str, kind: Any) -> None:
    alone: dict[str, Any] = {} if algorithm == "ppo" else {"num_actors": 0}  # only so does a seed repeat itself
    config = TrainConfig(algorithm=algorithm, seed=3, impala=ImpalaOptions(**alone))
    results = []
    for build in (
        lambda: build_model(config, recall()),
        lambda: kind("MlpMemoryPolicy", recall(), seed=3, **alone),
    ):
        model = build()
        before = weights_of(model)
        results.append(weights_of(model.learn(2 * 4 * 128)))
        assert not same_weights(before, results[-1])
    assert same_weights(*results)


def rates(model: Any, *calls: int) -> list[float]:
    """Return the learning rate of each update in some calls of `learn`, of which each continues the last."""
    scalars = Scalars()
    model.set_logger(Logger(None, [scalars]))
    for number, steps in enumerate(calls):
        model.learn(steps, reset_num_timesteps=number == 0)
        model.logger.dump()
    return scalars.values["train/learning_rate"]


def falling(**options: Any) -> MemoryPPO:
    """Return a small agent with the default rate."""
    small = {"core": "gru", "core_kwargs": {"width": 4}}
    return MemoryPPO("MlpMemoryPolicy", staggered_env(), n_steps=8, policy_kwargs=small, device="cpu", **options)


def test_the_learning_rate_falls_to_0_over_a_call() -> None:
    assert rates(falling(), 4 * 24) == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3, 0.0])


def test_a_second_call_that_goes_on_has_its_own_share() -> None:
    assert rates(falling(), 2 * 24, 2 * 24) == pytest.approx([0.5e-3, 0.0, 0.25e-3, 0.0])


def test_a_number_is_a_constant_rate() -> None:
    assert rates(falling(learning_rate=2e-3), 3 * 24) == [2e-3] * 3


def test_the_compressors_rate_stays() -> None:
    model = make_model(staggered_env()).learn(3 * 72)
    assert model.logger.name_to_value["memory/learning_rate"] == model.memory_learning_rate


@BOTH
def test_a_model_with_the_default_rate_is_saved_and_loaded(algorithm: str, kind: Any, tmp_path: Path) -> None:
    """The file holds stable-baselines3's own schedule class, by its name."""
    model = kind("MlpMemoryPolicy", "CartPole-v1", policy_kwargs={"core": "gru"}, device="cpu")
    model.save(tmp_path / "agent")
    loaded = kind.load(tmp_path / "agent", device="cpu")
    assert value_of(loaded.learning_rate) == value_of(loaded.lr_schedule) == value_of(model.learning_rate)
    kept = read_model_file(tmp_path / "agent", trust=False).data["attributes"]["learning_rate"]
    assert kept == {"#": "LinearSchedule", "start": 1e-3, "end": 0.0, "end_fraction": 1.0}
    again = kind.load(tmp_path / "agent", device="cpu", custom_objects={"learning_rate": 0.5, "lr_schedule": 0.5})
    assert again.lr_schedule(0.3) == 0.5


def test_the_first_update_has_more_than_the_last() -> None:
    """The test reads the rate from the optimizer, not only from the log."""
    found: list[float] = []
    model = falling()
    model.learn(4 * 24, AtRolloutEnd(lambda model: found.append(model.policy.optimizer.param_groups[0]["lr"])))
    assert found == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3]), "each is left by the update before"
    assert model.policy.optimizer.param_groups[0]["lr"] == 0


@BOTH
def test_a_call_that_would_learn_nothing_is_warned_of(algorithm: str, kind: Any) -> None:
    """An example is a short call: the rate has fallen to 0 by its only update."""
    alone: dict[str, Any] = {} if algorithm == "ppo" else {"num_actors": 0}
    options: dict[str, Any] = {"n_steps": 8, "policy_kwargs": {"core": "gru"}, "device": "cpu", **alone}
    falls, stays = (
        kind("MlpMemoryPolicy", staggered_env(), **options, **rate) for rate in ({}, {"learning_rate": 1e-3})
    )
    stays.learn(24)
    falls.learn(25)
    for steps, on in ((24, True), (1, True), (24, False)):
        with pytest.warns(
            UserWarning, match=rf"learning_rate is 0 in the only update of learn\({steps}\), after 24 st"
        ):
            falls.learn(steps, reset_num_timesteps=on)
