"""Learning by V-trace: it beats the memoryless agent, in one process and from the queue of an actor."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
from actor_toys import make_impala
from stable_baselines3.common.evaluation import evaluate_policy

from ctrl import Tier
from ctrl.agents import GymnasiumVecEnv, MemoryImpala
from ctrl.envs import TASKS

RECALL = {"length": 5, "num_cues": 4, "noise": 0.5}
"""Arguments of Recall: the cue is shown once and asked for 5 steps later; all cues are equally likely."""
SELECT = {"depth": 2, "steps": 60}
"""Arguments of the paper's task in small rooms: the agent must recognise an object that it saw 5 steps before."""
SMALL: dict[str, Any] = {"width": 32, "heads": 2, "layers": 1}
COMPRESSING: dict[str, Any] = {**SMALL, "memory": [Tier(2), Tier(3, 2, "conv")]}
"""Core whose raw slots reach 2 steps back, so that the answer to `RECALL` comes from compressed slots."""


def vector(task: str, num_envs: int, seed: int, **options: Any) -> GymnasiumVecEnv:
    env = GymnasiumVecEnv(gym.make_vec(f"ctrl/{task}-v0", num_envs=num_envs, **options))  # type: ignore[arg-type]
    env.seed(seed)
    return env


def recalling(core: str, core_kwargs: dict[str, Any], steps: int, **options: Any) -> MemoryImpala:
    """Train with a learning rate that falls to 0."""
    defaults: dict[str, Any] = {
        "n_steps": 12,
        "windows_per_update": 1,
        "learning_rate": lambda left: 5e-3 * left,
        "gamma": 0.95,
        "ent_coef": 0.003,
        "policy_kwargs": {"core_kwargs": core_kwargs, "encoder_arch": [32], "net_arch": [32]},
    }
    return make_impala(vector("Recall", 16, seed=0, **RECALL), core, **{**defaults, **options}).learn(steps)


def score_of(model: MemoryImpala, task: str, episodes: int, **options: Any) -> float:
    mean, _ = evaluate_policy(model, vector(task, 20, seed=1, **options), n_eval_episodes=episodes, deterministic=True)
    return float(mean)  # type: ignore[arg-type]


def test_compressed_slots_carry_the_answer() -> None:
    model = recalling("compressive", COMPRESSING, steps=60_000)
    assert TASKS["ctrl/Recall-v0"].scores(**RECALL).memoryless == 0.25
    assert score_of(model, "Recall", 400, **RECALL) >= 0.9


@pytest.mark.slow
def test_without_memory_the_ceiling_holds() -> None:
    model = recalling("feedforward", {"width": 32}, steps=60_000)
    assert score_of(model, "Recall", 400, **RECALL) < 0.25 + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("core", ["compressive", "lstm"])
def test_windows_of_actors_teach_it_too(core: str) -> None:
    """The actor's weights lag behind, so learning is slower."""
    kwargs = COMPRESSING if core == "compressive" else {"width": 32, "chrono_horizon": RECALL["length"]}
    model = recalling(core, kwargs, steps=120_000, num_actors=1, window_slots=1)
    assert model.logger.name_to_value["train/policy_lag"] > 0
    assert score_of(model, "Recall", 400, **RECALL) > 2 * 0.25


@pytest.mark.slow
@pytest.mark.parametrize("num_actors", [0, 1])
def test_the_papers_task_beats_the_ceiling(num_actors: int) -> None:
    model = make_impala(
        vector("SelectNonmatchingObject", 32, seed=0, **SELECT),
        num_actors=num_actors,
        n_steps=32,
        windows_per_update=1,
        learning_rate=1e-3,
        gamma=0.95,
        ent_coef=0.1,
        vf_coef=0.1,
        reward_clipping="soft_asymmetric",
        policy_kwargs={
            "core_kwargs": {"layers": 2, "memory": [Tier(16), Tier(8, 4, "conv")]},
            "encoder_arch": [64],
            "net_arch": [64],
        },
    )
    model.learn(2_000_000)
    ceiling = TASKS["ctrl/SelectNonmatchingObject-v0"].scores(**SELECT).memoryless
    assert score_of(model, "SelectNonmatchingObject", 60, **SELECT) > ceiling + 5
