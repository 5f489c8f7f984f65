from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stable_baselines3.common.vec_env import VecEnv

import ctrl
from ctrl.agents import MemoryImpala, MemoryPPO
from ctrl.compressive.core import CompressiveCore
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.errors import UserError
from ctrl.experiments.options import (
    DEFAULT_TIERS,
    ImpalaOptions,
    MemoryOptions,
    PPOOptions,
    RunOptions,
    TaskOptions,
    parse_memory,
)
from ctrl.experiments.runs.build import (
    arguments,
    build_model,
    closest,
    core_kwargs,
    load_model,
    match_width,
    parameter_count,
)
from ctrl.experiments.runs.core_options import of_core
from ctrl.experiments.runs.tasks import make_task

SMALL = TrainConfig(
    memory=MemoryOptions(width=16, heads=2, layers=1, memory="4,3x2"),
    ppo=PPOOptions(n_steps=8),
    run=RunOptions(device="cpu"),
)


def small(core: str) -> TrainConfig:
    """Return the config of a core, with those options of `SMALL` that the core has."""
    return replace(SMALL, core=core, memory=of_core(SMALL.memory, core))


@pytest.fixture
def env() -> Iterator[VecEnv]:
    env = make_task(TaskOptions(env_kwargs=("length=5",), num_envs=2), seed=0, training=True)
    yield env
    env.close()


def test_each_core_gets_the_options_that_it_has() -> None:
    given = {"reconstruction": "none", "compression_gradient": "task", "residual": "gated", "forgetting": False}
    memory = replace(SMALL.memory, compressor="max", chrono_horizon=9, **given)
    common = {"width": 16, "layers": 1}
    tiers = [ctrl.Tier(4, 1, "max"), ctrl.Tier(3, 2, "max")]
    assert core_kwargs("compressive", memory) == {**common, **given, "heads": 2, "memory": tiers}
    assert core_kwargs("transformer_xl", memory) == {**common, "heads": 2, "slots": 7}
    assert core_kwargs("gtrxl", memory) == {**common, "heads": 2, "slots": 7}
    assert core_kwargs("lstm", memory) == {**common, "chrono_horizon": 9}
    assert core_kwargs("gru", memory) == {**common, "chrono_horizon": 9}
    assert core_kwargs("mingru", memory) == {**common, "chrono_horizon": 9}
    assert core_kwargs("feedforward", memory) == common


def test_what_is_left_open_is_left_to_the_core() -> None:
    assert core_kwargs("lstm", MemoryOptions()) == {}
    assert "memory" not in core_kwargs("compressive", MemoryOptions())
    for asked in ({"memory": DEFAULT_TIERS}, {"compressor": "most_missed"}, {"memory": "4,4x2", "compressor": "conv"}):
        memory = core_kwargs("compressive", MemoryOptions(**asked))["memory"]
        assert {tier.compressor for tier in memory} == {asked.get("compressor", ctrl.Tier.compressor)}
        assert [(tier.slots, tier.rate) for tier in memory] == parse_memory(asked.get("memory", DEFAULT_TIERS))
    assert [(tier.slots, tier.rate) for tier in CompressiveCore.MEMORY] == parse_memory(DEFAULT_TIERS)


@pytest.mark.parametrize("core", ctrl.core_names())
def test_every_core_is_built(core: str, env: VecEnv) -> None:
    model = build_model(small(core), env)
    assert parameter_count(model) > 0


@pytest.mark.parametrize("core", ["lstm", "gru", "mingru", "transformer_xl", "gtrxl"])
def test_matched_cores_have_parameters_within_ten_percent(core: str, env: VecEnv) -> None:
    target = parameter_count(build_model(replace(SMALL, memory=replace(SMALL.memory, width=48)), env))
    match = match_width(small(core), env, target)
    built = build_model(replace(small(core), memory=replace(small(core).memory, width=match.width)), env)
    assert parameter_count(built) == match.parameters
    assert abs(match.parameters / target - 1) <= 0.1
    assert match.difference == pytest.approx(match.parameters / target - 1)


def test_what_cannot_be_matched_is_told(env: VecEnv) -> None:
    with pytest.raises(UserError, match="no width of lstm comes within 10% of 10 parameters; the closest is 1 with"):
        match_width(small("lstm"), env, target=10)


@pytest.mark.parametrize(("target", "expected"), [(0, (1, 1)), (26, (5, 25)), (31, (6, 36)), (10**6, (9, 81))])
def test_closest_finds_the_nearest_count(target: int, expected: tuple[int, int]) -> None:
    assert closest(lambda size: size**2, target, highest=9) == expected


def test_an_agent_that_cannot_be_built_says_why(env: VecEnv) -> None:
    with pytest.raises(UserError, match="compressor 'convv'"):
        build_model(replace(SMALL, memory=replace(SMALL.memory, compressor="convv")), env)
    with pytest.raises(UserError, match="batch_size"):
        build_model(replace(SMALL, ppo=replace(SMALL.ppo, batch_size=5)), env)


def test_the_learning_rate_falls_to_zero_unless_told_otherwise(env: VecEnv) -> None:
    annealed = build_model(replace(SMALL, ppo=replace(SMALL.ppo, learning_rate=2e-3)), env)
    constant = build_model(replace(SMALL, ppo=replace(SMALL.ppo, anneal=False)), env)
    assert [annealed.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == pytest.approx([2e-3, 1e-3, 0.0])
    assert [constant.lr_schedule(left) for left in (1.0, 0.5, 0.0)] == [1e-3] * 3


def test_the_other_algorithm_gets_what_it_shares_and_its_own(env: VecEnv, tmp_path: Path) -> None:
    ppo = PPOOptions(n_steps=8, gamma=0.8, ent_coef=0.02)
    impala = ImpalaOptions(num_actors=0, windows_per_update=3, c_bar=0.5)
    config = replace(SMALL, algorithm="impala", ppo=ppo, impala=impala)
    assert arguments(config).keys().isdisjoint({"clip_range", "n_epochs", "gae_lambda", "refresh", "rho_bar"})
    model = build_model(config, env)
    assert isinstance(model, MemoryImpala)
    assert (model.n_steps, model.gamma, model.ent_coef) == (8, 0.8, 0.02)
    assert (model.num_actors, model.windows_per_update, model.c_bar, model.rho_bar) == (0, 3, 0.5, 1.0)
    assert model.policy.core.output_size == 16


@pytest.mark.parametrize("algorithm", ["ppo", "impala"])
def test_a_file_is_loaded_as_what_it_is(algorithm: str, env: VecEnv, tmp_path: Path) -> None:
    impala = ImpalaOptions(num_actors=3) if algorithm == "impala" else ImpalaOptions()
    build_model(replace(SMALL, algorithm=algorithm, impala=impala), env).save(tmp_path / "agent.zip")
    loaded = load_model(tmp_path / "agent.zip", env, "cpu")
    assert type(loaded) is {"ppo": MemoryPPO, "impala": MemoryImpala}[algorithm]
    assert getattr(loaded, "num_actors", 0) == 0, "it is loaded to play"
