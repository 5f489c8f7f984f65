"""Learning by PPO: it beats the memoryless agent, and needs the memory to do so."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
from agent_toys import make_model
from stable_baselines3.common.evaluation import evaluate_policy

from ctrl import Tier
from ctrl.agents import GymnasiumVecEnv
from ctrl.envs import TASKS

TASK = {"length": 8, "num_cues": 4, "noise": 0.5}
SCORES = TASKS["ctrl/Recall-v0"].scores(**TASK)
SMALL = {"width": 32, "heads": 2, "layers": 1}


def recall(num_envs: int, seed: int) -> GymnasiumVecEnv:
    env = GymnasiumVecEnv(gym.make_vec("ctrl/Recall-v0", num_envs=num_envs, **TASK))  # type: ignore[arg-type]
    env.seed(seed)
    return env


def success_of(core: str, core_kwargs: dict[str, Any], updates: int) -> float:
    """Train with a learning rate that falls to 0. With a constant rate the success rises to 1 and drops again."""
    model = make_model(
        recall(32, seed=0),
        core,
        n_steps=27,
        window=27,
        batch_size=27 * 8,
        n_epochs=4,
        learning_rate=lambda left: 3e-3 * left,
        memory_learning_rate=3e-3,
        gamma=0.95,
        ent_coef=0.01,
        policy_kwargs={"core_kwargs": core_kwargs, "encoder_arch": [32], "net_arch": [32]},
    )
    model.learn(updates * 27 * 32)
    mean, _ = evaluate_policy(model, recall(20, seed=1), n_eval_episodes=400, deterministic=True)
    return float(mean)  # type: ignore[arg-type]


def test_what_the_task_says_of_its_ceiling() -> None:
    """At the query all cues are equally likely."""
    assert SCORES.memoryless == 0.25 and SCORES.perfect == 1.0


def test_compressed_slots_carry_the_answer() -> None:
    """Raw slots reach 3 steps back and the cue is 8 steps back, so the answer comes from compressed slots."""
    memory = [Tier(3), Tier(4, 2, "conv")]
    assert success_of("compressive", {**SMALL, "memory": memory}, updates=40) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("core", ["lstm", "mingru"])
def test_recurrent_cores_learn_it_too(core: str) -> None:
    assert success_of(core, {"width": 32, "chrono_horizon": TASK["length"]}, updates=80) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("core", "options"), [("feedforward", {"width": 32}), ("transformer_xl", {**SMALL, "slots": 3})]
)
def test_without_a_memory_that_reaches_the_cue_the_ceiling_holds(core: str, options: dict[str, Any]) -> None:
    """The success in the tests above needs such a memory: it is not reached without one, nor with raw slots alone."""
    assert success_of(core, options, updates=40) < SCORES.memoryless + 0.1
