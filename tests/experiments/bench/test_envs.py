from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from ctrl.envs import TASKS
from ctrl.experiments.bench import envs as bench
from ctrl.experiments.bench.envs import FORMS, VARIANTS, WARM_UP, builder, measured, steps_per_second
from ctrl.experiments.errors import UserError

RECALL, ROOMS = "ctrl/Recall-v0", "ctrl/SelectNonmatchingObject-v0"


def test_all_tasks_are_measured_and_the_rooms_also_in_pixels() -> None:
    every = measured(())
    assert {task for task, _ in every} == set(TASKS)
    assert (ROOMS, {"observation": "pixels"}) in every
    assert len(every) == len(TASKS) + sum(map(len, VARIANTS.values()))
    assert measured((RECALL,)) == [(RECALL, {})]
    with pytest.raises(UserError, match="unknown task 'ctrl/Recal-v0'; did you mean 'ctrl/Recall-v0'"):
        measured(("ctrl/Recal-v0",))


def test_both_forms_play_the_same_task() -> None:
    native, sync = (builder(RECALL, form, 3, {"length": 5})() for form in FORMS)
    assert type(native) is TASKS[RECALL].vector_env
    assert type(sync) is SyncVectorEnv
    assert sync.metadata["autoreset_mode"] is native.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    np.testing.assert_array_equal(native.reset(seed=0)[0], sync.reset(seed=0)[0])
    assert not any("PassiveEnvChecker" in str(env) for env in sync.envs)


class Slow(gym.vector.VectorEnv[Any, Any, Any]):
    """Vector env that counts its steps; on its clock a step takes a quarter of a second."""

    def __init__(self, clock: list[float]) -> None:
        self.clock, self.num_envs, self.closed_by_user, self.seen = clock, 6, False, []
        self.action_space = gym.spaces.MultiDiscrete([1000] * 6)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return None, {}

    def step(self, actions: Any) -> Any:
        self.clock[0] += 0.25
        self.seen.append(actions)

    def close(self, **_: Any) -> None:
        self.closed_by_user = True


def test_a_turn_counts_the_steps_of_all_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, built = [0.0], []
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def build() -> Slow:
        built.append(Slow(clock))
        return built[-1]

    assert steps_per_second(build, seconds=2.0) == 24.0
    (envs,) = built
    assert len(envs.seen) == WARM_UP + 8
    assert envs.closed_by_user
    assert not any((a == b).all() for a, b in zip(envs.seen, envs.seen[1:], strict=False))


def test_a_turn_measures_both_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TURN_SECONDS", 0.01)
    native, sync = (builder(RECALL, form, 4, {}) for form in FORMS)
    turn = bench.turn(native, sync)
    assert min(turn["native"], turn["sync"]) > 10
    assert turn["ratio"] == turn["native"] / turn["sync"]


def test_the_table_has_short_numbers() -> None:
    turns = [{"native": 1.5e6, "sync": 9_000.0, "ratio": 1.0}, {"native": 1.6e6, "sync": 12_000.0, "ratio": 2.5}]
    rows = [{"task": ROOMS, "arguments": {"observation": "pixels"}, "turns": turns}]
    (table,) = bench.tables({"sizes": {"num_envs": 256}, "tasks": rows})
    cells = [column.cell(rows[0]) for column in table.columns]
    assert cells == [f"{ROOMS} pixels", "1.55M", "1.50M–1.60M", "10k", "1.8"]
    assert "256 copies" in table.title
