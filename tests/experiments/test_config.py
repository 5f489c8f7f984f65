from __future__ import annotations

import inspect
import json
import re
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import ctrl
from ctrl.agents import MemoryPPO
from ctrl.experiments.config import CompareConfig, DemoConfig, EvaluateConfig, TrainConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.options import (
    ImpalaOptions,
    MemoryOptions,
    PPOOptions,
    RunOptions,
    TaskOptions,
    merge_pairs,
    parse_memory,
    parse_pairs,
)
from ctrl.experiments.runs.core_options import parameters


@pytest.mark.parametrize(
    ("text", "tiers"),
    [
        ("32", [(32, 1)]),
        ("32,16x4", [(32, 1), (16, 4)]),
        (" 8 , 6x2 , 5 x 3 ", [(8, 1), (6, 2), (5, 3)]),
        ("4,4x1", [(4, 1), (4, 1)]),
    ],
)
def test_memory_is_parsed(text: str, tiers: list[tuple[int, int]]) -> None:
    assert parse_memory(text) == tiers


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "SLOTS"),
        ("32,", "SLOTS"),
        ("32;16x4", "SLOTS"),
        ("-3", "SLOTS"),
        ("32x4", "first tier is raw"),
        ("0", "at least 1"),
        ("8,4x0", "at least 1"),
        ("3,8x4", "3 slots is too small to be merged 4"),
        ("8,3x2,8x4", "3 slots is too small to be merged 4"),
    ],
)
def test_memory_that_does_not_fit_is_refused(text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_memory(text)


def test_pairs_are_python_values_or_text() -> None:
    parsed = parse_pairs(("length=64", "noise=0.5", "name=abc", "flag=True", "path=a=b", "empty="), "--env-kwargs")
    assert parsed == {"length": 64, "noise": 0.5, "name": "abc", "flag": True, "path": "a=b", "empty": ""}


def test_pairs_are_merged_by_their_keys() -> None:
    assert merge_pairs(("a=1", "b=x=y", "c=3"), ("b=2", "d=4")) == ("a=1", "b=2", "c=3", "d=4")
    assert merge_pairs((), ("a=1",)) == merge_pairs(("a=1",), ()) == ("a=1",)


@pytest.mark.parametrize("pairs", [("length",), ("=3",), ("a b=3",), ("length=3", "length=4")])
def test_pairs_that_are_none_are_refused(pairs: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="--env-kwargs"):
        TaskOptions(env_kwargs=pairs)


@pytest.mark.parametrize(
    ("options", "wrong", "told"),
    [
        (TaskOptions, {"num_envs": 0}, "--num-envs must be at least 1, got 0"),
        (TaskOptions, {"num_envs": 10_001}, "--num-envs must be at most 10,000, got 10,001"),
        (TaskOptions, {"env": ""}, "--env"),
        (MemoryOptions, {"width": 0}, "--width must be at least 1, got 0"),
        (MemoryOptions, {"chrono_horizon": 1}, "--chrono-horizon must be at least 2, got 1"),
        (PPOOptions, {"learning_rate": 0.0}, "--learning-rate must be above 0, got 0.0"),
        (PPOOptions, {"ent_coef": float("nan")}, "--ent-coef must be finite, got nan"),
        (PPOOptions, {"vf_coef": -1.0}, "--vf-coef must be at least 0, got -1.0"),
        (PPOOptions, {"memory_learning_rate": -1.0}, "--memory-learning-rate must be above 0, got -1.0"),
        (PPOOptions, {"gamma": 1.5}, "--gamma must be between 0 and 1, got 1.5"),
        (PPOOptions, {"n_steps": 128, "window": 50}, "--window must divide --n-steps, got 50 and 128"),
        (PPOOptions, {"refresh": "all"}, "--refresh is none, recompute or from 1 step to --n-steps = 64, got 'all'"),
        (PPOOptions, {"refresh": "0"}, "--refresh is none, recompute or from 1 step to --n-steps = 64, got '0'"),
        (PPOOptions, {"refresh": "-5"}, "--refresh is none, recompute or from 1 step to --n-steps = 64, got '-5'"),
        (PPOOptions, {"n_steps": 64, "refresh": "65"}, "from 1 step to --n-steps = 64, got '65'"),
        (RunOptions, {"steps": 0}, "--steps must be at least 1, got 0"),
        (RunOptions, {"eval_episodes": -1}, "--eval-episodes must be at least 0, got -1"),
        (RunOptions, {"eval_every": -1}, "--eval-every must be at least 0, got -1"),
        (RunOptions, {"threads": 0}, "--threads must be at least 1, got 0"),
        (TrainConfig, {"seed": -1}, "--seed must be at least 0, got -1"),
        (TrainConfig, {"core": "lstmm"}, "unknown core 'lstmm'; did you mean 'lstm'"),
        (TrainConfig, {"memory": MemoryOptions(width=30, heads=4)}, "--heads must divide --width, got 4 and 30"),
        (TrainConfig, {"memory": MemoryOptions(width=30)}, "--heads must divide --width, got 4 and 30"),
        (TrainConfig, {"algorithm": "a2c"}, "--algorithm is one of ppo, impala, got 'a2c'"),
        (
            TrainConfig,
            {"impala": ImpalaOptions(num_actors=0, rho_bar=2.0)},
            "--algorithm ppo has no --num-actors, --rho-bar; --algorithm impala does",
        ),
        (
            CompareConfig,
            {"algorithm": "impala", "ppo": PPOOptions(n_epochs=3)},
            "--algorithm impala has no --n-epochs; --algorithm ppo does",
        ),
        (CompareConfig, {"seeds": 0}, "--seeds must be at least 1, got 0"),
        (CompareConfig, {"cores": ()}, "at least one core"),
        (CompareConfig, {"cores": ("lstm", "lstm")}, "twice"),
        (CompareConfig, {"cores": ("lstm", "rnn")}, "unknown core 'rnn'"),
        (CompareConfig, {"learning_rates": ("gru=1e-3",)}, "'gru', which is not among --cores"),
        (CompareConfig, {"learning_rates": ("lstm=fast",)}, "lstm must be above 0, got 'fast'"),
        (EvaluateConfig, {"path": Path("x"), "episodes": 0}, "--episodes must be at least 1, got 0"),
        (EvaluateConfig, {"path": Path("x"), "num_envs": 0}, "--num-envs must be at least 1, got 0"),
        (EvaluateConfig, {"path": Path("x"), "seed": -1}, "--seed must be at least 0, got -1"),
        (DemoConfig, {"jobs": 0}, "--jobs must be at least 1, got 0"),
    ],
)
def test_values_that_make_no_sense_are_refused(options: type, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        options(**wrong)
    assert told in str(caught.value)


def test_heads_are_not_asked_of_cores_without_attention() -> None:
    assert TrainConfig(core="gru", memory=MemoryOptions(width=30)).heads == 1
    assert TrainConfig(core="gtrxl", memory=MemoryOptions(width=30, heads=5)).heads == 5


def test_unknown_core_lists_the_valid_ones() -> None:
    with pytest.raises(UserError, match="compressive, feedforward, gru, gtrxl, lstm, mingru, transformer_xl"):
        TrainConfig(core="?")


def test_configs_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainConfig().seed = 1  # type: ignore[misc]


def test_a_train_config_survives_json() -> None:
    config = TrainConfig(
        core="compressive",
        seed=3,
        out=Path("runs/x"),
        task=TaskOptions(env="CartPole-v1", env_kwargs=("a=1",), num_envs=5),
        run=RunOptions(steps=77, checkpoint_every=11),
        memory=MemoryOptions(width=24, memory="8,8x2"),
        ppo=PPOOptions(window=64, learning_rate=1e-3, refresh="16"),
    )
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    other = TrainConfig(algorithm="impala", impala=ImpalaOptions(num_actors=0, reward_clipping="abs_one"))
    assert TrainConfig.from_json(json.loads(json.dumps(other.to_json()))) == other


def test_a_config_from_before_an_option_came_has_its_default() -> None:
    data = TrainConfig().to_json()
    del data["ppo"]["refresh"], data["algorithm"], data["impala"]
    assert TrainConfig.from_json(data) == TrainConfig()


def test_a_config_from_before_options_were_refused_keeps_what_its_core_has() -> None:
    data = TrainConfig(core="lstm", memory=MemoryOptions(width=24, chrono_horizon=9)).to_json()
    data["memory"] |= {"heads": 4, "recency": None, "compression_gradient": "reconstruction"}
    data["ppo"] |= {"memory_max_grad_norm": 0.1}
    assert TrainConfig.from_json(data).memory == MemoryOptions(width=24, chrono_horizon=9)
    data["memory"]["recency"] = 2.0
    with pytest.raises(UserError, match="the run was made with --recency, which this version does not have"):
        TrainConfig.from_json(data)


@pytest.mark.parametrize("core", ctrl.core_names())
def test_what_help_calls_the_default_is_that_of_the_agents(core: str) -> None:
    """Options that the user leaves open are not passed to the agent, so `--help` must know the agent's defaults."""
    hints = {name: hint for options in (MemoryOptions, PPOOptions) for name, hint in hints_of(options).items()}
    known = {**parameters(core), **inspect.signature(MemoryPPO).parameters}
    told = {name: hint for name, hint in hints.items() if name in known and re.fullmatch(r"[\d.]+|--\w+", hint)}
    assert len(told) >= 5
    for name, hint in told.items():
        default = known[name].default
        assert hint == (f"--{name}" if default is True else f"--no-{name}" if default is False else hint)
        assert isinstance(default, bool) or float(hint) == default, name
    assert PPOOptions().learning_rate == 1e-3


def hints_of(options: type) -> dict[str, str]:
    """Return the default that `--help` states for each option that is left open."""
    hints = get_type_hints(options, include_extras=True)
    found = {name: getattr(part, "help_behavior_hint", None) for name in hints for part in get_args(hints[name])[1:]}
    return {name: hint.removeprefix("(default: ").removesuffix(")") for name, hint in found.items() if hint}


@pytest.mark.parametrize(("told", "given"), [("none", "none"), ("recompute", "recompute"), ("7", 7), ("64", 64)])
def test_refresh_is_a_word_or_a_number(told: str, given: str | int) -> None:
    assert PPOOptions(refresh=told).arguments()["refresh"] == given


def test_what_is_left_open_is_left_to_the_agent() -> None:
    arguments = PPOOptions().arguments()
    assert {"window", "batch_size", "memory_learning_rate", "n_epochs", "refresh"}.isdisjoint(arguments)
    assert replace(PPOOptions(), batch_size=256).arguments()["batch_size"] == 256


@pytest.mark.parametrize(
    ("options", "checkpoints", "evaluations"),
    [
        ({"steps": 1000}, 100, 100),
        ({"steps": 5}, 1, 1),
        ({"steps": 1000, "checkpoint_every": 7, "eval_every": 9}, 7, 9),
        ({"steps": 1000, "eval_every": 0}, 100, None),
        ({"steps": 1000, "eval_every": 7, "eval_episodes": 0}, 100, None),
    ],
)
def test_checkpoints_and_evaluations_come_every_tenth_unless_asked_otherwise(
    options: dict[str, int], checkpoints: int, evaluations: int | None
) -> None:
    run = RunOptions(**options)
    assert (run.checkpoint_interval, run.evaluation_interval) == (checkpoints, evaluations)
