from __future__ import annotations

import re
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from rich.console import Console

from ctrl.envs import TASKS
from ctrl.experiments.bench.config import BenchEnvs
from ctrl.experiments.bench.envs import FORMS, VARIANTS, WARM_UP, EnvsResult, builder, cases, envs_table, run_turn
from ctrl.experiments.errors import UserError

RECALL, ROOMS = "ctrl/Recall-v0", "ctrl/SelectNonmatchingObject-v0"


def test_ratios_are_taken_within_a_turn() -> None:
    # Turn 2 met a busy machine; both were slowed down.
    measured = EnvsResult(RECALL, {}, native=[100.0, 50.0, 110.0], sync=[50.0, 25.0, 50.0])
    assert measured.ratio == 2.0
    data = measured.to_json()
    assert data["steps_per_second"]["native"] == {"median": 100.0, "range": [50.0, 110.0]}
    assert data["steps_per_second"]["sync"] == {"median": 50.0, "range": [25.0, 50.0]}
    assert data["ratio"] == 2.0


def test_all_tasks_are_measured_and_the_rooms_also_in_pixels() -> None:
    every = cases(())
    assert {task for task, _ in every} == set(TASKS)
    assert (ROOMS, {"observation": "pixels"}) in every
    assert len(every) == len(TASKS) + sum(map(len, VARIANTS.values()))
    assert cases((RECALL,)) == [(RECALL, {})]
    with pytest.raises(UserError, match="unknown task 'ctrl/Recal-v0'; did you mean 'ctrl/Recall-v0'"):
        cases(("ctrl/Recal-v0",))


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

    assert run_turn(build, seconds=2.0) == 24.0
    (envs,) = built
    assert len(envs.seen) == WARM_UP + 8
    assert envs.closed_by_user
    assert not any((a == b).all() for a, b in zip(envs.seen, envs.seen[1:], strict=False))


def test_a_turn_takes_its_time() -> None:
    assert run_turn(partial(builder(RECALL, "native", 4, {})), seconds=0.01) > 100


def test_the_table_fits_a_narrow_terminal() -> None:
    results = [
        EnvsResult(RECALL, {}, [1.5e6, 1.23e6, 1.6e6], [9_000.0, 9_876.0, 12_000.0]),
        EnvsResult(ROOMS, {"observation": "pixels"}, [61_234.0, 61_000.0, 70_000.0], [100.0, 110.0, 120.0]),
    ]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(envs_table(results, num_envs=256))
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= 80
    rows = {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}|(?<=[\dMk]) (?=\d)", line.strip()) for line in lines)}
    assert rows[RECALL] == ["1.50M", "1.23M–1.60M", "9,876", "133.3"]
    assert rows[f"{ROOMS} pixels"][-1] == "583.3"
    assert "256 copies" in captured.get()


@pytest.mark.parametrize("name", ["num_envs", "repeats"])
def test_counts_are_positive(name: str) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} must be at least 1, got 0"):
        BenchEnvs(**{name: 0})
