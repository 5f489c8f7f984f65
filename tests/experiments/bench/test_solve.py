from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from stable_baselines3 import PPO

from ctrl.experiments.bench import solve as bench
from ctrl.experiments.errors import UserError
from ctrl.experiments.options import TaskOptions
from ctrl.experiments.report.summary import Evaluation

QUIET = Console(quiet=True)


def until(scores: Iterator[float], interval: int, steps: int) -> tuple[bench.UntilSolved, Any]:
    """Train on CartPole with rollouts of 8 steps, and a score that is given."""
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    callback = bench.UntilSolved(lambda _: next(scores), interval)
    model.learn(steps, callback=callback)
    return callback, model


def test_training_ends_after_three_good_evaluations_in_a_row() -> None:
    given = [0.95, 1.0, 0.94, 0.95, 0.96, 1.0, 0.0]
    callback, model = until(iter(given), interval=16, steps=1000)
    assert callback.solved and callback.scores == given[:6]
    assert 6 * 16 <= model.num_timesteps <= 6 * 16 + 8


def test_an_agent_that_does_not_solve_the_task_is_evaluated_at_the_end() -> None:
    callback, model = until(iter([1.0, 0.9, 1.0, 0.5]), interval=16, steps=56)
    assert not callback.solved and callback.scores == [1.0, 0.9, 1.0, 0.5]
    assert model.num_timesteps == 56


def test_time_of_evaluations_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this clock every look takes a second, and an evaluation a thousand."""
    now = [0.0]

    def look() -> float:
        now[0] += 1
        return now[0]

    def score(_: Any) -> float:
        now[0] += 1000
        return 1.0

    monkeypatch.setattr(bench.time, "perf_counter", look)
    callback = bench.UntilSolved(score, 8)
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(100, callback=callback)
    assert callback.seconds == 3.0


@pytest.mark.parametrize(
    ("task", "perfect", "random"),
    [
        (bench.TASKS["recall-24"], 1.0, 0.25),
        (TaskOptions(env="ctrl/Recall-v0", env_kwargs=("num_cues=8",)), 1.0, 0.125),
        (bench.TASKS["repeat-first-easy"], 1.0, None),
    ],
)
def test_scores_are_normalised(task: TaskOptions, perfect: float, random: float | None) -> None:
    def score(value: float) -> float:
        return bench.normalised(task, Evaluation(4, value, 0.0, 1.0, None, 0, True))

    assert math.isclose(score(perfect), 1.0)
    assert score(-2.0) < 0
    if random is not None:
        assert math.isclose(score(random), 0.0)


@pytest.mark.parametrize("agent", ["compressive", "gru", "tuned_recurrent_ppo", "default_recurrent_ppo"])
def test_a_turn_trains_and_evaluates(agent: str) -> None:
    task = TaskOptions(env="ctrl/Recall-v0", env_kwargs=("length=6",), num_envs=4)
    options = bench.Options(tasks=("recall-24",), agents=(agent,), num_envs=4, steps=256, interval=100)
    turn = bench.turn(agent, task, options, seed=1)
    assert next(iter(turn)) == "seconds" and turn["seconds"] > 0
    assert turn["steps"] >= 256 and len(turn["scores"]) >= 1 and not turn["solved"]
    assert turn["parameters"] > 1000


def test_each_turn_has_a_seed_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(name: str, task: TaskOptions, options: bench.Options, seed: int) -> dict[str, Any]:
        asked.append((task.env_kwargs, task.num_envs, name, seed))
        solved = name == "lstm" and seed > 0
        return {"seconds": 10.0 + seed, "steps": 2000 * seed, "solved": solved, "scores": [seed / 2], "parameters": 7}

    monkeypatch.setattr(bench, "turn", fake)
    options = bench.Options(tasks=("recall-64",), agents=("lstm", "default_recurrent_ppo"), num_envs=8, repeats=3)
    report = bench.run(options, QUIET)
    assert asked == [(("length=64",), 8, name, seed) for seed in range(3) for name in options.agents]
    (table,) = bench.tables(report)
    lstm, recurrent = ([column.cell(row) for column in table.columns] for row in table.rows)
    assert lstm == ["recall-64", "lstm", "7", "2 of 3", "3,000 (2,000–4,000)", "12 (11–12)", "0.50"]
    assert recurrent == ["recall-64", "RecurrentPPO, default", "7", "0 of 3", "–", "–", "0.50"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("recall-25",)}, "recall-24"),
        ({"agents": ("lstmm",)}, "lstm"),
        ({"steps": 0}, "--steps"),
        ({"interval": 0}, "--interval"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench.Options(**options)
