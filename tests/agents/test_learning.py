"""Learning beats what can be reached without a memory, and does so by remembering."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
from agent_toys import make_model
from stable_baselines3.common.evaluation import evaluate_policy

import ctrl.envs  # noqa: F401  registers the task
from ctrl import Tier
from ctrl.agents import GymnasiumVecEnv, MemoryPPO

LENGTH, CUES = 6, 4
CEILING = 1 / CUES
"""The success of the best agent without memory: at the query one cue is as likely as another."""


def recall(num_envs: int, seed: int) -> GymnasiumVecEnv:
    options = {"length": LENGTH, "num_cues": CUES, "noise": 0.5}
    env = GymnasiumVecEnv(gym.make_vec("ctrl/Recall-v0", num_envs=num_envs, **options))  # type: ignore[arg-type]
    env.seed(seed)
    return env


def success_of(core: str, core_kwargs: dict[str, Any], updates: int) -> float:
    model = make_model(
        recall(32, seed=0),
        core,
        n_steps=28,
        window=28,
        batch_size=28 * 8,
        n_epochs=4,
        learning_rate=3e-3,
        memory_learning_rate=3e-3,
        gamma=0.95,
        ent_coef=0.01,
        policy_kwargs={"core_kwargs": core_kwargs, "encoder_arch": [32], "net_arch": [32]},
    )
    model.learn(updates * 28 * 32)
    return success(model)


def success(model: MemoryPPO) -> float:
    mean, _ = evaluate_policy(model, recall(20, seed=1), n_eval_episodes=400, deterministic=True)
    return float(mean)  # type: ignore[arg-type]


@pytest.mark.slow
def test_compressed_slots_carry_the_answer() -> None:
    """Raw slots reach 3 steps back and the cue is 6 back, so the answer comes through compressed ones."""
    torch.manual_seed(0)
    memory = [Tier(3), Tier(3, rate=2)]
    assert success_of("compressive", {"width": 32, "heads": 2, "layers": 1, "memory": memory}, updates=80) > 0.9


@pytest.mark.slow
def test_without_a_memory_the_ceiling_holds() -> None:
    """What `success` measures is not reached some other way: not by a net without memory, nor with raw slots alone."""
    assert success_of("feedforward", {"width": 32}, updates=40) < CEILING + 0.1
    short = {"width": 32, "heads": 2, "layers": 1, "slots": 3}
    assert success_of("transformer_xl", short, updates=40) < CEILING + 0.1
