"""Tools of the tests of resumed training: cut a run, carry it over through a file, compare it with the whole one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from agent_toys import StopAfter, weights_of
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

import ctrl.envs  # noqa: F401 - registers the native tasks
from ctrl.agents import GymnasiumVecEnv
from ctrl.agents.resuming.training_state import training_state
from ctrl.agents.saving.plain_data import decode


def native_env(copies: int = 3, **options: Any) -> GymnasiumVecEnv:
    """Return native copies of Recall whose episodes end at different times."""
    arguments = {"length": 5, "stagger": True, **options}
    return GymnasiumVecEnv(gym.make_vec("ctrl/Recall-v0", num_envs=copies, **arguments))


def single_envs() -> DummyVecEnv:
    """Return single envs of a native task, with gymnasium's wrappers."""
    lengths = (5, 7, 4)
    return DummyVecEnv([lambda length=length: gym.make("ctrl/Recall-v0", length=length) for length in lengths])  # type: ignore[misc]


def cart_poles(copies: int = 3) -> DummyVecEnv:
    return DummyVecEnv([lambda: gym.make("CartPole-v1")] * copies)


class SaveAt(BaseCallback):
    """Callback that saves the model in one of its calls, as `CheckpointCallback` does."""

    def __init__(self, call: int, path: Path) -> None:
        super().__init__()
        self.call, self.path = call, path

    def _on_step(self) -> bool:
        if self.n_calls == self.call:
            self.model.save(self.path)
        return True


def disturb() -> None:
    """Draw from all global generators, as other code of a new process might."""
    random.random(), np.random.rand(3), torch.rand(5)  # noqa: NPY002


def results(model: Any) -> dict[str, Any]:
    """Return all that a run ends with: weights, optimizers, counts, generators, memory, rollout and envs."""
    optimizers = [model.policy.optimizer, model.policy.memory_optimizer]
    data, arrays, _ = training_state(model)
    state = decode(data["state"], arrays)
    state["logged"] = {name: value for name, value in state["logged"].items() if not name.startswith("time/")}
    for entry in state["recent"][0] or []:
        entry.pop("t")
    return {
        "weights": weights_of(model),
        "optimizers": [None if each is None else each.state_dict() for each in optimizers],
        "state": state,
    }


NOT_COMPARED = ("t", "_num_timesteps_at_start", "spaces", "cache")
"""Times, the start of the last call of `learn`, generators of observation spaces, which nobody has seeded, and keys and
values of empty slots, which are masked; those of others follow from weights and state."""


def without_clocks(value: Any) -> Any:
    """Return nested data without the times that monitors measure."""
    if isinstance(value, dict):
        return {key: without_clocks(part) for key, part in value.items() if key not in NOT_COMPARED}
    return [without_clocks(part) for part in value] if isinstance(value, list | tuple) else value


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Return the names of the parts of nested data that are not the same bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            found for key in {**one, **other} for found in differences(one.get(key), other.get(key), f"{name}/{key}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [
            found for i, pair in enumerate(zip(one, other, strict=True)) for found in differences(*pair, f"{name}/{i}")
        ]
    return [] if _same(one, other) else [name]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, np.random.Generator):
        return isinstance(other, np.random.Generator) and one.bit_generator.state == other.bit_generator.state
    return bool(one == other)


def cut_and_resumed(
    make: Callable[[], Any], make_env: Callable[[], Any], steps: int, cut: int, path: Path, **load: Any
) -> Any:
    """Return a model that was stopped after `cut` steps of its envs, saved, loaded elsewhere and trained to the end."""
    first = make().learn(steps, StopAfter(cut))
    first.save(path)
    kind, done = type(first), first.num_timesteps
    del first
    disturb()
    model = kind.load(path, env=make_env(), device="cpu", **load)
    disturb()
    return model.learn(steps - done, reset_num_timesteps=False)
