"""Tasks of the suite, and the runs that are planned for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ctrl.experiments.options import PPOOptions
from ctrl.experiments.runs.build import build_model, core_kwargs, parameter_count
from ctrl.experiments.runs.tasks import make_task
from ctrl.experiments.suite.config import RATES, SuiteConfig
from ctrl.experiments.suite.suite import plan
from ctrl.experiments.suite.tasks import SUITE, TASKS, SuiteTask


@pytest.mark.parametrize("task", SUITE, ids=[task.name for task in SUITE])
def test_each_task_builds_and_says_what_is_reached_without_memory(task: SuiteTask) -> None:
    for one in (task, task.transferred()):
        env = make_task(one.options(2), seed=0, training=True)
        assert env.num_envs == 2
        env.close()
    chance, perfect = task.chance, task.perfect
    assert chance is not None and perfect is not None
    assert chance < perfect - 0.2
    assert 200_000 <= task.steps <= 3_000_000
    assert task.name == task.name.lower() and "/" not in task.name


def test_scores_are_on_the_scale_that_is_shown() -> None:
    known = {name: (TASKS[name].chance, TASKS[name].perfect) for name in TASKS}
    assert known["recall-250"] == (0.25, 1.0)
    assert known["copy-4-8"] == (0.0, 1.0)
    assert known["select-room"][0] == pytest.approx((19.27 - 0.17) / (67 - 0.17), abs=1e-3)
    assert known["repeat-first-medium"] == (-0.5, 1.0)
    assert len(TASKS) == len(SUITE) == 20


def test_transfer_changes_the_named_arguments_alone() -> None:
    task = replace(TASKS["copy-4-8"], transfer=("delay=99",))
    assert task.transferred().arguments == ("length=4", "delay=99")
    assert TASKS["recall-250"].transferred().options(1).env_arguments == {"length": 2500}


def test_recurrent_cores_are_planned_with_each_rate_and_at_least_as_many_parameters() -> None:
    contenders = plan(SuiteConfig(tasks=("rare-cue", "t-maze"), steps_scale=0.5))
    cores = ["compressive", "transformer_xl", *["lstm"] * 3, *["gru"] * 3]
    assert [(one.task.name, one.config.core) for one in contenders] == [
        (task, core) for task in ("rare-cue", "t-maze") for core in cores
    ]
    first, raw, *tuned = (one.config for one in contenders[: len(cores)])
    assert [config.ppo.learning_rate for config in tuned] == [*RATES, *RATES]
    assert (first.memory.width, first.run.steps, first.run.threads) == (None, 200_000, 1)
    env = make_task(TASKS["rare-cue"].options(1), seed=0, training=True)
    ours = parameter_count(build_model(first, env))
    assert core_kwargs("transformer_xl", raw.memory)["slots"] == sum(slots for slots, _ in first.memory.tiers)
    build_model(raw, env)
    for config in tuned:
        narrower = replace(config, memory=replace(config.memory, width=(config.memory.width or 0) - 1))
        sizes = [parameter_count(build_model(one, env)) for one in (narrower, config)]
        assert sizes[0] < ours <= sizes[1]
    env.close()


def test_without_tuning_all_have_one_rate() -> None:
    config = SuiteConfig(tasks=("copy-4-8",), cores=("lstm", "gru"), tune=False, ppo=PPOOptions(learning_rate=0.5))
    assert [one.config.ppo.learning_rate for one in plan(config)] == [0.5, 0.5]
