from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from stable_baselines3.common.evaluation import evaluate_policy

from ctrl.agents import MemoryPPO
from ctrl.agents.evaluation import Player
from ctrl.experiments.cli import main
from ctrl.experiments.config import TrainConfig
from ctrl.experiments.options import MemoryOptions, PPOOptions, RunOptions, TaskOptions
from ctrl.experiments.runs.build import build_model
from ctrl.experiments.runs.core_options import of_core
from ctrl.experiments.runs.tasks import evaluation_seed, make_task
from ctrl.experiments.trained.evaluate import (
    WINDOWS,
    evaluate,
    evaluation_table,
    held_out_windows,
    reconstruction_errors,
)


class Constant:
    """Agent that always takes the same action."""

    def __init__(self, action: int) -> None:
        self.action = action

    def predict(self, observation: np.ndarray, **_: Any) -> tuple[np.ndarray, None]:
        return np.full(len(observation), self.action), None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, small: tuple[str, ...]) -> Path:
    return train(tmp_path_factory.mktemp("trained") / "run", *small, "--env-kwargs", "length=5")


def train(folder: Path, *options: str) -> Path:
    assert main(["train", "--steps", "64", *options, "--out", str(folder)]) == 0
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> dict[str, Any]:
    """Return what `ctrl evaluate` prints as JSON."""
    capsys.readouterr()
    assert main(["evaluate", str(path), "--json", *options]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_episodes_success_and_length_are_counted() -> None:
    task = TaskOptions(env_kwargs=("length=5", "num_cues=2"), num_envs=3)
    env = make_task(task, seed=0, training=False)
    first = evaluate(Constant(0), env, task, episodes=200, seed=11)
    second = evaluate(Constant(1), env, task, episodes=200, seed=11)
    env.close()
    assert (first.episodes, first.length_mean, first.seed) == (200, 6.0, 11)
    assert first.success is not None and second.success is not None
    assert first.success == first.return_mean
    assert first.success + second.success == pytest.approx(1)  # the same episodes, one of two cues each
    assert 0.35 < first.success < 0.65


def test_score_is_normalised_and_success_is_told_apart_by_group(capsys: pytest.CaptureFixture[str]) -> None:
    """An agent that always names the most frequent cue is right only in the group of that cue."""
    task = TaskOptions(env="ctrl/RareCue-v0", env_kwargs=("length=2", "num_cues=5"), num_envs=3)
    env = make_task(task, seed=0, training=False)
    brought = evaluate(Constant(0), env, task, episodes=300, seed=4)
    env.close()
    assert brought.normalised == pytest.approx((brought.return_mean - 0.2) / 0.8)
    assert list(brought.groups) == ["rank 1", "ranks 2–3", "ranks 4–5"]
    assert [group.success for group in brought.groups.values()] == [1, 0, 0]
    assert sum(group.episodes for group in brought.groups.values()) == 300
    Console().print(evaluation_table(Path("model.zip"), task, brought))
    printed = capsys.readouterr().out
    assert "normalised" in printed
    assert f"0.000 of {brought.groups['ranks 2–3'].episodes}" in printed


def test_groups_have_named_numbers_in_json(
    tmp_path: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    task = ("--env", "ctrl/RareCue-v0", "--env-kwargs", "length=2", "num_cues=3")
    folder = train(tmp_path / "run", *small, *task)
    kept = json.loads((folder / "summary.json").read_text())["evaluation"]
    groups = evaluated(capsys, folder, "--episodes", str(kept["episodes"]))["groups"]
    assert groups == kept["groups"]
    assert all(list(group) == ["episodes", "success"] for group in groups.values())
    assert sum(group["episodes"] for group in groups.values()) == kept["episodes"]


def test_success_is_none_where_the_task_does_not_tell() -> None:
    task = TaskOptions(env="CartPole-v1", num_envs=2)
    env = make_task(task, seed=0, training=False)
    brought = evaluate(Constant(1), env, task, episodes=4, seed=0)
    env.close()
    assert (brought.success, brought.normalised, brought.groups) == (None, None, {})
    assert brought.return_mean == brought.length_mean < 20


def test_a_run_is_evaluated_on_its_task(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (trained, trained / "model.zip", trained / "model", next((trained / "checkpoints").iterdir())):
        brought = evaluated(capsys, path, "--episodes", "6")
        assert (brought["env"], brought["env_kwargs"], brought["episodes"]) == ("ctrl/Recall-v0", {"length": 5}, 6)
        assert (brought["seed"], brought["length_mean"]) == (evaluation_seed(0), 6.0)


def test_evaluation_repeats_that_of_training(
    tmp_path: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """The run has more episodes than copies, a seed other than the default, and returns with many digits."""
    task = ("--env", "ctrl/Rewrite-v0", "--env-kwargs", "steps=40", "--seed", "3", "--eval-episodes", "55")
    folder = train(tmp_path / "run", *small, *task)
    own = json.loads((folder / "summary.json").read_text())["evaluation"]
    assert (own["episodes"], own["seed"]) == (55, evaluation_seed(3))
    for path in (folder, folder / "model.zip"):
        brought = evaluated(capsys, path)
        assert {name: brought[name] for name in own} == own
    assert list(brought["scores"]) == ["random", "best without memory", "perfect"]
    assert main(["evaluate", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"{own['return_mean']:.3f}" in printed
    assert "best without memory" in printed and "perfect" in printed
    for other in (["--seed", "0"], ["--episodes", "56"], ["--num-envs", "54"]):
        assert evaluated(capsys, folder, *other)["return_mean"] != own["return_mean"]


@pytest.mark.parametrize("core", [("compressive", "3,4x2"), ("gru", None)])
def test_a_player_plays_as_predict_does(core: tuple[str, str | None]) -> None:
    """The comparison is over episodes that end at different times."""
    model, config = built(*core)
    env = make_task(config.task, seed=0, training=True)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100)  # else the first action is the likeliest everywhere
    ours = evaluate_policy(Player(model.policy), env, 24, return_episode_rewards=True, warn=False)
    env.seed(0)
    theirs = evaluate_policy(model, env, 24, return_episode_rewards=True, warn=False)
    env.seed(0)
    again = evaluate(model, env, config.task, episodes=24, seed=0)
    env.close()
    assert ours == theirs
    assert len(set(ours[0])) == 2 and len(set(ours[1])) > 1  # type: ignore[arg-type]
    assert again.return_mean == pytest.approx(np.mean(ours[0]))


def test_a_policy_that_sees_rewards_is_told_them() -> None:
    env = make_task(TaskOptions(env="CartPole-v1", num_envs=2), seed=0, training=False)
    seeing = {"core": "gru", "previous_reward": True}
    model = MemoryPPO("MlpMemoryPolicy", env, policy_kwargs=seeing, n_steps=8, seed=0, device="cpu")
    told: list[list[float]] = []
    model.policy.encode_reward = lambda rewards: told.append(list(rewards)) or torch.ones(2, 1)  # type: ignore[assignment, func-returns-value]
    evaluate(model, env, TaskOptions(env="CartPole-v1", num_envs=2), episodes=2, seed=0)
    env.close()
    assert told[0] == [1.0, 1.0] and len(told) > 10


def test_another_length_is_possible(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(trained), "--episodes", "3", "--env-kwargs", "length=9"]) == 0
    text = capsys.readouterr().out
    assert "10.0 steps" in text
    assert "length=9" in text


def test_arguments_that_are_not_named_stay_those_of_the_run(
    tmp_path: Path, small: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tmp_path / "run", *small, "--env-kwargs", "length=5", "num_cues=3")
    for options, arguments in (
        (("--env-kwargs", "length=9"), {"length": 9, "num_cues": 3}),
        (("--env-kwargs", "length=9", "noise=0.2"), {"length": 9, "num_cues": 3, "noise": 0.2}),
        (("--env", "ctrl/Recall-v0", "--env-kwargs", "num_cues=3"), {"num_cues": 3}),  # another task has its own
    ):
        assert evaluated(capsys, folder, "--episodes", "2", *options)["env_kwargs"] == arguments


def test_a_comparison_names_its_runs(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "comparison" / "runs" / "lstm" / "seed0"
    shutil.copytree(trained, run)
    assert main(["evaluate", str(tmp_path / "comparison")]) == 2
    assert f"name one of them: {run}" in capsys.readouterr().err


def test_what_cannot_be_evaluated_is_told(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: str) -> str:
        assert main(["evaluate", *arguments, "--episodes", "2"]) == 2
        return capsys.readouterr().err

    lonely = tmp_path / "elsewhere" / "model.zip"
    lonely.parent.mkdir()
    shutil.copy(trained / "model.zip", lonely)
    assert "name it with --env" in error(str(lonely))
    assert "Observation spaces do not match" in error(str(lonely), "--env", "CartPole-v1")
    assert "holds no whole model or checkpoint" in error(str(tmp_path / "elsewhere" / ".."))
    (tmp_path / "broken.zip").write_text("no zip")
    assert "cannot be loaded" in error(str(tmp_path / "broken.zip"), "--env", "ctrl/Recall-v0")


def built(core: str, memory: str | None) -> tuple[MemoryPPO, TrainConfig]:
    options = MemoryOptions(width=8, layers=2, heads=2, memory=memory, compressor="mean", reconstruction="none")
    config = TrainConfig(
        core=core,
        seed=3,
        task=TaskOptions(env_kwargs=("length=9",), num_envs=3),
        run=RunOptions(device="cpu"),
        memory=of_core(options, core),
        ppo=PPOOptions(n_steps=14),
    )
    env = make_task(config.task, seed=0, training=True)
    return build_model(config, env), config


def test_what_is_lost_by_compressing_is_measured_by_layer_and_tier() -> None:
    errors = reconstruction_errors(*built("compressive", "3,4x1,3x2"))
    assert list(errors) == ["layer0/tier1", "layer0/tier2", "layer1/tier1", "layer1/tier2"]
    for layer in (0, 1):
        assert errors[f"layer{layer}/tier1"] == pytest.approx(0, abs=1e-9)  # the mean of one slot is that slot
        assert 1e-3 < errors[f"layer{layer}/tier2"] < 1


def test_what_is_lost_is_measured_on_the_same_episodes_each_time() -> None:
    model, config = built("compressive", "3,4x2")
    first = reconstruction_errors(model, config)
    assert reconstruction_errors(model, config) == first
    assert reconstruction_errors(model, replace(config, seed=4)) != first


def test_a_core_that_does_not_compress_loses_nothing() -> None:
    assert reconstruction_errors(*built("transformer_xl", "3,4x2")) == {}


def test_held_out_windows_follow_each_other() -> None:
    """The unroll of a window ends in the state in which acting starts the next window, and takes the same actions."""
    model, config = built("compressive", "3,4x2")
    env = make_task(config.task, seed=7, training=True)
    windows = list(held_out_windows(model.policy, env, length=14))
    assert len(windows) == WINDOWS
    assert windows[0].reset[:, 0].all()
    assert windows[1].reset.any() and not windows[1].reset.all(dim=0).any()  # the copies are not in step
    for window, following in itertools.pairwise(windows):
        unrolled = model.policy.evaluate_windows(window).unrolled
        for ended, begun in zip(unrolled.state, following.core_state, strict=True):
            torch.testing.assert_close(ended, begun)
        latent = unrolled.outputs.flatten(0, 1).detach()
        likeliest, _, _ = model.policy.decide(latent, deterministic=True)
        assert torch.equal(likeliest, window.actions.flatten())
