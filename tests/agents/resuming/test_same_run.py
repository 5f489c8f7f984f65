"""Runs with the same seed, which are the same, and with another seed, which are not."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
from actor_toys import BOTH, UPDATE
from agent_toys import same_weights, weights_of
from torch import Tensor


def run(make: Any, core: str, seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the logged values after three updates on an env with its own random numbers."""
    model = make(gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="sync"), core, seed=seed)
    model.learn(3 * UPDATE)
    logged = {key: value for key, value in model.logger.name_to_value.items() if not key.startswith("time/")}
    return weights_of(model), logged


@BOTH
@pytest.mark.parametrize("core", ["compressive", "lstm"])
def test_a_seed_gives_the_same_run_twice(core: str, make: Any) -> None:
    weights, logged = run(make, core, seed=7)
    again, logged_again = run(make, core, seed=7)
    assert same_weights(weights, again)
    assert logged == logged_again and logged["train/loss"] != 0
    other, logged_other = run(make, core, seed=8)
    assert not same_weights(weights, other)
    assert logged != logged_other
