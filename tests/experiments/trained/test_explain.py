"""`ctrl explain`: the episode, the picture and the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from matplotlib.image import imread
from stable_baselines3.common.vec_env import DummyVecEnv

from ctrl.agents import GymnasiumVecEnv, MemoryPPO
from ctrl.experiments.cli import main
from ctrl.experiments.config import ExplainConfig
from ctrl.experiments.report.attention import Episode, draw_episode
from ctrl.experiments.trained.explain import explain_saved, numbers, play

CORE = {"core_kwargs": {"width": 8, "heads": 2}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small: tuple[str, ...]) -> Path:
    """Return the folder of a run whose episodes have 10 steps, with a memory of 4 raw slots and 4 of 2 steps each."""
    folder = tmp_path_factory.mktemp("explained") / "run"
    assert main(["train", "--steps", "64", *small, "--env-kwargs", "length=9", "--out", str(folder)]) == 0
    return folder


def test_picture_and_numbers_lie_beside_the_model(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(run)]) == 0
    picture = run / "model-attention.png"
    shown = capsys.readouterr().out
    assert str(picture) in shown and "10 steps, return" in shown
    height, width, _ = imread(picture).shape
    assert height > 500 and width > 1000
    data = json.loads(picture.with_suffix(".json").read_text())
    assert data["env"] == "ctrl/Recall-v0" and data["env_kwargs"] == {"length": 9}
    assert [len(data[name]) for name in ("observations", "actions", "rewards", "values", "probabilities")] == [10] * 5
    (raw, compressed) = data["layers"][0]
    assert np.shape(raw["attention"]) == (10, 2, 4) and np.shape(compressed["age"]) == (10, 4)
    total = np.add(raw["share"], compressed["share"])
    np.testing.assert_allclose(total, 1, atol=1e-4)
    assert compressed["error"][0] is None and any(error is not None for error in compressed["error"])
    assert main(["explain", str(run)]) == 0  # the command's own file is replaced


def test_the_same_seed_is_the_same_episode_and_another_is_not(run: Path) -> None:
    config = ExplainConfig(run)
    one, again, other = (explain_saved(each)[2] for each in (config, config, replace(config, seed=5)))
    assert numbers(one) == numbers(again)
    assert numbers(one)["observations"] != numbers(other)["observations"]


def test_the_episode_is_that_of_the_evaluation(run: Path) -> None:
    """Rewards and actions are what the task answers to: its reward comes with the last action."""
    _, _, episode = explain_saved(ExplainConfig(run))
    found = episode.explanation
    assert len(episode.rewards) == 10 and not episode.rewards[:9].any()
    assert found.probabilities is not None
    assert found.actions.tolist() == found.probabilities.argmax(axis=1).tolist()


def test_options(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "seen.png"
    arguments = ["explain", str(run / "model.zip"), "--out", str(out), "--env-kwargs", "length=30", "--steps", "20"]
    assert main([*arguments, "--stochastic"]) == 0
    assert len(json.loads(out.with_suffix(".json").read_text())["actions"]) == 20
    assert main(arguments) == 2
    assert main([*arguments, "--overwrite"]) == 0


def test_mistakes_are_told_in_one_line(
    run: Path, tmp_path: Path, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        capsys.readouterr()
        assert main(["explain", *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    lstm = tmp_path / "lstm"
    assert main(["train", "--core", "lstm", "--steps", "64", *tiny[:6], "--width", "8", "--out", str(lstm)]) == 0
    assert "the core 'lstm' of this agent can't be explained: explain needs a core with attention" in refused(str(lstm))
    assert "does not exist" in refused(str(tmp_path / "nothing"))
    assert "--out must name a .png file" in refused(str(run), "--out", str(tmp_path / "seen.jpg"))
    assert "--steps must be at least 1" in refused(str(run), "--steps", "0")
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(str(run), "--out", str(tmp_path / "file" / "seen.png"))


# Episodes of envs of other kinds


class Rooms(gym.Env[Any, Any]):
    """Env of 7 steps with an image, a number and many features; most actions are illegal."""

    def __init__(self, action_space: spaces.Space[Any]) -> None:
        self.action_space = action_space
        parts = {
            "image": spaces.Box(0, 255, (40, 44, 3), np.uint8),
            "number": spaces.Discrete(5),
            "many": spaces.Box(-1, 1, (90,)),
        }
        self.observation_space = spaces.Dict(parts)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.observation_space.sample(), float(self.time), self.time == 7, False, {}


class MaskedRooms(Rooms):
    def action_masks(self) -> np.ndarray:
        return np.array([self.time % 3 == choice for choice in range(3)])

    def step(self, action: Any) -> Any:
        assert action == self.time % 3
        return super().step(action)


KINDS: dict[str, Any] = {
    "masked": lambda: MaskedRooms(spaces.Discrete(3)),
    "multi-discrete": lambda: Rooms(spaces.MultiDiscrete([2, 3])),
    "multi-binary": lambda: Rooms(spaces.MultiBinary(2)),
    "box": lambda: Rooms(spaces.Box(-1, 1, (2,))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_episodes_of_all_kinds_are_drawn(kind: str) -> None:
    model = MemoryPPO("MultiInputMemoryPolicy", KINDS[kind](), n_steps=8, policy_kwargs=CORE, device="cpu")
    env: Any = model.get_env()
    episode = play(model, env, most_steps=50, deterministic=False)
    assert episode.rewards.tolist() == [1, 2, 3, 4, 5, 6, 7]
    titles = [axes.get_title(loc="left") for axes in draw_episode(episode, "rooms").axes]
    assert "observation 'image' (7 of 7 steps)" in titles
    assert "observation 'many' (the first 64 of 90 features)" in titles
    assert "value and reward (return 28)" in titles
    assert ("action" in titles) == (kind == "box")
    json.dumps(numbers(episode), allow_nan=False)


@pytest.mark.parametrize("mode", list(gym.vector.AutoresetMode), ids=lambda mode: mode.name)
def test_an_episode_ends_where_it_ends_in_each_autoreset_mode(mode: Any) -> None:
    envs = gym.vector.SyncVectorEnv([KINDS["masked"]], autoreset_mode=mode)
    model = MemoryPPO("MultiInputMemoryPolicy", GymnasiumVecEnv(envs), n_steps=8, policy_kwargs=CORE, device="cpu")
    episode = play(model, model.get_env(), most_steps=50, deterministic=True)  # type: ignore[arg-type]
    assert episode.rewards.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_an_episode_of_one_step_and_a_policy_that_sees_rewards() -> None:
    kwargs = {**CORE, "previous_reward": True}
    model = MemoryPPO("MultiInputMemoryPolicy", KINDS["box"](), n_steps=8, policy_kwargs=kwargs, device="cpu")
    env: Any = model.get_env()
    assert isinstance(env.unwrapped, DummyVecEnv)
    episode = play(model, env, most_steps=1, deterministic=True)
    assert isinstance(episode, Episode) and len(episode.rewards) == 1
    draw_episode(episode, "one step").draw_without_rendering()
