from __future__ import annotations

import importlib.metadata
import itertools
import re
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from ctrl.agents import GymnasiumVecEnv
from ctrl.experiments.errors import UserError
from ctrl.experiments.options import TaskOptions
from ctrl.experiments.runs.tasks import (
    evaluation_seed,
    external_task,
    find_spec,
    known_scores,
    make_task,
    policy_name,
    reference_scores,
    stated_scores,
    training_seed,
)

RECALL = TaskOptions(env_kwargs=("length=5", "num_cues=3"), num_envs=4)


def play(task: TaskOptions, seed: int, training: bool, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    env = make_task(task, seed=seed, training=training)
    observations, ends = [env.reset()], []
    for _ in range(steps):
        observation, _, dones, _ = env.step(np.zeros(task.num_envs, dtype=np.int64))
        observations.append(observation)
        ends.append(dones)
    env.close()
    return np.stack(observations), np.stack(ends)  # type: ignore[arg-type]


def test_our_tasks_run_natively() -> None:
    env = make_task(RECALL, seed=0, training=True)
    assert isinstance(env, GymnasiumVecEnv)
    assert env.num_envs == 4
    env.close()


def test_other_tasks_run_through_stable_baselines3() -> None:
    env = make_task(TaskOptions(env="CartPole-v1", num_envs=3), seed=0, training=True)
    assert env.num_envs == 3
    env.close()


@pytest.mark.parametrize("task", [RECALL, TaskOptions(env="CartPole-v1", num_envs=2)])
def test_a_seed_gives_the_same_episodes(task: TaskOptions) -> None:
    first, again, other = (play(task, seed, training=False)[0] for seed in (7, 7, 70_000))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_episodes_end_together_in_evaluation_and_apart_in_training() -> None:
    _, together = play(RECALL, 0, training=False)
    _, apart = play(RECALL, 0, training=True)
    assert set(together.sum(axis=1)) == {0, 4}
    assert apart.sum(axis=1).max() < 4


def test_seeds_of_runs_and_of_evaluations_do_not_overlap() -> None:
    runs = [range(training_seed(seed), training_seed(seed) + 10_000) for seed in range(3)]
    assert all(before.stop <= after.start for before, after in itertools.pairwise(runs))
    assert evaluation_seed(0) > training_seed(99_999)
    assert evaluation_seed(1) == evaluation_seed(0) + 10_000


@pytest.mark.parametrize(
    ("env_id", "told"),
    [
        ("ctrl/Recal-v0", r"did you mean 'ctrl/Recall-v0'.*package:Id-v0"),
        ("CartPol-v1", "CartPole-v1"),
        ("popgym-RepeatFirst-v0", "popgym-RepeatFirstEasy-v0"),
        ("no_such_package:Thing-v0", "no_such_package"),
        (".tasks:My-v0", r"\.tasks cannot be imported: TypeError"),
    ],
)
def test_an_id_that_is_not_found_says_what_would_work(env_id: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        find_spec(env_id)


def test_a_module_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks_right_here.py").write_text("")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    assert find_spec("tasks_right_here:CartPole-v1").id == "CartPole-v1"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def f(:", "SyntaxError: invalid syntax (broken_tasks.py, line 1)"),
        ("raise RuntimeError('no display')", "RuntimeError: no display"),
    ],
)
def test_a_module_that_breaks_on_import_is_told(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_tasks.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=re.escape(f"broken_tasks cannot be imported: {told}")):
        find_spec("broken_tasks:My-v0")


def test_an_env_whose_module_is_missing_is_told() -> None:
    gym.register("test/Nowhere-v0", "no_such_package:Env")
    try:
        with pytest.raises(UserError, match=r"test/Nowhere-v0 cannot be built with .*no_such_package"):
            make_task(TaskOptions(env="test/Nowhere-v0"), seed=0, training=True)
    finally:
        del gym.registry["test/Nowhere-v0"]


@pytest.mark.parametrize("env_id", ["MiniGrid-MemoryS7-v0", "minigrid:MiniGrid-MemoryS7-v0"])
def test_tasks_of_the_field_are_adapted(env_id: str) -> None:
    env = make_task(TaskOptions(env=env_id, num_envs=2, env_kwargs=("max_steps=9",)), seed=0, training=True)
    assert env.observation_space.shape == (180,)  # a view of 3 × 3 cells, one-hot
    assert env.get_attr("max_steps") == [9, 9]
    env.close()


def test_another_package_may_have_an_id_of_the_field() -> None:
    assert external_task("minigrid:MiniGrid-MemoryS7-v0") is external_task("MiniGrid-MemoryS7-v0")
    assert external_task("my_package:MiniGrid-MemoryS7-v0") is None
    assert external_task("CartPole-v1") is None


def test_a_missing_package_of_the_field_gives_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing)
    with pytest.raises(UserError, match=r'MiniGrid-MemoryS7-v0: .*pip install "ctrl-memory\[minigrid\]"'):
        make_task(TaskOptions(env="MiniGrid-MemoryS7-v0"), seed=0, training=True)


@pytest.mark.parametrize(
    ("env", "argument"),
    [
        *(("ctrl/Recall-v0", argument) for argument in ("lenght=5", "length=-1", "length=many")),
        ("MortarMayhem-v0", "comand_count=[3]"),
    ],
)
def test_arguments_that_the_task_does_not_take_are_told(env: str, argument: str) -> None:
    with pytest.raises(UserError, match=f"{env} cannot be built.*{argument.split('=')[0]}"):
        make_task(TaskOptions(env=env, env_kwargs=(argument,)), seed=0, training=True)


@pytest.mark.parametrize(
    ("env", "arguments", "scores"),
    [
        ("ctrl/Recall-v0", ("num_cues=2",), {"random": 0.5, "best without memory": 0.5, "perfect": 1.0}),
        ("CartPole-v1", (), {}),
        ("MiniGrid-MemoryS9-v0", (), {"random": 0.19, "best known": 0.974}),
        ("MiniGrid-MemoryS9-v0", ("agent_view_size=3",), {"random": 0.19, "best known": 0.974}),  # its own
        ("MiniGrid-MemoryS9-v0", ("agent_view_size=7",), {}),  # with which it is another task
        ("popgym-HigherLowerHard-v0", (), {"random": 0.0}),  # nobody knows the best score
    ],
)
def test_stated_scores_say_who_reaches_them(env: str, arguments: tuple[str, ...], scores: dict[str, float]) -> None:
    task = TaskOptions(env=env, env_kwargs=arguments)
    assert stated_scores(task) == scores
    assert (known_scores(task) is None) is (env != "ctrl/Recall-v0")


def test_curves_are_read_by_scores_on_their_own_scale() -> None:
    assert reference_scores(RECALL) == reference_scores(RECALL, "success")
    assert list(reference_scores(RECALL)) == ["best without memory", "perfect"]
    rewriting = TaskOptions(env="ctrl/Rewrite-v0")
    assert reference_scores(rewriting)["perfect"] > 50
    assert reference_scores(rewriting, "success") == {}


def test_the_policy_follows_what_is_seen() -> None:
    image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    assert policy_name(spaces.Box(-1, 1, (4,))) == "MlpMemoryPolicy"
    assert policy_name(spaces.Discrete(3)) == "MlpMemoryPolicy"
    assert policy_name(image) == "CnnMemoryPolicy"
    assert policy_name(spaces.Dict({"image": image})) == "MultiInputMemoryPolicy"
